"""Class names in a text: what counts as a mention, and how names are compared.

Host only, and before any tokenizer: a mention is decided here, on words; `tokenizer` turns the
mentioned characters into token positions. Names are compared by the letters and digits of their
words run together: "pottedplant", "potted plant" and "Potted-Plants" are one name.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from seediff_jax.class_lists import LOOK_ALIKES, SYNONYMS

Mentions = dict[str, list[tuple[int, int]]]
"""Class -> (start, end) of each mention, in characters of the prompt in Unicode's form NFC."""

_PLURALS = {"person": "people", "man": "men", "child": "children", "mouse": "mice", "ox": "oxen"}
_PLURALS |= {"goose": "geese", "foot": "feet", "tooth": "teeth"}
_PLURALS |= {"f": "ves", "fe": "ves", "y": "ies"}
_PLURALS |= {end: end + "es" for end in ("s", "x", "z", "ch", "sh", "o")}

Owners = Mapping[str, tuple[str, ...]]


@functools.lru_cache(maxsize=2**14)
def name_key(name: str) -> str:
    """What makes two names the same: letters and digits, run together, in small letters."""
    name = unicodedata.normalize("NFC", name)
    return "".join(word.group() for word in _words(name)).lower()


def entry_of(name: str, table: Mapping[str, Sequence[str]]) -> tuple[str, ...] | None:
    """The entry of a class in a table by class, however spelled; None where it has none."""
    if name not in table:
        spellings = {name_key(other): other for other in table}
        name = spellings.get(name_key(name), name)
    return tuple(table[name]) if name in table else None


