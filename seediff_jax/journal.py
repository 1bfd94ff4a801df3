"""The journal of a shard: its finished samples, until the shard is complete and can be sealed.

    shards/00012.journal/012004+4     samples 12004 to 12007: their records, and what formats that
                                      pack samples into shard files need of them

A file is written when its samples are done and never changed, so a run that is killed loses what
was in flight and nothing else. The names alone tell what is there. A file begins with the CRC-32 of
the rest: what is read from it goes into shards whose hashes are taken afterwards.
"""

import re
import zlib
from collections.abc import Iterator, Sequence

import msgpack

from seediff_jax.encoding import EncodedSample
from seediff_jax.storage import Folder

_CHUNK = 16
_CHECKSUM_BYTES = 4


class DamagedEntry(ValueError):
    """A file of a journal that does not hold what its name says.

    Attributes:
        name: of the file, in the dataset folder.
    """

    def __init__(self, folder: Folder, name: str, reason: object):
        super().__init__(f"{folder.path(name)} is damaged ({reason})")
        self.name = name


class Journal:
    """The journal of one shard.

    Args:
        folder: of the dataset.
        shard: its number.
    """

    def __init__(self, folder: Folder, shard: int):
        self._folder, self._path = folder, f"shards/{shard:05d}.journal"

    def entries(self) -> list[tuple[int, int]]:
        """First index and number of samples of each file, in order."""
        found = (re.fullmatch(r"(\d+)\+(\d+)", name) for name in self._folder.names(self._path))
        return sorted((int(match[1]), int(match[2])) for match in found if match)

    def indices(self) -> set[int]:
        """Samples that are there."""
        return {first + k for first, count in self.entries() for k in range(count)}

    def contents(self, samples: Sequence[EncodedSample]) -> dict[str, bytes]:
        """Content by name of the files that hold samples, one for each run of successive ones."""
        runs: list[list[EncodedSample]] = []
        for sample in samples:
            if not runs or sample.index != runs[-1][-1].index + 1:
                runs.append([])
            runs[-1].append(sample)
        return {self._name(run[0].index, len(run)): _packed(run) for run in runs}

    def add(self, samples: Sequence[EncodedSample]) -> None:
        """Writes finished samples."""
        self._folder.write_all({}, self.contents(samples))

    def samples(self) -> Iterator[EncodedSample]:
        """Reads the samples in order, each once, a file at a time.

        Raises:
            DamagedEntry: a file is damaged.
        """
        after = -1
        for first, count in self.entries():
            if first + count <= after:
                continue
            for sample in self._read(first, count):
                if sample.index >= after:
                    yield sample
            after = first + count

    def compact(self) -> None:
        """Writes what is there in files that do not depend on how it came to be."""
        kept, chunk = set(), []
        for sample in self.samples():
            if chunk and not _belongs(sample, chunk):
                kept.add(self._write_chunk(chunk))
                chunk = []
            chunk.append(sample)
        if chunk:
            kept.add(self._write_chunk(chunk))
        for name in self._folder.names(self._path):
            if f"{self._path}/{name}" not in kept:
                self._folder.remove(f"{self._path}/{name}")

    def remove(self) -> None:
        """Removes the journal."""
        self._folder.remove(self._path)

    def _write_chunk(self, chunk: Sequence[EncodedSample]) -> str:
        name = self._name(chunk[0].index, len(chunk))
        if not self._folder.exists(name):
            self.add(chunk)
        return name

    def _name(self, first: int, count: int) -> str:
        return f"{self._path}/{first:06d}+{count}"

    def _read(self, first: int, count: int) -> list[EncodedSample]:
        name = self._name(first, count)
        try:
            stored = self._folder.read(name)
            content = stored[_CHECKSUM_BYTES:]
            if stored[:_CHECKSUM_BYTES] != _checksum(content):
                raise ValueError("its checksum is another one")
            rows = msgpack.unpackb(content, strict_map_key=False)
            samples = [EncodedSample(index, record, files) for index, record, files in rows]
            if [s.index for s in samples] != list(range(first, first + count)):
                raise ValueError("other samples than its name says")
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise DamagedEntry(self._folder, name, error) from error
        return samples


def _packed(samples: Sequence[EncodedSample]) -> bytes:
    content = msgpack.packb([[s.index, dict(s.record), dict(s.files)] for s in samples])
    return _checksum(content) + content


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")


def _belongs(sample: EncodedSample, chunk: Sequence[EncodedSample]) -> bool:
    """Whether a sample goes into the file of the chunk: it is the next one, in the same part."""
    is_next = sample.index == chunk[-1].index + 1
    return is_next and sample.index // _CHUNK == chunk[0].index // _CHUNK
