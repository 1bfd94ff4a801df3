"""Finds where a prompt names its classes.

Host only, and before any tokenizer: a mention is found in words, and `tokenizer` turns the
mentioned characters into token positions. `names` says when two names are the same.
"""

import difflib
import functools
import itertools
import threading
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.prompts.class_lists import LOOK_ALIKES, SYNONYMS
from seediff_jax.prompts.names import (
    LONGEST_NAME,
    Words,
    between,
    forms_of,
    join_keys,
    name_key,
    require_classes,
    require_word,
)

Mentions = dict[str, list[tuple[int, int]]]
"""Class -> (start, end) of each mention, in characters of the prompt in Unicode's form NFC."""

_OWN_NAME, _SYNONYM, _LOOK_ALIKE = range(3)
_HINTED_WORDS = 1000


class _Claim(NamedTuple):
    """A form of a word that names a class; a look-alike names none."""

    name: str
    rank: int
    punctuation: frozenset[tuple[int, str]]


class _Hit(NamedTuple):
    """A name in a text: its first and last word, and the classes that claim it."""

    first: int
    last: int
    claimants: tuple[str, ...]


class MentionFinder:
    """Finds classes in prompts; threads may share it.

    Args:
        synonyms: class -> words that name it; replaces the entries of `SYNONYMS` for its classes.
    """

    def __init__(self, synonyms: Mapping[str, Sequence[str]] | None = None):
        self._words_of = {name_key(name): tuple(words) for name, words in SYNONYMS.items()}
        for name, words in (synonyms or {}).items():
            self._words_of[name_key(name)] = tuple(words)
        self._claims: dict[str, list[_Claim]] = {}
        self._beginnings: set[str] = set()
        self._known: set[str] = set()
        self._lock = threading.Lock()
        for name in LOOK_ALIKES:
            self._claim(name, "", _LOOK_ALIKE)

    def find(self, prompt: str, classes: Sequence[str]) -> Mentions:
        """Finds where a prompt names each class; a class without a mention gets an empty list.

        Whole words only, in any capitals, singular or plural, spelled in one word or several
        (joined by blanks, hyphens, underscores, slashes), with or without the punctuation of the
        class: "St. Bernard" is also "st bernard". In scripts without blanks between words any
        characters count. Of overlapping names only the longest counts: "teddy bear" is not a bear
        if class "teddy bear" is asked for too, or if it is one of `LOOK_ALIKES`. A class's own name
        takes precedence over another's synonym: class "man" takes "man" from class "person".

        Raises:
            UserError: classes that `require_classes` refuses, or a word that two classes both
                claim.
        """
        text = unicodedata.normalize("NFC", prompt)
        require_classes(classes, f"prompt {quoted(prompt)}")
        mentions: Mentions = {name: [] for name in classes}
        words = Words(text)
        for first, last, claimants in self._scan(words, classes):
            for name in claimants:
                mentions[name].append((words.spans[first][0], words.spans[last][1]))
        return mentions

    def find_named(self, prompt: str, classes: Collection[str]) -> set[str]:
        """Returns the classes that a prompt names, of classes that `require_classes` has checked.

        For a frozenset of classes that `learn` has seen, the time does not depend on their number.
        """
        hits = self._scan(Words(unicodedata.normalize("NFC", prompt)), classes)
        return {name for hit in hits for name in hit.claimants}

    def require(self, prompt: str, classes: Sequence[str]) -> Mentions:
        """Finds classes as `find` does; a UserError for the first that the prompt does not name."""
        mentions = self.find(prompt, classes)
        for name, spans in mentions.items():
            if not spans:
                raise UserError(
                    f"the prompt {quoted(prompt)} does not name class {quoted(name)}"
                    f"{self._hint(prompt, name, classes)}; write {quoted(name)} in the prompt, or "
                    f"pass synonyms={{{quoted(name)}: [...]}} with the words that name it"
                )
        return mentions

    def require_unnamed(self, prompt: str, classes: Sequence[str], unnamed: Sequence[str]) -> None:
        """Raises a UserError if a prompt names one of its unnamed classes."""
        mentions = self.find(prompt, [*classes, *unnamed])
        for name in unnamed:
            if mentions[name]:
                raise UserError(
                    f"the prompt {quoted(prompt)} names {quoted(name)}, which is listed as an "
                    "unnamed class; list it with the classes of the prompt"
                )

    def learn(self, classes: Collection[str]) -> None:
        """Adds classes; `find_named` is then fast for any frozenset of them."""
        if self._known.issuperset(classes):
            return
        with self._lock:
            for name in classes:
                if name not in self._known:
                    self._claim(name, name, _OWN_NAME)
                    for word in self._words_of.get(name_key(name), ()):
                        self._claim(word, name, _SYNONYM)
                    self._known.add(name)

    def _claim(self, word: str, name: str, rank: int) -> None:
        for key, points in forms_of(word):
            self._claims.setdefault(key, []).append(_Claim(name, rank, points))
            self._beginnings.update(key[:end] for end in range(1, len(key) + 1))

    def _scan(self, words: Words, classes: Collection[str]) -> list[_Hit]:
        """Finds names in a text from left to right, the longest at each place."""
        wanted = classes
        if not isinstance(classes, frozenset):  # going through one would take too long
            self.learn(classes)
            wanted = frozenset(classes)
        keys, beginnings, hits, after = words.keys, self._beginnings, [], 0
        for i in [i for i, key in enumerate(keys) if key in beginnings]:
            if i < after:
                continue
            if keys[i] not in self._claims:  # most words only begin like a name
                if i + 1 == len(keys) or join_keys(keys[i], keys[i + 1]) not in beginnings:
                    continue
            hit = self._longest_name(words, i, wanted)
            if hit is not None:
                if len(hit.claimants) > 1:
                    raise self._conflict(words, hit, classes)
                hits.append(hit)
                after = hit.last + 1
        return hits

    def _longest_name(self, words: Words, first: int, classes: frozenset[str]) -> _Hit | None:
        keys, claims = words.keys, self._claims
        key, points, hit, last = keys[first], [], None, first
        while True:
            best, names = _LOOK_ALIKE + 1, []
            for name, rank, punctuation in claims.get(key, ()):
                if rank <= best and (name in classes or rank == _LOOK_ALIKE):
                    if punctuation.issuperset(points) and not (rank == best and name in names):
                        names = [*names, name] if rank == best else [name]
                        best = rank
            if names:
                hit = _Hit(first, last, tuple(names) if best < _LOOK_ALIKE else ())
            last += 1
            if last == len(keys):
                return hit
            longer = join_keys(key, keys[last])
            if longer not in self._beginnings:
                return hit
            points += [(len(key), point) for point in between(key, words.gap(last))]
            key = longer

    def _conflict(self, words: Words, hit: _Hit, classes: Collection[str]) -> UserError:
        first, second = [name for name in classes if name in hit.claimants][:2]
        return UserError(
            f"classes {quoted(first)} and {quoted(second)} both claim "
            f"{quoted(_text_of(words, hit))} in the prompt {quoted(words.text)}; leave one out, or "
            "give synonyms that say whose word it is"
        )

    def _hint(self, prompt: str, name: str, classes: Sequence[str]) -> str:
        """Describes what may have been meant, as the middle of an error message."""
        words = Words(unicodedata.normalize("NFC", prompt))
        parts = set(Words(unicodedata.normalize("NFC", name)).keys)
        forms = {form.key for form in forms_of(name)}
        alone = {(hit.first, hit.last) for hit in self._scan(words, [name])}
        for hit in self._scan(words, classes)[:_HINTED_WORDS]:
            keys = set(words.keys[hit.first : hit.last + 1])
            if (hit.first, hit.last) in alone or parts <= keys or keys & forms:
                owner = f"class {quoted(hit.claimants[0])}" if hit.claimants else "something else"
                return f" ({quoted(_text_of(words, hit))} there names {owner})"
        keys = dict.fromkeys(key for key in words.keys[:_HINTED_WORDS] if 2 < len(key) < 100)
        near = [key for key in keys if key in parts or name_key(name).endswith(key)]
        near += difflib.get_close_matches(name, keys, n=1, cutoff=0.7)
        return f" (nearest there: {quoted(near[0])})" if near else ""


