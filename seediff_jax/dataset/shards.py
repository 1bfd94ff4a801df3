"""The dataset folder: writes the samples of a run and finishes its shards.

Every file appears whole or not at all, so a run can resume after any stop; see `resume`.

    settings.json, classes.txt       what determines the samples; the class of id k on line k
    image/ mask/ overlay/ ...        the files of the chosen formats, see dataset.formats
    shards/00012.journal/            finished samples of a shard that is not finished yet
    shards/00012.jsonl               one line per sample of the shard
    shards/00012.json                summary of a finished shard: its files and their hashes;
                                     00012.open.json if a longer run would add samples to it
    manifest.jsonl, failed.jsonl     all lines, when the run is complete
    contact_sheet.png, strip.png     pictures for people
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seediff_jax.dataset.checksums import (
    FAILED,
    DamagedFile,
    add_checksum,
    describe_file,
    json_line,
    json_with_checksum,
    read_checked,
    read_json_with_checksum,
    read_record,
)
from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.formats import FORMATS, Format
from seediff_jax.dataset.journal import Journal
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.errors import UserError, listed
from seediff_jax.files.folder import Folder, name_in_errors

COUNTS = ("samples", "failed", "empty")
"""What a summary counts: samples, failed samples, and samples in which a class has no pixels."""
SCRATCH = "scratch-"
"""Prefix of a host's folder in `shards` for files that are being made."""


def is_count(value: object) -> bool:
    """Whether a value of a JSON file can be a count."""
    return type(value) is int and 0 <= value < 2**53


def read_summary(folder: Folder, name: str) -> dict[str, Any]:
    """Reads the summary of a shard: COUNTS, and the "bytes" and "sha256" of "files" by their names.

    Raises:
        DamagedFile: it is missing or damaged.
    """
    return read_listing(folder, name, COUNTS, "is not the summary of a shard")


def read_listing(folder: Folder, name: str, counts: Sequence[str], fault: str) -> dict[str, Any]:
    """Reads a file with counts and with facts of other files, as `read_summary`.

    `fault` says what is wrong with a file that lacks one of the counts.
    """
    content = read_json_with_checksum(folder, name)
    if not all(is_count(content.get(count)) for count in counts):
        raise DamagedFile(folder, name, fault)
    files = content.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(facts, dict)
        and is_count(facts.get("bytes"))
        and isinstance(facts.get("sha256"), str)
        for facts in files.values()
    ):
        raise DamagedFile(folder, name, "lacks sizes and hashes of files")
    return content


def _read_listed(folder: Folder, summary: str, name: str) -> bytes:
    files = read_summary(folder, summary)["files"]
    if name not in files:
        raise DamagedFile(folder, summary, f"does not list {name}")
    return read_checked(folder, name, files[name])


def read_records(folder: Folder, summary: str, lines: str) -> Iterator[dict[str, Any]]:
    """Reads the records of the samples of a finished shard, without those that failed.

    `summary` and `lines` are the names of its summary and of the file with its records.

    Raises:
        DamagedFile: one of them is not as it was written.
    """
    for line in _read_listed(folder, summary, lines).splitlines():
        record = read_record(folder, lines, line)
        if FAILED not in record:
            yield record


