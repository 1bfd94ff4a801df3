"""Files that list classes with words: names with synonyms, or sub-classes.

    # a class a line, words after a colon
    sofa: couch, settee
    lamp

A `.json` file has the same as an object, {"sofa": ["couch", "settee"]}. Host only.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from seediff_jax.class_names import name_key
from seediff_jax.json_files import read_json
from seediff_jax.text_files import read_entries

WordLists = dict[str, tuple[str, ...] | None]
"""Class -> words; None for a line without a colon, which says nothing of words."""

ENDINGS = (".txt", ".json")


def is_class_file(text: str) -> bool:
    """Whether a text means a file of classes, and not a class."""
    return Path(text).suffix.lower() in ENDINGS


def read_classes(path: str | os.PathLike[str]) -> WordLists:
    """Reads class names with their synonyms; a colon or a list without words is no synonym at all.

    Raises:
        ValueError: with file and line number, for a line that is no such entry, text that is not
            UTF-8, or a name that stands there twice; or for a file without a class.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    found: WordLists = {}
    places: dict[str, str] = {}
    for place, name, words in _entries(path):
        if not (key := name_key(name)):
            raise ValueError(f"{place}: class {name!r} has no letter or digit")
        if key in places:
            raise ValueError(f"{place}: class {name!r} is there already, see {places[key]}")
        _require_words(place, name, words or ())
        places[key] = place
        found[name] = words
    if not found:
        raise ValueError(f"{path}: no class in the file, at least one is needed")
    return found


def read_subclasses(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads lists of sub-classes.

    Raises:
        ValueError, FileNotFoundError: as `read_classes`, and for a class without sub-classes.
    """
    lists = {}
    for name, words in read_classes(path).items():
        if not words:
            raise ValueError(
                f"{path}: class {name!r} has no sub-class; needed: {name}: one kind, another kind"
            )
        lists[name] = words
    return lists


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """(place, class, words) of each entry."""
    if not is_class_file(str(path)):
        raise ValueError(f"{path}: a file of classes must end in {' or '.join(ENDINGS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a file of classes is needed")
    if path.suffix.lower() == ".json":
        for name, words in read_json(path).items():
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError(f"{path}: {name!r} must have a list of words, got {words!r}")
            yield str(path), name, tuple(words)
        return
    for place, entry in read_entries(path):
        name, colon, rest = entry.partition(":")
        words = tuple(word.strip() for word in rest.split(",")) if rest.strip() else ()
        yield place, name.strip(), words if colon else None


def _require_words(place: str, name: str, words: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word in words:
        if not (key := name_key(word)):
            raise ValueError(f"{place}: {word!r} of class {name!r} has no letter or digit")
        if key in seen:
            raise ValueError(f"{place}: {seen[key]!r} and {word!r} of {name!r} are the same word")
        seen[key] = word