def _text_of(words: Words, hit: _Hit) -> str:
    return words.text[words.spans[hit.first][0] : words.spans[hit.last][1]]


def mention_finder(synonyms: Mapping[str, Sequence[str]] | None = None) -> MentionFinder:
    """Returns the finder for some synonyms (class -> words); equal synonyms share one finder.

    Raises:
        UserError: a synonym is not a word.
    """
    synonyms = synonyms or {}
    for name, words in synonyms.items():
        what = f"synonyms of {quoted(name)}"
        if isinstance(words, str) or not all(isinstance(word, str) for word in words):
            raise UserError(f"{what} must be a list of words, got {quoted(words)}")
        for word in words:
            require_word(word, f"{what}:")
    return _shared_finder(tuple((name, tuple(words)) for name, words in synonyms.items()))


@functools.lru_cache(maxsize=16)
def _shared_finder(synonyms: tuple[tuple[str, tuple[str, ...]], ...]) -> MentionFinder:
    return MentionFinder(dict(synonyms))


def split_names(text: str, classes: Mapping[str, str]) -> tuple[str, ...]:
    """Splits a text that consists of class names: VOC's "tv monitor sofa" are two.

    Synonyms and plurals are not names here. Of two ways to split a text, the one with the longer
    name at the first difference is used.

    Args:
        text: the text.
        classes: `name_key` of each class -> the class.

    Returns:
        The classes in order, each once.

    Raises:
        UserError: the text is empty, or has a word that belongs to no name.
    """
    words = Words(unicodedata.normalize("NFC", text)).keys
    # The name that begins at each word, and the word after it; None if the rest cannot be split.
    steps: list[tuple[str, int] | None] = [None] * len(words) + [("", 0)]
    for i in reversed(range(len(words))):
        key = ""
        for j in range(i, len(words)):
            key = join_keys(key, words[j])
            if len(key) > LONGEST_NAME:
                break
            if key in classes and steps[j + 1] is not None:
                steps[i] = (classes[key], j + 1)
    if not words or steps[0] is None:
        names = listed(itertools.islice(classes.values(), 3))
        rest = ", ..." if len(classes) > 3 else ""
        raise UserError(f"{quoted(text)} is not a sequence of names of the classes {names}{rest}")
    found, i = {}, 0
    while i < len(words):
        name, i = steps[i]
        found[name] = None
    return tuple(found)
