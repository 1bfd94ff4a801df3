"""Reads lines of text files that people write: UTF-8 with or without a BOM, any line ending."""

import contextlib
import functools
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from seediff_jax.errors import UserError, shown

LONGEST_LINE = 2**20
"""Characters of the longest line: a thousand times the longest prompt that a model reads."""


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading.

    Raises:
        UserError: it is a folder, a pipe or a device.
        OSError: the file cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path} is not a file, but a folder, pipe or device; a file is needed")
    with open(descriptor, "rb") as file:
        yield file


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields the lines of a file: (`file:number`, line without its ending).

    Raises:
        UserError: with the place, for a line that is not UTF-8 or longer than `LONGEST_LINE`; or
            the path is not that of a file.
        OSError: the file cannot be read.
    """
    with open_regular(path) as file:
        # A byte that is not UTF-8 becomes a lone surrogate here, and an error with its line below.
        text = io.TextIOWrapper(file, "utf-8", "surrogateescape")
        lines = iter(functools.partial(text.readline, LONGEST_LINE + 1), "")
        for number, line in enumerate(lines, 1):
            place = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise UserError(f"{place}: the line has more than {LONGEST_LINE} bytes")
            line = line.removeprefix("\ufeff") if number == 1 else line
            try:
                yield place, line.removesuffix("\n").encode(errors="surrogateescape").decode()
            except UnicodeDecodeError as error:
                reason = f"not UTF-8 ({error.reason} at byte {error.start})"
                raise UserError(f"{place}: {reason}; save it as UTF-8") from None


def read_entries(path: Path) -> Iterator[tuple[str, str]]:
    """Yields lines as `read_lines`, stripped; skips blank ones and those that begin with #.

    Raises:
        UserError, OSError: as `read_lines`.
    """
    for place, line in read_lines(path):
        if (entry := line.strip()) and not entry.startswith("#"):
            yield place, entry


def join_lines(names: Iterable[str]) -> str:
    """Returns a text with one name per line.

    Raises:
        UserError: a name is empty or contains a line break.
    """
    names = list(names)
    for name in names:
        if name.splitlines() != [name]:
            raise UserError(f"the name {shown(repr(name))} must be one line; rename it")
    return "".join(f"{name}\n" for name in names)
