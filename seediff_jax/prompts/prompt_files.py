"""Reads prompt files into prompt records, and checks them entry by entry. Host only.

    .txt, .jsonl, .csv -> Entry -> PromptRecord <- .json of Dataset Diffusion

A record pairs a prompt with the classes that get a mask; `generate` takes them as `prompts` and
`classes`.
"""

import csv
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.files.strict_json import parse_json, read_json_value, require_flat
from seediff_jax.files.text import read_entries, read_lines
from seediff_jax.prompts.class_lists import COCO_CLASSES, VOC_CLASSES
from seediff_jax.prompts.embedded_models import require_known_words
from seediff_jax.prompts.mentions import MentionFinder, mention_finder, split_names
from seediff_jax.prompts.names import name_key, require_classes, require_text
from seediff_jax.prompts.prompt_record import PromptRecord

COLUMNS = ("prompt", "classes", "unnamed_classes")
CAPTION_KEYS = ("filename", "caption", "class_prompt")
_COLUMN_SET = frozenset(COLUMNS)
LONGEST_CAPTIONS = 2**26
"""Bytes of a .json prompt file, which is read as a whole; .jsonl has no such limit."""

_NEEDED_OBJECT = 'expected {"prompt": "...", "classes": ["...", ...]}'
_NEEDED_HEADER = "the header needs prompt, and may have classes and unnamed_classes"
_NEEDED_CAPTION = 'expected {"filename": "...", "caption": "...", "class_prompt": "..."}'


class Entry(NamedTuple):
    """An entry of a prompt file.

    Attributes:
        place: `file:line`.
        prompt: the text.
        classes: classes that the prompt names; None if the file does not say.
        unnamed: classes that the prompt does not name.
    """

    place: str
    prompt: str
    classes: Sequence[str] | None = None
    unnamed: Sequence[str] = ()


def iterate_prompts(
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    model: str = "",
) -> Iterator[PromptRecord]:
    """Reads a prompt file (UTF-8), record by record; every prompt must name its classes.

    `.txt`: one prompt per line; blank lines, and lines that begin with #, are skipped. A prompt
    gets those of `classes` that it names, in the order of `classes`.
    `.jsonl`: one object per line, {"prompt": "a dog on a sofa", "classes": ["dog", "sofa"]}; blank
    lines are skipped. An object without "classes" is treated like a line of a text file. Classes
    that the prompt does not name may be listed under "unnamed_classes".
    `.csv`: the same in columns below a header, with semicolons between the names of a cell.
    `.json`: a prompt file of Dataset Diffusion (arXiv 2309.14303), a list of {"filename": "0.jpg",
    "caption": "a baby in a toy car; person car", "class_prompt": "person car"}. The caption is the
    prompt. The class prompt lists one name per object, separated by blanks: names of `classes` or,
    if that is empty, of the first of PASCAL VOC and COCO that has all names in the file. A class
    that the caption does not name is unnamed.

    Args:
        path: file name ending in .txt, .jsonl, .csv or .json.
        classes: names to look for; needed unless every entry has its own.
        synonyms: see `MentionFinder`.
        model: the model of the run; an embedded one knows few words.

    Raises:
        UserError: with file and line number, for text that is not UTF-8, a line that is not such
            an entry, or a prompt that does not name its classes or any class, or that has a word
            which the model does not know; or for an empty file.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_READERS, ".json"):
        raise UserError(f"{path}: a prompt file must end in .txt, .jsonl, .csv or .json")
    if classes is not None:
        classes = require_classes(classes, "iterate_prompts")
    if suffix == ".json":
        records = _read_captions(path, classes, mention_finder(synonyms), model)
    else:
        records = _make_records(_READERS[suffix](path), classes, synonyms, model)
    is_empty = True
    for record in records:
        is_empty = False
        yield record
    if is_empty:
        raise UserError(f"{path}: no prompt in the file, at least one is needed")


def records_of_texts(
    texts: Sequence[str],
    classes: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
    model: str = "",
) -> list[PromptRecord]:
    """Makes the records of prompts of a command line, like those of a .txt file.

    Raises:
        UserError: a prompt is blank, names none of the classes, or has a word that the model does
            not know.
    """
    entries = (Entry("--prompt", text) for text in texts)
    return list(_make_records(entries, classes, synonyms, model))


def _make_records(
    entries: Iterable[Entry],
    classes: Sequence[str] | None,
    synonyms: Mapping[str, Sequence[str]] | None,
    model: str,
) -> Iterator[PromptRecord]:
    finder = mention_finder(synonyms)
    positions = {name: k for k, name in enumerate(classes or ())}
    wanted = frozenset(positions)
    finder.learn(positions)
    for entry in entries:
        try:
            require_known_words(model, entry.prompt)
            record = _make_record(entry, wanted, positions, finder)
        except UserError as error:
            raise UserError(f"{entry.place}: {error}") from error
        yield record


def _make_record(
    entry: Entry, wanted: frozenset[str], positions: Mapping[str, int], finder: MentionFinder
) -> PromptRecord:
    """Makes a record; a prompt without classes gets those of `wanted` that it names, in order."""
    prompt, named, unnamed = entry.prompt, entry.classes, tuple(entry.unnamed)
    if named is None:
        if not wanted and not unnamed:
            raise UserError(
                f"prompt {quoted(prompt)} has no classes; pass the classes to look for, or use a "
                '.jsonl or .csv file with "classes" in every line'
            )
        named = sorted(finder.find_named(prompt, wanted), key=positions.__getitem__)
        if not named and not unnamed:
            raise UserError(
                f"prompt {quoted(prompt)} names none of the {len(positions)} classes: "
                f"{listed(positions)}"
            )
        if not unnamed:
            return PromptRecord(prompt, tuple(named))
    record = PromptRecord(prompt, (*named, *unnamed), unnamed)
    if finder.find_named(prompt, record.classes) != {*named}:
        if record.named:
            finder.require(prompt, record.named)
        finder.require_unnamed(prompt, record.named, record.unnamed)
    return record


def read_text(path: Path) -> Iterator[Entry]:
    """Yields one prompt per line; skips blank lines, and lines that begin with #."""
    for place, line in read_entries(path):
        yield Entry(place, line)


