"""Class names: how a text is split into words, and when two names are the same.

Names are compared by the letters, digits and symbols of their words, joined and case-folded:
"pottedplant", "potted plant" and "Potted-Plants" name one class. Any script and Unicode form works.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from seediff_jax.errors import UserError, quoted

LONGEST_NAME = 200
"""Characters of a class name or of a synonym."""

_APOSTROPHES = "'\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02bd\u2032\uff07`\u00b4"
_AMPERSANDS = "&\uff06\ufe60"
_JOINERS = "/\\\u200b\u2043\u2212"  # in addition to blanks, dashes and underscores
_SYMBOLS = "#%*@"  # which Unicode calls punctuation
# Scripts that put no blanks between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED = ((0xE00, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF))
_UNSPACED += ((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF))
_UNSPACED += ((0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF))

_WORD, _UNSPACED_WORD, _SYMBOL, _MARK, _IGNORED, _BLANK, _APOSTROPHE, _POINT = "wusmi '."


class _Kinds(dict[int, str]):
    """Code point -> kind of character, one character each; for `str.translate`."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = _kind(chr(code))
        return kind


def _kind(char: str) -> str:
    category = unicodedata.category(char)
    if char in _APOSTROPHES:
        return _APOSTROPHE
    if char in _JOINERS or char.isspace() or category in ("Pd", "Pc"):
        return _BLANK
    if category == "Cf" or "\ufe00" <= char <= "\ufe0f":  # joiners, direction, looks of an emoji
        return _IGNORED
    if category[0] == "M" or "\U0001f3fb" <= char <= "\U0001f3ff":  # accents, vowels, skin tones
        return _MARK
    if char.isalnum():
        code = ord(char)
        unspaced = category[0] == "L" and any(a <= code <= b for a, b in _UNSPACED)
        return _UNSPACED_WORD if unspaced else _WORD
    symbol = category in ("Sm", "Sc", "So") or char in _SYMBOLS + _AMPERSANDS
    return _SYMBOL if symbol else _POINT


_KINDS = _Kinds()
_WORDS = re.compile("[wm][wmi]*|[us][mi]*")
_ASCII_WORDS = re.compile("[A-Za-z0-9]+|[#$%&*+<=>@|~]")
_ASCII_SYMBOL = re.compile("[#$%&*+<=>@|~]")
_ASCII_BLANKS = "".join(chr(code) if chr(code).isalnum() else " " for code in range(128))


class Words:
    """The words of a text in Unicode's form NFC.

    A symbol is a word, and so is each letter of a script without blanks between words.

    Attributes:
        text: the text.
        keys: each word as it is compared.
    """

    def __init__(self, text: str):
        self.text = text
        if text.isascii() and not _ASCII_SYMBOL.search(text):  # as most prompts: fast
            self.keys = text.lower().translate(_ASCII_BLANKS).split()
        else:
            self.keys = [_word_key(text[start:end]) for start, end in self.spans]

    @functools.cached_property
    def spans(self) -> list[tuple[int, int]]:
        """The first character of each word, and the one after its last."""
        is_ascii = self.text.isascii()
        pattern = _ASCII_WORDS if is_ascii else _WORDS
        kinds = self.text if is_ascii else self.text.translate(_KINDS)
        return [word.span() for word in pattern.finditer(kinds)]

    def gap(self, number: int) -> str:
        """The text between a word and the one before it, or the start of the text."""
        return self.text[self.spans[number - 1][1] if number else 0 : self.spans[number][0]]


@functools.lru_cache(maxsize=2**14)
def _word_key(word: str) -> str:
    if word in _AMPERSANDS:
        return "and"
    kept = "".join(char for char in word if _KINDS[ord(char)] != _IGNORED)
    return unicodedata.normalize("NFC", kept.casefold())


def join_keys(first: str, second: str) -> str:
    """Joins the keys of two successive words; digits stay apart, so that 1.5 is not 15."""
    if second[0].isdigit() and first[-1:].isdigit():
        return f"{first} {second}"
    return first + second


@functools.lru_cache(maxsize=2**12)
def punctuation(gap: str) -> str:
    """The punctuation between two words, apart from blanks, hyphens, underscores and slashes."""
    kept = (char for char in gap if _KINDS[ord(char)] in (_APOSTROPHE, _POINT))
    return "".join("'" if char in _APOSTROPHES else char for char in kept)


