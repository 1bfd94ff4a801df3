"""The entries of prompt files, format by format, before any class is looked for. Host only."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seediff_jax.json_files import parse_json
from seediff_jax.text_files import read_entries, read_lines

NEEDED_OBJECT = 'needed {"prompt": "...", "classes": ["...", ...]}'
NEEDED_HEADER = "needed is a header with prompt, and, if wanted, classes and unnamed_classes"
_COLUMNS = ("prompt", "classes", "unnamed_classes")


class Entry(NamedTuple):
    """A prompt as a file has it.

    Attributes:
        place: `file:line`.
        prompt: the text.
        classes: that the prompt names; None where the file does not say.
        unnamed: classes that the prompt does not name.
    """

    place: str
    prompt: str
    classes: Sequence[str] | None = None
    unnamed: Sequence[str] = ()


def read_text(path: Path) -> Iterator[Entry]:
    """A prompt a line; blank lines, and lines that begin with #, are skipped.

    Raises:
        ValueError, OSError: as `read_lines`.
    """
    for place, line in read_entries(path):
        yield Entry(place, line)


def read_jsonl(path: Path) -> Iterator[Entry]:
    """An object a line, {"prompt": "...", "classes": [...]}; blank lines are skipped.

    Raises:
        ValueError: as `read_lines`, or a line is no such object.
        OSError: the file cannot be read.
    """
    for place, line in read_lines(path):
        if line := line.strip():
            yield _parse_object(place, line)


def _parse_object(place: str, line: str) -> Entry:
    try:
        entry = parse_json(line.encode())
    except json.JSONDecodeError as error:
        reason = f"not JSON ({error.msg}, column {error.colno})"
        raise ValueError(f"{place}: {reason}; {NEEDED_OBJECT}") from error
    except ValueError as error:
        raise ValueError(f"{place}: not JSON ({error}); {NEEDED_OBJECT}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        reason = f"{line} is not an object with a text as its prompt"
        raise ValueError(f"{place}: {reason}; {NEEDED_OBJECT}")
    if unknown := entry.keys() - set(_COLUMNS):
        raise ValueError(f"{place}: unknown key {min(unknown)!r}; {NEEDED_OBJECT}")
    for key in _COLUMNS[1:]:
        if not isinstance(names := entry.get(key, []), list):
            reason = f"{key} must be a list of names, got {names!r}"
            raise ValueError(f"{place}: {reason}; {NEEDED_OBJECT}")
    return Entry(place, entry["prompt"], entry.get("classes"), entry.get("unnamed_classes", []))


def read_csv(path: Path) -> Iterator[Entry]:
    """Rows below a header, with commas between; names of classes have semicolons between.

    A row with no classes is like a line of a text file. Empty rows are skipped.

    Raises:
        ValueError: as `read_lines`, or the header lacks `prompt` or has a column beside `classes`
            and `unnamed_classes`, or a row has another number of cells, or quotes are torn.
        OSError: the file cannot be read.
    """
    rows = _rows(path)
    place, header = next(rows, ("", None))
    if header is None:
        return
    header = [name.strip().lower() for name in header]
    if "prompt" not in header or set(header) - set(_COLUMNS) or len(set(header)) < len(header):
        raise ValueError(f"{place}: the columns are {', '.join(header)}; {NEEDED_HEADER}")
    for place, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                f"{place}: {len(cells)} cells for {len(header)} columns; a prompt with a comma "
                "needs double quotes around it"
            )
        row = dict(zip(header, cells, strict=True))
        classes, unnamed = (_split(row.get(name, "")) for name in _COLUMNS[1:])
        yield Entry(place, row["prompt"].strip(), classes or None, unnamed)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Rows with the place of their first line; a quoted cell may go over several lines."""
    rows = csv.reader((f"{line}\n" for _, line in read_lines(path)), strict=True)
    first = 1
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            reason = f"not CSV ({error}); quotes inside a quoted cell are doubled"
            raise ValueError(f"{path}:{first}: {reason}") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield f"{path}:{first}", cells
        first = rows.line_num + 1


def _split(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split(";")) if cell.strip() else ()