def read_jsonl(path: Path) -> Iterator[Entry]:
    """Yields one entry per line, {"prompt": "...", "classes": [...]}; skips blank lines."""
    for place, line in read_lines(path):
        if line := line.strip():
            try:
                yield _parse_object(place, line)
            except UserError as error:
                raise UserError(f"{place}: {error}; {_NEEDED_OBJECT}") from error


def _parse_object(place: str, line: str) -> Entry:
    try:
        entry = parse_json(line, flat=False)
    except UserError as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise UserError(f"{quoted(line)} is not an object with a text as its prompt")
    if not entry.keys() <= _COLUMN_SET:
        raise UserError(f"unknown key {quoted(min(entry.keys() - _COLUMN_SET))}")
    unnamed = _names_in(entry, "unnamed_classes")
    return Entry(place, entry["prompt"], _names_in(entry, "classes"), unnamed or ())


def _names_in(entry: Mapping[str, Any], key: str) -> list[str] | None:
    """A list of an entry; null is treated like an absent key."""
    names = entry.get(key)
    if names is not None and not (isinstance(names, list) and {*map(type, names)} <= {str}):
        require_flat(names)
        raise UserError(f"{key} must be a list of names, got {quoted(names)}")
    return names


def read_csv(path: Path) -> Iterator[Entry]:
    """Yields the rows below a header of `COLUMNS`; semicolons separate names of classes.

    A row without classes is like a line of a text file. Empty rows are skipped.
    """
    rows = _rows(path)
    place, header = next(rows, ("", None))
    if header is None:
        return
    header = [name.strip().lower() for name in header]
    if "prompt" not in header or set(header) - set(COLUMNS) or len(set(header)) < len(header):
        raise UserError(f"{place}: the columns are {listed(header)}; {_NEEDED_HEADER}")
    for place, cells in rows:
        if len(cells) != len(header):
            raise UserError(
                f"{place}: {len(cells)} cells for {len(header)} columns; a prompt with a comma "
                "needs double quotes around it"
            )
        row = dict(zip(header, cells, strict=True))
        classes, unnamed = (_split(row.get(name, "")) for name in COLUMNS[1:])
        yield Entry(place, row["prompt"].strip(), classes or None, unnamed)


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields rows with the place of their first line; a quoted cell may span several lines."""
    rows = csv.reader((f"{line}\n" for _, line in read_lines(path)), strict=True)
    first = 1
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            reason = f"not CSV ({error}); quotes inside a quoted cell are doubled"
            if "field limit" in str(error):
                reason = f"a cell has more than {csv.field_size_limit()} characters; shorten it"
            raise UserError(f"{path}:{first}: {reason}") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield f"{path}:{first}", cells
        first = rows.line_num + 1


def _split(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split(";")) if cell.strip() else ()


_READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
}


def _read_captions(
    path: Path, classes: Sequence[str] | None, finder: MentionFinder, model: str
) -> Iterator[PromptRecord]:
    """Reads a prompt file of Dataset Diffusion; errors give the number of the entry, from 1."""
    entries = _read_list(path)
    for number, entry in enumerate(entries, 1):
        _require_caption(f"{path}: entry {number}", entry)
    lists = [classes] if classes is not None else [VOC_CLASSES, COCO_CLASSES]
    names = _first_list_with_all(path, entries, lists)
    for number, entry in enumerate(entries, 1):
        try:
            require_known_words(model, entry["caption"])
            yield _caption_record(entry, names, finder)
        except UserError as error:
            raise UserError(f"{path}: entry {number}: {error}") from error


def _read_list(path: Path) -> list[Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a prompt file is needed")
    entries = read_json_value(path, longest=LONGEST_CAPTIONS)
    if not isinstance(entries, list):
        found = f"an object with {_keys(entries)}" if isinstance(entries, dict) else quoted(entries)
        raise UserError(
            f"{path}: a .json prompt file must be a list as of Dataset Diffusion, "
            f"{_NEEDED_CAPTION}; found {found}"
        )
    return entries


def _require_caption(place: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{place}: found {quoted(entry, 80)}; {_NEEDED_CAPTION}")
    if set(entry) != set(CAPTION_KEYS):
        hint = "; one object per line with prompt and classes goes into a .jsonl file"
        raise UserError(
            f"{place}: found {_keys(entry)}; {_NEEDED_CAPTION}{hint if 'prompt' in entry else ''}"
        )
    for key in CAPTION_KEYS:
        if not isinstance(entry[key], str):
            raise UserError(f"{place}: {key} must be a text, found {quoted(entry[key], 80)}")
    if not entry["class_prompt"].strip():
        raise UserError(f"{place}: the class_prompt is empty, there is no mask; leave it out")


def _keys(entry: Mapping[str, Any]) -> str:
    return f"keys {listed(quoted(key, 80) for key in entry)}" if entry else "no key"


def _first_list_with_all(
    path: Path, entries: Sequence[Mapping[str, str]], lists: Sequence[Collection[str]]
) -> Mapping[str, str]:
    """Returns key -> name of the first list that has all names of the class prompts."""
    errors = []
    for names in lists:
        by_key = {name_key(name): name for name in names}
        num_split = 0
        try:
            for entry in entries:
                split_names(require_text(entry["class_prompt"], "class_prompt"), by_key)
                num_split += 1
            return by_key
        except UserError as error:
            errors.append((num_split + 1, str(error)))
    number, error = max(errors)
    raise UserError(f"{path}: entry {number}: class_prompt {error}; name the classes of the run")


def _caption_record(
    entry: Mapping[str, str], by_key: Mapping[str, str], finder: MentionFinder
) -> PromptRecord:
    names, caption = split_names(entry["class_prompt"], by_key), entry["caption"]
    mentioned = finder.find_named(caption, names)
    unnamed = tuple(name for name in names if name not in mentioned)
    named = tuple(name for name in names if name in mentioned)
    return PromptRecord(caption, (*named, *unnamed), unnamed)