class Form(NamedTuple):
    """A way to write a name.

    Attributes:
        key: its letters, digits and symbols.
        punctuation: (offset in the key, text) of the punctuation that may be between its words.
    """

    key: str
    punctuation: frozenset[tuple[int, str]]


ARTICLE = "a "
"""Counts as punctuation of a name that begins with the word "a": "A-frame" is not "aframe"."""


@functools.lru_cache(maxsize=2**14)
def written_form(name: str) -> Form:
    """The form of a name as written."""
    words = Words(unicodedata.normalize("NFC", name))
    key, found = "", set()
    for number, word in enumerate(words.keys):
        found |= {(len(key), text) for text in between(key, words.gap(number))} if key else set()
        key = join_keys(key, word)
    return Form(key, frozenset(found))


def between(key: str, gap: str) -> list[str]:
    """The punctuation that a name needs after its first words to match a run of words."""
    marks = [punctuation(gap)] if gap != " " else []
    return [*filter(None, marks), *([ARTICLE] if key == "a" else [])]


def name_key(name: str) -> str:
    """The key by which names are compared; empty for a name without letter, digit or symbol."""
    return written_form(name).key


_PLURALS = {"person": "people", "man": "men", "child": "children", "mouse": "mice", "ox": "oxen"}
_PLURALS |= {"goose": "geese", "foot": "feet", "tooth": "teeth"}
_PLURALS |= {"f": "ves", "fe": "ves", "y": "ies"}
_PLURALS |= {end: end + "es" for end in ("s", "x", "z", "ch", "sh", "o")}


@functools.lru_cache(maxsize=2**14)
def forms_of(name: str) -> frozenset[Form]:
    """Singular and plurals of a name; some of the plurals are not words, which is harmless."""
    key, points = written_form(name)
    plurals = {key.removesuffix(end) + p for end, p in _PLURALS.items() if key.endswith(end)}
    return frozenset(Form(text, points) for text in {key, key + "s"} | plurals)


def require_text(text: str, what: str) -> str:
    """Returns a text; a UserError if it cannot be written as UTF-8."""
    if not text.isascii() and (half := re.search("[\ud800-\udfff]", text)):
        raise UserError(
            f"{what} {quoted(text)} is not UTF-8: {half[0]!r} is half a character; type it again"
        )
    return text


def require_word(word: str, what: str) -> str:
    """Returns the key of a word; a UserError, beginning with `what`, if it cannot name a class."""
    require_text(word, what)
    if len(word) > LONGEST_NAME:
        reason = f"has {len(word)} characters; at most {LONGEST_NAME} are allowed"
        raise UserError(f"{what} {quoted(word)} {reason}")
    if not (key := name_key(word)):
        raise UserError(f"{what} {quoted(word)} has no letter, digit or symbol")
    return key


@functools.lru_cache(maxsize=2**14)
def clean_name(name: str) -> str:
    """A name as in lists of classes, in NFC with single blanks; a UserError if it cannot be one."""
    require_text(name, "class")
    name = unicodedata.normalize("NFC", name.replace("\t", " ").strip(" "))
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in name):
        reason = "has a line break or a control character; write it in one line"
        raise UserError(f"class {quoted(name)} {reason}")
    name = " ".join(name.split())
    require_word(name, "class")
    return name


def require_classes(classes: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns names as `clean_name` writes them.

    Raises:
        UserError: beginning with `where`, for no names, a name that cannot be in a list, or two
            names that are the same.
    """
    is_list = isinstance(classes, Iterable) and not isinstance(classes, str | bytes)
    classes = tuple(classes) if is_list else classes
    if not is_list or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: classes must be a list of names, got {quoted(classes)}")
    try:
        return clean_names(classes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@functools.lru_cache(maxsize=2**12)
def clean_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Does what `require_classes` does, for a tuple; keeps the results of recent calls."""
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise TypeError("classes must be a tuple of names")
    if not classes:
        raise UserError("the list of classes is empty; give at least one name")
    seen: dict[str, str] = {}
    for name in map(clean_name, classes):
        if (key := name_key(name)) in seen:
            raise UserError(f"classes {quoted(seen[key])} and {quoted(name)} are the same name")
        seen[key] = name
    return tuple(seen.values())


def find_entry(name: str, table: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """Looks up a class, in any spelling, in a table by class; None if it has no entry."""
    if name not in table:
        spellings = {name_key(other): other for other in table}
        name = spellings.get(name_key(name), name)
    return tuple(table[name]) if name in table else None
