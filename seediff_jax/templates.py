"""Prompts from templates: {class} is the name of a class, {subclass} a word for one of its kinds.

Host only. The word that fills {subclass} names the class, and so its tokens are those of the class:
`with_subclasses` makes the synonyms that say so.
"""

import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seediff_jax.class_lists import SUBCLASSES, SYNONYMS
from seediff_jax.class_names import entry_of, name_key, require_classes, require_mentions
from seediff_jax.prompt_records import PromptRecord
from seediff_jax.text_files import read_entries

FIELDS = ("class", "subclass")


def make_prompts(
    classes: Sequence[str],
    templates: str | Sequence[str] = "a photo of a {class}",
    subclasses: Mapping[str, Sequence[str]] = SUBCLASSES,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[PromptRecord]:
    """Fills templates: one after the other, class by class, sub-class by sub-class.

    A template with {subclass} makes a prompt of each word of a class, in their order; the others
    make one of each class. "a {class}" becomes "an aeroplane" before a vowel.

    Args:
        classes: names.
        templates: one or several texts with {class}, {subclass} or both.
        subclasses: class -> words for its kinds; a class without an entry is its only kind.
        synonyms: see `class_names.find_mentions`; `with_subclasses` of the same arguments is what
            the masks of these prompts need.

    Raises:
        ValueError: for classes that are empty or not different, a template that has another field
            or none, or a prompt that does not name its class.
    """
    names = require_classes(classes, "make_prompts")
    templates = [templates] if isinstance(templates, str) else list(templates)
    for template in templates:
        require_template(template)
    synonyms = with_subclasses(names, templates, subclasses, synonyms)
    records = [
        PromptRecord(prompt, (name,))
        for template in templates
        for name in names
        for prompt in _fill(template, name, subclasses)
    ]
    for record in records:
        require_mentions(record.prompt, record.classes, synonyms)
    return records


def with_subclasses(
    classes: Sequence[str],
    templates: str | Sequence[str],
    subclasses: Mapping[str, Sequence[str]] = SUBCLASSES,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Synonyms by which the prompts of `make_prompts` name their classes.

    Returns:
        `synonyms`, where a class that fills {subclass} has its words besides.
    """
    found = {name: tuple(words) for name, words in (synonyms or {}).items()}
    templates = [templates] if isinstance(templates, str) else templates
    if not any("subclass" in template_fields(template) for template in templates):
        return found
    for name in classes:
        if words := entry_of(name, subclasses):
            known = entry_of(name, found)
            known = entry_of(name, SYNONYMS) or () if known is None else known
            found = {k: v for k, v in found.items() if name_key(k) != name_key(name)}
            found[name] = tuple(dict.fromkeys((*known, *words)))
    return found


def read_templates(path: str | os.PathLike[str]) -> list[str]:
    """Reads a template a line; blank lines, and lines that begin with #, are skipped.

    Raises:
        ValueError: with file and line number, for a line that is no template or not UTF-8; or for
            a file without a template.
        FileNotFoundError: there is no such file.
    """
    templates = []
    for place, template in read_entries(Path(path)):
        try:
            require_template(template)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        templates.append(template)
    if not templates:
        raise ValueError(f"{path}: no template in the file, at least one is needed")
    return templates


def template_fields(template: str) -> Iterator[str]:
    """Fields of a template as they are written, with their formats.

    Raises:
        ValueError: its braces cannot be read.
    """
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is not None:
            yield name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")


def require_template(template: str) -> None:
    """Checks that a template names the class, or its sub-class, and has no other field.

    Raises:
        ValueError: it does not, or its braces cannot be read.
    """
    try:
        fields = list(template_fields(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} cannot be read: {error}") from None
    if not fields or not set(fields) <= set(FIELDS):
        raise ValueError(
            f"template {template!r} must name the class as {{class}} or {{subclass}} and have no "
            "other field; write {{ and }} for braces"
        )


def _fill(template: str, name: str, subclasses: Mapping[str, Sequence[str]]) -> Iterator[str]:
    kinds = entry_of(name, subclasses) if "subclass" in template_fields(template) else None
    for word in kinds or (name,):
        text = template
        for field, value in zip(FIELDS, (name, word), strict=True):
            text = _set_article(text, field, value)
        yield text.format_map({"class": name, "subclass": word})


def _set_article(template: str, field: str, value: str) -> str:
    # The sound counts: a unicorn, a ewe, a one-man band; an hourglass, an SUV.
    sounds_open = re.match(
        r"(?!uni|uten|use|eu|ewe|one)[aeiou]|hour|heir|honest|suv\b", value, re.I
    )
    article = rf"\1n {{{field}}}" if sounds_open else rf"\1 {{{field}}}"
    return re.sub(rf"\b([Aa])n? \{{{field}\}}", article, template)