class Dataset:
    """Writes blocks of samples and finishes shards; several hosts may write different blocks.

    Args:
        folder: with its settings already written, see `settings_file`.
        layout: how samples are divided into shards.
        formats: what is written.
        scratch: an empty folder of this process, on the disk of `folder` where that is local.
    """

    def __init__(
        self, folder: Folder, layout: ShardLayout, formats: Sequence[Format], scratch: Path
    ):
        self.folder, self.layout, self.formats, self.scratch = folder, layout, formats, scratch
        self.shard_parts = {part for each in formats for part in each.shard_parts}

    def write(self, samples: Sequence[EncodedSample]) -> None:
        """Writes samples of one shard; they exist from then on.

        Raises:
            OSError: a file cannot be written; what was written before stays valid.
        """
        files: dict[str, bytes] = {}
        entries = []
        for sample in samples:
            record = dict(sample.record)
            if FAILED in record:
                for each in self.formats:
                    for name in each.sample_files(sample.index):
                        self.folder.remove(name)  # of a run that was killed before it noted them
            else:
                own, facts = self._own_files(sample)
                files |= own
                record = facts | record
            kept = {k: v for k, v in sample.files.items() if k in self.shard_parts}
            entries.append(EncodedSample(sample.index, add_checksum(record), kept))
        journal = self.journal(self.layout.shard_of(samples[0].index))
        self.folder.write_all(files, journal.contents(entries))

    def finish(self, shard: int) -> None:
        """Finishes a shard that has all its samples: writes its files and its summary.

        A shard that a longer run would add samples to keeps its journal; each run finishes it anew.

        Raises:
            UserError: a file of the journal was damaged, and is removed together with its samples;
                or samples are missing.
        """
        try:
            self._finish(shard, self.journal(shard))
        except DamagedFile as error:
            self.folder.remove(error.name)
            raise UserError(
                f"{self.folder.path(error.name)} was damaged ({error.reason}) and is removed; run "
                "the same command to make its samples again"
            ) from error

    def _finish(self, shard: int, journal: Journal) -> None:
        lines, counts = self._write_lines(shard, journal)
        needed, there = len(self.layout.indices(shard)), counts["samples"] + counts["failed"]
        if there != needed:
            raise UserError(
                f"shard {shard} of {self.folder} has {there} of its {needed} samples; when no "
                "other run is at work there, run the same command to make the others"
            )
        files = {f"shards/{shard:05d}.jsonl": lines}
        for each in self.formats:
            good = (sample for sample in journal.samples() if FAILED not in sample.record)
            files |= each.write_shard(shard, good, self.scratch)
        made = {name: describe_file(path) for name, path in sorted(files.items())}
        for name, path in files.items():
            self.folder.put(name, path)
        summary = {"shard": shard, **counts, "files": made}
        self.folder.write(self._summary_name(shard), json_with_checksum(summary))
        if self.layout.is_full(shard):
            journal.remove()
            self.folder.remove(f"shards/{shard:05d}.open.json")
        else:
            journal.compact()

    def counts(self, shard: int) -> dict[str, int]:
        """Returns `COUNTS` of a finished shard; raises DamagedFile for a damaged summary."""
        summary = read_summary(self.folder, self._summary_name(shard))
        return {name: summary[name] for name in COUNTS}

    def read(self, shard: int, name: str) -> bytes:
        """Reads a file of a finished shard; raises DamagedFile unless it is as it was written."""
        return _read_listed(self.folder, self._summary_name(shard), name)

    def lines(self, shard: int) -> bytes:
        """Reads the records of a finished shard in order, one per line, also of failed samples."""
        return self.read(shard, f"shards/{shard:05d}.jsonl")

    def records(self) -> Iterator[dict[str, Any]]:
        """Reads the records of all samples in order, without those that failed."""
        for shard in range(self.layout.num_shards):
            lines = f"shards/{shard:05d}.jsonl"
            yield from read_records(self.folder, self._summary_name(shard), lines)

    def journal(self, shard: int) -> Journal:
        """Returns the journal of a shard."""
        return Journal(self.folder, shard, self.layout.full_shard(shard))

    def _own_files(self, sample: EncodedSample) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Makes a sample's own files; also returns their names and all hashes for its record."""
        files: dict[str, bytes] = {}
        places: dict[str, Any] = {}
        for each in self.formats:
            for name, part in each.sample_files(sample.index).items():
                files[name] = sample.files[part]
                places.setdefault(part.split(".")[0], name)
        hashes = {part: hashlib.sha256(sample.files[part]).hexdigest() for part in sample.files}
        return files, {"index": sample.index, **places, "sha256": hashes}

    def _summary_name(self, shard: int) -> str:
        return f"shards/{shard:05d}.{'' if self.layout.is_full(shard) else 'open.'}json"

    def _write_lines(self, shard: int, journal: Journal) -> tuple[Path, dict[str, int]]:
        """Writes the records of a shard; the second result is that of `counts`."""
        path = self.scratch / f"{shard:05d}.jsonl"
        counts = dict.fromkeys(COUNTS, 0)
        with name_in_errors(path), open(path, "wb") as file:
            for sample in journal.samples():
                file.write(json_line(sample.record))
                counts["failed" if FAILED in sample.record else "samples"] += 1
                counts["empty"] += bool(sample.record.get("empty"))
        return path, counts


def find_record(folder: Folder, layout: ShardLayout, index: int) -> dict[str, Any]:
    """Finds the record of a sample, in the lines or in the journal of its shard.

    Raises:
        UserError: the sample is missing or failed, or its record is damaged.
    """
    shard = layout.shard_of(index)
    name = f"shards/{shard:05d}.jsonl"
    found = None
    if folder.exists(name):
        for line in folder.read(name).splitlines():
            record = read_record(folder, name, line)
            found = record if record["index"] == index else found
    if found is None:
        journal = Journal(folder, shard, layout.full_shard(shard))
        for first, count in journal.entries():
            if first <= index < first + count:
                found = journal.read(first, count)[index - first].record
    if found is None:
        raise UserError(f"{folder} does not have sample {index}, or not yet")
    if FAILED in found:
        raise UserError(f"sample {index} of {folder} failed: {found[FAILED]}")
    return found


@contextlib.contextmanager
def scratch_folder(folder: Folder, name: str) -> Iterator[Path]:
    """Makes an empty folder for files that are being made, on the disk of their final place.

    The dataset has a folder `shards`; `name` differs in each process that writes there.
    """
    if folder.local is None:
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)
        return
    path = folder.local / "shards" / f"{SCRATCH}{name}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_formats(
    names: Sequence[str], class_names: Sequence[str], kept: Sequence[str]
) -> list[Format]:
    """Makes formats by their names in FORMATS; `kept` are further parts, see `kept_parts`.

    Raises:
        UserError: there is no such format, or a library that one needs is not installed.
    """
    if not names or len(set(names)) < len(names) or not set(names) <= set(FORMATS):
        raise UserError(f"format={listed(names)} must be of {', '.join(FORMATS)}, each once")
    formats = [FORMATS[name](class_names, kept) for name in names]
    for each in formats:
        each.require_available()
    return formats
