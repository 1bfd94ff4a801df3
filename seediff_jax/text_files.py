"""Lines of text files that people write: UTF-8 with or without a mark, any line ending."""

import codecs
from collections.abc import Iterator
from pathlib import Path


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """All lines of a file with their places, (`file:number`, line without its ending).

    Raises:
        ValueError: with the place, for a line that is not UTF-8.
        OSError: the file cannot be read.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.splitlines(), 1):
        place = f"{path}:{number}"
        try:
            yield place, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 ({error}); save it as UTF-8") from error


def read_entries(path: Path) -> Iterator[tuple[str, str]]:
    """Lines without the blanks around them, less blank lines and those that begin with #.

    Raises:
        ValueError, OSError: as `read_lines`.
    """
    for place, line in read_lines(path):
        if (entry := line.strip()) and not entry.startswith("#"):
            yield place, entry
