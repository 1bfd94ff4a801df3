"""The dataset folder: every file appears whole or not at all, and a run can go on after anything.

    settings.json, classes.txt       what pins the samples down; the class of id k on line k
    image/ mask/ overlay/ ...        what the chosen formats hold, see seediff_jax.formats
    shards/00012.journal/            finished samples of a shard that is not sealed yet
    shards/00012.jsonl               a line a sample of the shard
    shards/00012.json                files of the shard and their hashes: written last, the seal
    manifest.jsonl, failed.jsonl     all lines, when the run is complete
    contact_sheet.png, strip.png     for people

A sample exists when the journal or a seal says so. Whatever a stopped run leaves beside that is
made again by the next run, to the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.encoding import EncodedSample
from seediff_jax.formats import FORMATS, Format
from seediff_jax.journal import DamagedEntry, Journal
from seediff_jax.seals import COUNTS, read_seal, read_sealed
from seediff_jax.shard_layout import ShardLayout
from seediff_jax.storage import TEMPORARY, Folder

SCRATCH = "scratch-"
"""Begins the name of a host's folder in `shards` for files in the making."""
FAILED = "failed"
"""Key of a record that says why there is no sample of its index."""


class Dataset:
    """Writes blocks of samples and seals shards; several hosts may write different blocks at once.

    Args:
        folder: whose settings have been written, see `folder_settings`.
        layout: how samples are cut into shards.
        formats: what is written.
        scratch: an empty folder of this process, on the disk of `folder` where that is local.
    """

    def __init__(
        self, folder: Folder, layout: ShardLayout, formats: Sequence[Format], scratch: Path
    ):
        self.folder, self.layout, self.formats, self.scratch = folder, layout, formats, scratch
        self._staged_parts = {part for each in formats for part in each.shard_parts}

    def scan(self) -> np.ndarray:
        """Which samples exist, bool `[num_images]`, from names of files alone.

        Raises:
            ValueError: there are samples beyond the run's.
        """
        size, count = self.layout.shard_size, self.layout.num_images
        found = [np.zeros(0, int)]
        for shard, is_sealed in self._shards().items():
            every = range(shard * size, (shard + 1) * size)
            indices = every if is_sealed else list(self._journal(shard).indices())
            found.append(np.array(indices, int))
        there = np.concatenate(found)
        if there.size and there.max() >= count:
            raise ValueError(
                f"{self.folder} has samples up to {there.max()}, beyond num_images={count}; ask "
                "for at least as many, or choose another folder"
            )
        exists = np.zeros(count, bool)
        exists[there] = True
        return exists

    def unsealed(self, exists: np.ndarray) -> list[int]:
        """Shards that have all their samples and no seal."""
        sealed = {shard for shard, is_sealed in self._shards().items() if is_sealed}
        size = self.layout.shard_size
        whole = np.logical_and.reduceat(exists, np.arange(0, len(exists), size))
        return [shard for shard in np.flatnonzero(whole).tolist() if shard not in sealed]

    def write(self, samples: Sequence[EncodedSample]) -> None:
        """Writes finished samples of one shard; then they exist.

        Raises:
            OSError: a file cannot be written; what was written before stays valid.
        """
        files: dict[str, bytes] = {}
        entries = []
        for sample in samples:
            record = dict(sample.record)
            if FAILED not in record:
                own, facts = self._own_files(sample)
                files |= own
                record = facts | record
            kept = {k: v for k, v in sample.files.items() if k in self._staged_parts}
            entries.append(EncodedSample(sample.index, record, kept))
        journal = self._journal(self.layout.shard_of(samples[0].index))
        self.folder.write_all(files, journal.contents(entries))

    def seal(self, shard: int) -> None:
        """Makes the files of a shard, of which all samples exist.

        A shard that a longer run would add to keeps its journal, and is sealed again every time.

        Raises:
            ValueError: a file of the journal was damaged; it is gone, and its samples with it. Or
                samples are missing.
            OSError: a file cannot be written.
        """
        try:
            self._seal(shard, self._journal(shard))
        except DamagedEntry as error:
            self.folder.remove(error.name)
            raise ValueError(
                f"{error} and was removed; give the same command again to make its samples again"
            ) from error

    def _seal(self, shard: int, journal: Journal) -> None:
        lines, counts = self._write_lines(shard, journal)
        needed, there = len(self.layout.indices(shard)), counts["samples"] + counts["failed"]
        if there != needed:
            raise ValueError(
                f"shard {shard} of {self.folder} has {there} of its {needed} samples; when no "
                "other run is at work there, give the same command again to make the others"
            )
        files = {f"shards/{shard:05d}.jsonl": lines}
        for each in self.formats:
            files |= each.write_shard(shard, _without_failed(journal.samples()), self.scratch)
        made = {name: describe_file(path) for name, path in files.items()}
        for name, path in files.items():
            self.folder.put(name, path)
        seal = {"shard": shard, **counts, "files": made}
        is_full = self.layout.is_full(shard)
        name = self._seal_name(shard)
        self.folder.write(name, (json.dumps(seal, indent=1, sort_keys=True) + "\n").encode())
        if is_full:
            journal.remove()
            self.folder.remove(f"shards/{shard:05d}.open.json")
        else:
            journal.compact()

    def counts(self, shard: int) -> dict[str, int]:
        """`seals.COUNTS` of a sealed shard; raises DamagedFile for a damaged seal."""
        seal = read_seal(self.folder, self._seal_name(shard))
        return {name: seal[name] for name in COUNTS}

    def read(self, shard: int, name: str) -> bytes:
        """Reads a file of a sealed shard; raises DamagedFile unless it is as it was written."""
        return read_sealed(self.folder, self._seal_name(shard), name)

    def lines(self, shard: int) -> bytes:
        """Records of the samples of a sealed shard in order, of failed ones too, a line each."""
        return self.read(shard, f"shards/{shard:05d}.jsonl")

    def records(self) -> Iterator[dict[str, Any]]:
        """Records of the samples of all shards in order, of failed ones too."""
        for shard in range(self.layout.num_shards):
            for line in self.lines(shard).splitlines():
                yield json.loads(line)

    def _shards(self) -> dict[int, bool]:
        """Shards with samples, and whether they are sealed for good."""
        found: dict[int, bool] = {}
        for name in self.folder.names("shards"):
            number, _, kind = name.partition(".")
            if number.isdigit() and kind in ("json", "journal"):
                found[int(number)] = found.get(int(number), False) or kind == "json"
        return found

    def _journal(self, shard: int) -> Journal:
        return Journal(self.folder, shard)

    def _own_files(self, sample: EncodedSample) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A sample's own files; and where they are, with the hashes of all its parts."""
        files: dict[str, bytes] = {}
        places: dict[str, Any] = {}
        for each in self.formats:
            for name, part in each.sample_files(sample.index).items():
                files[name] = sample.files[part]
                places.setdefault(part.split(".")[0], name)
        hashes = {part: hashlib.sha256(sample.files[part]).hexdigest() for part in sample.files}
        return files, {"index": sample.index, **places, "sha256": hashes}

    def _seal_name(self, shard: int) -> str:
        return f"shards/{shard:05d}.{'' if self.layout.is_full(shard) else 'open.'}json"

    def _write_lines(self, shard: int, journal: Journal) -> tuple[Path, dict[str, int]]:
        """Writes the records of a shard; the second result is that of `counts`."""
        path = self.scratch / f"{shard:05d}.jsonl"
        counts = {"samples": 0, "failed": 0, "empty": 0}
        with open(path, "wb") as file:
            for sample in journal.samples():
                file.write(json_line(sample.record))
                counts["failed" if FAILED in sample.record else "samples"] += 1
                counts["empty"] += bool(sample.record.get("empty"))
        return path, counts


