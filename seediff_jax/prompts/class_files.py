"""Reads files with lists of words per name: synonyms or sub-classes of classes, classes of images.

    # one class per line, words after a colon
    sofa: couch, settee
    lamp

A `.json` file has the same as an object, {"sofa": ["couch", "settee"]}. Host only.
"""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from seediff_jax.errors import UserError, quoted
from seediff_jax.files.strict_json import read_json
from seediff_jax.files.text import read_entries
from seediff_jax.prompts.names import clean_name, name_key, require_classes, require_word

WordLists = dict[str, tuple[str, ...] | None]
"""Class -> words; None for a line without a colon, which says nothing about words."""

ENDINGS = (".txt", ".json")


def is_class_file(text: str) -> bool:
    """Whether a text is the name of a file of classes, not the name of a class."""
    return Path(text).suffix.lower() in ENDINGS


def read_classes(path: str | os.PathLike[str]) -> WordLists:
    """Reads class names with their synonyms; a colon or a list without words means no synonyms.

    Raises:
        UserError: with file and line number, for a line that is not such an entry, text that is
            not UTF-8, or a repeated name; or for a file without a class.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    found: WordLists = {}
    places: dict[str, str] = {}
    for place, name, words in _entries(path):
        try:
            name = clean_name(name)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if (key := name_key(name)) in places:
            raise UserError(f"{place}: class {quoted(name)} is already at {places[key]}")
        _require_words(place, name, words or ())
        places[key] = place
        found[name] = words
    if not found:
        raise UserError(f"{path}: no class in the file, at least one is needed")
    return found


def read_subclasses(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads lists of sub-classes as `read_classes` does; each class must have some."""
    lists = {}
    for name, words in read_classes(path).items():
        if not words:
            raise UserError(
                f"{path}: class {quoted(name)} has no sub-class; write {name}: one kind, another"
            )
        lists[name] = words
    return lists


def read_image_classes(path: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
    """Reads the classes of images, lines like `2007_000033: aeroplane, person`.

    Returns:
        Classes by the name of the image in Unicode's form NFC.

    Raises:
        UserError: with file and line number, for an image without classes or given twice, or for
            names that cannot be classes.
        FileNotFoundError: there is no such file.
    """
    found: dict[str, tuple[str, ...]] = {}
    for place, image, words in _entries(Path(path)):
        image = unicodedata.normalize("NFC", image)
        if image in found:
            raise UserError(f"{place}: image {quoted(image)} has an entry already")
        found[image] = require_classes(words or (), f"{place}: image {quoted(image)}")
    return found


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[str, ...] | None]]:
    """Yields place, class and words of each entry."""
    if not is_class_file(str(path)):
        raise UserError(f"{path}: a file of classes must end in {' or '.join(ENDINGS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; a file of classes is needed")
    if path.suffix.lower() == ".json":
        for name, words in read_json(path).items():
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UserError(
                    f"{path}: {quoted(name)} must have a list of words, got {quoted(words)}"
                )
            yield str(path), name, tuple(words)
        return
    for place, entry in read_entries(path):
        name, colon, rest = entry.partition(":")
        words = tuple(word.strip() for word in rest.split(",")) if rest.strip() else ()
        yield place, name.strip(), words if colon else None


def _require_words(place: str, name: str, words: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for word in words:
        key = require_word(word, f"{place}: class {quoted(name)}: word")
        if key in seen:
            both = f"{quoted(seen[key])} and {quoted(word)}"
            raise UserError(f"{place}: class {quoted(name)}: {both} are the same word")
        seen[key] = word
