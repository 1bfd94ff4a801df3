"""The journal of a shard keeps its samples until all exist and the shard is finished.

    shards/00012.journal/012004+4     samples 12004 to 12007: their records, and the parts of them
                                      that go into files of the shard

A file is written when its samples are made, and never changed: a run that is killed loses only the
samples in flight. The names of the files say which samples exist. A file begins with the CRC-32 of
the rest, because the files of the shard are made from it, and their hashes are computed afterwards.
"""

import itertools
import re
import zlib
from collections.abc import Collection, Iterator, Sequence

import msgpack

from seediff_jax.dataset.checksums import DamagedFile, json_line, require_record
from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.errors import UserError
from seediff_jax.files.folder import TEMPORARY, Folder

_ENTRY = re.compile(r"([0-9]{6,})\+([0-9]{1,9})")
_CHUNK = 16
_CHECKSUM_BYTES = 4


class Journal:
    """The journal of one shard.

    Args:
        folder: of the dataset.
        shard: its number.
        indices: of the samples of the full shard; files with other indices are ignored.
    """

    def __init__(self, folder: Folder, shard: int, indices: range):
        self.path = f"shards/{shard:05d}.journal"
        self._folder, self._indices = folder, indices

    def entries(self) -> list[tuple[int, int]]:
        """Lists the first index and the number of samples of each file, in order."""
        found = (self._parse_name(name) for name in self._folder.names(self.path))
        return sorted(entry for entry in found if entry)

    def unknown_names(self) -> list[str]:
        """Lists names in the journal's folder that are not files of this journal."""
        names = self._folder.names(self.path)
        return [n for n in names if not self._parse_name(n) and not n.endswith(TEMPORARY)]

    def indices(self) -> set[int]:
        """Returns the indices of the samples in the journal."""
        return {first + k for first, count in self.entries() for k in range(count)}

    def contents(self, samples: Sequence[EncodedSample]) -> dict[str, bytes]:
        """Makes the files for samples, one for each range of successive indices.

        Returns:
            Content by name.
        """
        runs: list[list[EncodedSample]] = []
        for sample in samples:
            if not runs or sample.index != runs[-1][-1].index + 1:
                runs.append([])
            runs[-1].append(sample)
        return {self.name(run[0].index, len(run)): _pack(run) for run in runs}

    def add(self, samples: Sequence[EncodedSample]) -> None:
        """Writes samples."""
        if samples:
            self._folder.write_all({}, self.contents(samples))

    def samples(self) -> Iterator[EncodedSample]:
        """Reads the samples in order, each once, holding one file at a time.

        Raises:
            DamagedFile: a file is damaged.
        """
        after = -1
        for first, count in self.entries():
            if first + count <= after:
                continue
            for sample in self.read(first, count):
                if sample.index >= after:
                    yield sample
            after = first + count

    def compact(self) -> None:
        """Rewrites the journal, so that its files do not depend on the order of the work."""
        kept: set[str] = set()
        for _, chunk in itertools.groupby(self.samples(), lambda sample: sample.index // _CHUNK):
            contents = self.contents([*chunk])
            kept |= contents.keys()
            if new := {n: c for n, c in contents.items() if not self._folder.exists(n)}:
                self._folder.write_all({}, new)
        for name in self._folder.names(self.path):
            if f"{self.path}/{name}" not in kept:
                self._folder.remove(f"{self.path}/{name}")

    def remove(self) -> None:
        """Removes the journal."""
        self._folder.remove(self.path)

    def remove_damaged(self, indices: Collection[int]) -> None:
        """Removes samples of these indices, and files that cannot be read or are unknown."""
        for name in self.unknown_names():
            self._folder.remove(f"{self.path}/{name}")
        for first, count in self.entries():
            try:
                samples = self.read(first, count)
            except (DamagedFile, OSError):
                samples = []
            kept = [sample for sample in samples if sample.index not in indices]
            if len(kept) < count:
                self.add(kept)
                self._folder.remove(self.name(first, count))

    def read(self, first: int, count: int) -> list[EncodedSample]:
        """Reads one file.

        Raises:
            DamagedFile: its content does not match its name.
        """
        name = self.name(first, count)
        try:
            stored = self._folder.read(name)
            content = stored[_CHECKSUM_BYTES:]
            if stored[:_CHECKSUM_BYTES] != _checksum(content):
                raise ValueError("has changed since it was written")
            samples = [_parse_row(row) for row in msgpack.unpackb(content, strict_map_key=False)]
            indices = [sample.index for sample in samples]
            if len(indices) != count or indices != list(range(first, first + count)):
                raise ValueError("holds other samples than its name says")
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise DamagedFile(self._folder, name, str(error)) from error
        return samples

    def name(self, first: int, count: int) -> str:
        """Returns the name of a file in the dataset folder."""
        return f"{self.path}/{first:06d}+{count}"

    def _parse_name(self, name: str) -> tuple[int, int] | None:
        match = _ENTRY.fullmatch(name)
        if not match:
            return None
        first, count = int(match[1]), int(match[2])
        is_within = count > 0 and first in self._indices and first + count - 1 in self._indices
        return (first, count) if is_within and name == f"{first:06d}+{count}" else None


def _pack(samples: Sequence[EncodedSample]) -> bytes:
    try:
        content = msgpack.packb([[s.index, dict(s.record), dict(s.files)] for s in samples])
    except (OverflowError, TypeError, ValueError) as error:  # a foreign record, of 10**400 say
        where = f"{samples[0].index} to {samples[-1].index}"
        raise UserError(f"records of samples {where} cannot be kept: {error}") from error
    return _checksum(content) + content


def _parse_row(row: object) -> EncodedSample:
    index, record, files = row
    require_record(record)
    json_line(record)  # a TypeError for what JSON lacks
    is_sound = isinstance(files, dict) and all(isinstance(part, bytes) for part in files.values())
    if record["index"] != index or not is_sound:
        raise ValueError("does not hold samples")
    return EncodedSample(index, record, files)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")