def tidy(folder: Folder) -> None:
    """Removes what killed runs left in `shards`; no run may be at work there.

    That is scratch folders, files that were being written, and journals of sealed shards, which
    are removed after the seal is there.
    """
    names = folder.names("shards")
    for name in names:
        number, _, kind = name.partition(".")
        is_replaced = kind in ("journal", "open.json") and f"{number}.json" in names
        if is_replaced or name.endswith(TEMPORARY) or name.startswith(SCRATCH):
            folder.remove(f"shards/{name}")


def make_formats(
    names: Sequence[str], class_names: Sequence[str], soft: str | None, seeds: bool
) -> list[Format]:
    """Makes formats by their names.

    Args:
        names: out of FORMATS, each once.
        class_names: of the run.
        soft: how soft masks are kept, see `Format`.
        seeds: whether seed maps are kept.

    Raises:
        ValueError: there is no such format, or a library of one is not installed.
    """
    require_formats(names)
    formats = [FORMATS[name](class_names, soft, seeds) for name in names]
    for each in formats:
        each.require_available()
    return formats


def require_formats(names: Sequence[str]) -> None:
    """Raises a ValueError unless `names` are formats, each once."""
    if not names or len(set(names)) < len(names) or not set(names) <= set(FORMATS):
        raise ValueError(f"format={','.join(names)} must be of {', '.join(FORMATS)}, each once")


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _without_failed(samples: Iterable[EncodedSample]) -> Iterator[EncodedSample]:
    return (sample for sample in samples if FAILED not in sample.record)