def require_classes(classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Checks a list of class names: some, each with a letter or digit, no two the same name.

    Raises:
        ValueError: beginning with `where`, naming the class at fault.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{where}: classes must be a list of names, got {classes!r}")
    if not classes:
        raise ValueError(f"{where}: the list of classes is empty; give at least one name")
    seen: dict[str, str] = {}
    for name in classes:
        key = name_key(name)
        if not key:
            raise ValueError(f"{where}: class {name!r} has no letter or digit")
        if key in seen:
            raise ValueError(f"{where}: classes {seen[key]!r} and {name!r} are the same name")
        seen[key] = name
    return tuple(classes)


def find_mentions(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> Mentions:
    """Finds where a prompt names each class; a class that it does not name gets an empty list.

    Whole words only, in any capitals, singular or plural, spelled in one word or several (joined
    by blanks, hyphens, underscores, slashes). Where names overlap the longest counts alone: "teddy
    bear" is no bear where class "teddy bear" is asked for too, nor ever as one of `LOOK_ALIKES`.
    A class's own name goes before another's synonym: class "man" takes "man" from class "person".

    Args:
        prompt: any text.
        classes: different names.
        synonyms: class -> words that name it; replaces the entries of `SYNONYMS` for its classes.

    Raises:
        ValueError: classes that `require_classes` refuses, or a word that two classes both claim.
    """
    text = unicodedata.normalize("NFC", prompt)
    mentions: Mentions = {name: [] for name in classes}
    for start, end, claimants in _scan(text, _make_owners(prompt, classes, synonyms)):
        if len(claimants) > 1:
            raise ValueError(
                f"classes {claimants[0]!r} and {claimants[1]!r} both claim {text[start:end]!r} in "
                f"the prompt {prompt!r}; leave one out, or say with synonyms whose word it is"
            )
        for name in claimants:
            mentions[name].append((start, end))
    return mentions


def require_mentions(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> Mentions:
    """Does what `find_mentions` does, and insists that every class is named.

    Raises:
        ValueError: as `find_mentions`, and for the first class that the prompt does not name.
    """
    mentions = find_mentions(prompt, classes, synonyms)
    for name, spans in mentions.items():
        if not spans:
            hint = _hint(prompt, name, classes, synonyms)
            raise ValueError(
                f"the prompt {prompt!r} does not name class {name!r}{hint}; write {name!r} in the "
                f"prompt, or pass synonyms={{{name!r}: [...]}} with the words that stand for it"
            )
    return mentions


def require_unnamed(
    prompt: str,
    classes: Sequence[str],
    unnamed: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Checks that a prompt names none of its unnamed classes.

    Raises:
        ValueError: it does, or a class is in both lists.
    """
    if not unnamed:
        return
    mentions = find_mentions(prompt, [*classes, *unnamed], synonyms)
    for name in unnamed:
        if mentions[name]:
            raise ValueError(
                f"the prompt {prompt!r} names {name!r}, which is listed as an unnamed class; list "
                "it with the classes of the prompt"
            )


def split_names(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Splits a text that is nothing but names of classes: "tv monitor sofa" of VOC's are two.

    Synonyms and plurals are no names here. Of two ways to split a text, the one with the longer
    name at its first difference is taken.

    Returns:
        The classes in their order, each once.

    Raises:
        ValueError: the text is empty, or has a word that belongs to no name.
    """
    names = {name_key(name): name for name in classes}
    words = [word.group() for word in _words(unicodedata.normalize("NFC", text))]
    longest = max(map(len, names))
    # Names of the words from i on; None where they cannot be split.
    rests: list[tuple[str, ...] | None] = [None] * len(words) + [()]
    for i in reversed(range(len(words))):
        key = ""
        for j in range(i, len(words)):
            key += words[j].lower()
            if len(key) > longest:
                break
            if key in names and (rest := rests[j + 1]) is not None:
                rests[i] = (names[key], *rest)
    if not rests[0]:
        listed = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise ValueError(f"{text!r} is no sequence of names out of the classes {listed}")
    return tuple(dict.fromkeys(rests[0]))


def _hint(
    prompt: str,
    name: str,
    classes: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None,
) -> str:
    """What in the prompt may have been meant, as the middle of an error message."""
    text = unicodedata.normalize("NFC", prompt)
    parts = {word.group().lower() for word in _words(name)}
    alone = find_mentions(prompt, [name], synonyms)[name]
    for start, end, claimants in _scan(text, _make_owners(prompt, classes, synonyms)):
        words = {word.group().lower() for word in _words(text[start:end])}
        if (start, end) in alone or parts <= words or words & _forms(name):
            owner = f"class {claimants[0]!r}" if claimants else "something else"
            return f" ({text[start:end]!r} there names {owner})"
    words = [word.group() for word in _words(text) if len(word.group()) > 2]
    near = [w for w in words if w.lower() in parts or name_key(name).endswith(w.lower())]
    near += difflib.get_close_matches(name, words, n=1, cutoff=0.7)
    return f" (nearest there: {near[0]!r})" if near else ""


def _make_owners(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None
) -> Owners:
    names = require_classes(classes, f"prompt {prompt!r}")
    for name, words in (synonyms or {}).items():
        if isinstance(words, str) or not all(isinstance(w, str) and name_key(w) for w in words):
            raise ValueError(f"synonyms of {name!r} must be a list of words, got {words!r}")
    return _owners(names, tuple((name, tuple(words)) for name, words in (synonyms or {}).items()))


@functools.lru_cache(maxsize=1024)
def _owners(classes: tuple[str, ...], synonyms: tuple[tuple[str, tuple[str, ...]], ...]) -> Owners:
    """Key of every name to look for -> the classes that claim it; none claims a look-alike."""
    table = {name_key(name): words for name, words in (*SYNONYMS.items(), *synonyms)}
    owners: dict[str, tuple[str, ...]] = {form: () for name in LOOK_ALIKES for form in _forms(name)}
    for words_of in (lambda name: table.get(name_key(name), ()), lambda name: (name,)):
        claims: dict[str, list[str]] = {}
        for name in classes:
            for form in {form for word in words_of(name) for form in _forms(word)}:
                claims.setdefault(form, []).append(name)
        owners |= {form: tuple(names) for form, names in claims.items()}
    return owners


def _scan(text: str, owners: Owners) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Names in a text from left to right, the longest at each place: (start, end, claimants)."""
    words, i = _words(text), 0
    longest = max(map(len, owners))
    while i < len(words):
        found = [run for run in _runs(text, words[i:], longest) if run[1] in owners]
        if found:
            count, key = found[-1]
            yield words[i].start(), words[i + count - 1].end(), owners[key]
        i += found[-1][0] if found else 1


def _runs(text: str, words: Sequence[re.Match[str]], longest: int) -> Iterator[tuple[int, str]]:
    """The first word, the first two and so on, as (count, key), while they may be one name."""
    key = ""
    for count, word in enumerate(words, 1):
        key += word.group().lower()
        if len(key) > longest:
            return
        yield count, key
        gap = text[word.end() : words[count].start()] if count < len(words) else "."
        # "A corn field" shows no acorn: the article is never the first half of a name.
        if key == "a" or not re.fullmatch(r"[\s\-_/]+", gap):
            return


def _words(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"[^\W_]+", text))


@functools.lru_cache(maxsize=2**14)
def _forms(name: str) -> frozenset[str]:
    """Keys of singular and plurals; a plural that no language has does no harm."""
    key = name_key(name)
    plurals = {key.removesuffix(end) + p for end, p in _PLURALS.items() if key.endswith(end)}
    return frozenset({key, key + "s"} | plurals)
