"""What an output format is: which parts it needs, and the files that it makes of them.

A run writes its samples in shards. A format can make files at three moments:

    sample_files    files of one sample, as soon as the sample is there
    write_shard     files of a shard, when all its samples are there
    write_run       files of the run, when all shards are there

All content depends only on the arguments, so that a run that was stopped and resumed ends with the
same bytes. None of the arguments contains samples that failed.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.formats.names import KEEPING
from seediff_jax.errors import require_installed
from seediff_jax.files.folder import name_in_errors

Records = Callable[[], Iterator[dict[str, Any]]]
"""Iterates over the records of all samples, by index; each call starts anew."""

Read = Callable[[int, str], bytes]
"""Reads a file of a shard, by the number of the shard and the relative path."""

Made = dict[str, Path]
"""Files of the dataset by their relative paths: where each was made, in the scratch folder."""

Recover = Callable[[Mapping[str, Any]], dict[str, bytes]]
"""Reads parts of a sample, given its record, back from the files of its shard."""


class Format:
    """Base of the formats; makes no files. Each format overrides the methods that it needs.

    Attributes:
        name: as users call it. All paths of a format begin with it, except for "files".
        libraries: import names, which are also pip's, of optional libraries that it needs.
        sample_paths: path -> part of each file of a sample, with `{}` in place of `stem`.
        parts: names of `encoding.PARTS` that it is made of.
        shard_parts: those of `parts` that `write_shard` needs.
        class_names: of the run; the id of class k, counted from 0, is k + 1.

    Args:
        class_names: of the run.
        kept: further parts, from `kept_parts`; the formats of KEEPING add them to both.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    sample_paths: ClassVar[Mapping[str, str]] = {}
    parts: tuple[str, ...] = ()
    shard_parts: tuple[str, ...] = ()

    def __init__(self, class_names: Sequence[str], kept: Sequence[str] = ()):
        self.class_names = tuple(class_names)
        if self.name in KEEPING:
            self.parts += tuple(kept)
            self.shard_parts += tuple(kept) if self.shard_parts else ()

    def require_available(self) -> None:
        """Checks that the libraries of the format are installed.

        Raises:
            UserError: one is missing; the message has the command that installs it.
        """
        require_installed(f"the format {self.name}", self.libraries)

    def sample_files(self, index: int) -> dict[str, str]:
        """Maps relative paths of the files of a sample to its parts."""
        return {path.format(stem(index)): part for path, part in self.sample_paths.items()}

    def write_shard(self, number: int, samples: Iterator[EncodedSample], scratch: Path) -> Made:
        """Makes the files of a shard.

        Args:
            number: of the shard.
            samples: of the shard, by index; each has at least `shard_parts`. They are read once,
                one at a time.
            scratch: folder for the files.
        """
        del number, samples, scratch
        return {}

    def open_shard(self, number: int, read: Callable[[str], bytes], scratch: Path) -> Recover:
        """Opens the files of a shard, to read `shard_parts` of its samples back.

        Where a file is damaged, the result may lack parts, return wrong bytes or raise any
        Exception; the caller compares hashes.

        Args:
            number: of the shard.
            read: reads a file of the dataset.
            scratch: folder for copies.
        """
        del number, read, scratch
        return lambda record: {}

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Makes the files of the run, with the files of at most one shard in memory.

        Args:
            records: of the run.
            read: reads what `write_shard` made.
            shards: numbers of all shards, ascending.
            scratch: folder for the files.
        """
        del records, read, shards, scratch
        return {}


def stem(index: int) -> str:
    """Returns the file name of a sample without its ending."""
    return f"{index:06d}"


@contextmanager
def scratch_file(scratch: Path, path: str) -> Iterator[Path]:
    """Yields the place in `scratch` to make `path` at, and makes its folder.

    Errors of the block name the file.
    """
    file = scratch / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with name_in_errors(file):
        yield file


def write_lines(scratch: Path, path: str, lines: Iterable[str]) -> Made:
    """Writes a text file in UTF-8; the lines have their line breaks."""
    with (
        scratch_file(scratch, path) as file,
        open(file, "w", encoding="utf-8", newline="\n") as text,
    ):
        text.writelines(lines)
    return {path: file}


def json_text(value: Any) -> str:
    """Writes JSON in ASCII on one line; keys keep their order.

    Raises:
        ValueError: the value contains NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, allow_nan=False)
