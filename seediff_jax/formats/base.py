"""What an output format is: which parts it needs, and the files that it makes of them.

A run writes its samples in shards. A format can make files at three moments:

    sample_files    a file of its own a sample, as soon as the sample is there
    write_shard     files of a whole shard, once all its samples are there
    closing_files   files of the whole run, once all shards are there

All content follows from the arguments alone, so that a run that was stopped and goes on ends with
the same bytes. Samples that failed are in none of the arguments.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from seediff_jax.encoding import EncodedSample

SOFT = ("npz", "png")
"""How soft masks can be stored."""

Records = Callable[[], Iterator[dict[str, Any]]]
"""Goes through the manifest's rows of all samples, by index; each call starts anew."""

Read = Callable[[int, str], bytes]
"""Content of a shard's file by the number of the shard and its relative path."""


class Format:
    """A format that makes no file; the formats override what they do.

    Attributes:
        name: as users call it. All paths of a format begin with it, but those of "files".
        libraries: import names, which are pip's too, of what the format needs beyond the package.
        parts: names of `encoding.PARTS` that it is made of.
        shard_parts: those of `parts` that `write_shard` needs.
        class_names: class k of the run; its id is k + 1.

    Args:
        class_names: of the run.
        soft: "npz", "png", or None for no soft masks.
        seeds: whether seed maps are stored.

    Raises:
        ValueError: there is no such way to store soft masks.
    """

    name: ClassVar[str]
    libraries: ClassVar[tuple[str, ...]] = ()
    parts: tuple[str, ...] = ()
    shard_parts: tuple[str, ...] = ()

    def __init__(self, class_names: Sequence[str], soft: str | None = None, seeds: bool = False):
        if soft is not None and soft not in SOFT:
            raise ValueError(f"soft masks are stored as {' or '.join(SOFT)}, not as {soft!r}")
        self.class_names = tuple(class_names)
        self._map_parts = ((f"soft.{soft}",) if soft else ()) + (("seeds.npz",) if seeds else ())

    def require_available(self) -> None:
        """Checks that the libraries of the format are installed.

        Raises:
            ValueError: one is missing; the message has the command that installs it.
        """
        if missing := [name for name in self.libraries if importlib.util.find_spec(name) is None]:
            raise ValueError(
                f"the format {self.name} needs {' and '.join(missing)}; "
                f"run: pip install {' '.join(missing)}"
            )

    def sample_files(self, index: int) -> dict[str, str]:
        """Relative path -> part, of the files that a sample has of its own."""
        del index
        return {}

    def write_shard(
        self, number: int, samples: Iterator[EncodedSample], scratch: Path
    ) -> dict[str, Path]:
        """Makes the files of a shard.

        Args:
            number: of the shard.
            samples: of the shard, by index; each has at least `shard_parts`. Read once, and no
                more than one is held.
            scratch: folder for the files.

        Returns:
            Relative path -> the finished file in `scratch`.

        Raises:
            OSError: a file cannot be written.
        """
        del number, samples, scratch
        return {}

    def closing_files(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Makes the files of the run, holding no more than one shard's files in memory.

        Args:
            records: the manifest's rows of the run.
            read: reads what `write_shard` made, by the number of the shard and the name.
            shards: numbers of all shards, ascending.
            scratch: folder for the files.

        Returns:
            Relative path -> the finished file in `scratch`.

        Raises:
            OSError: a file cannot be read or written.
        """
        del records, read, shards, scratch
        return {}


def stem(index: int) -> str:
    """File name of a sample without its ending."""
    return f"{index:06d}"


def scratch_file(scratch: Path, path: str) -> Path:
    """Where `path` is made within `scratch`; its folder is there then."""
    file = scratch / path
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def json_text(value: Any) -> str:
    """JSON in ASCII on one line; keys keep their order.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, allow_nan=False)
