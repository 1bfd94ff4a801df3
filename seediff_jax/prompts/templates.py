"""Makes prompts from templates: {class} becomes the name of a class, {subclass} one of its kinds.

{classes} becomes the list of all classes of an image. Host only. A word in place of {subclass}
counts as a mention of the class; `with_subclasses` makes the synonyms for that.
"""

import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seediff_jax.errors import UserError, quoted
from seediff_jax.files.text import read_entries
from seediff_jax.prompts.class_lists import SUBCLASSES, SYNONYMS
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import find_entry, name_key, require_classes, require_text
from seediff_jax.prompts.prompt_record import PromptRecord

FIELDS = ("class", "subclass")


def make_prompts(
    classes: Sequence[str],
    templates: str | Sequence[str] = "a photo of a {class}",
    subclasses: Mapping[str, Sequence[str]] = SUBCLASSES,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[PromptRecord]:
    """Fills each template with each class, in this order.

    A template with {subclass} makes one prompt per word of the class; any other template makes one
    prompt per class. Articles fit: "a {class}" becomes "an aeroplane".

    Args:
        classes: names.
        templates: one or several texts with {class}, {subclass} or both.
        subclasses: class -> words for its kinds. For a class without an entry, its own name is the
            only word.
        synonyms: see `MentionFinder`. To find the classes in these prompts, give it the result of
            `with_subclasses` for the same arguments.

    Raises:
        UserError: a class is empty or given twice, a template has another field or none, or a
            prompt does not mention its class.
    """
    names = require_classes(classes, "make_prompts")
    templates = [templates] if isinstance(templates, str) else templates
    templates = [require_template(template) for template in templates]
    synonyms = with_subclasses(names, templates, subclasses, synonyms)
    records = [
        PromptRecord(prompt, (name,))
        for template in templates
        for name in names
        for prompt in _fill(template, name, subclasses)
    ]
    finder = mention_finder(synonyms)
    for record in records:
        finder.require(record.prompt, record.classes)
    return records


def with_subclasses(
    classes: Sequence[str],
    templates: str | Sequence[str],
    subclasses: Mapping[str, Sequence[str]] = SUBCLASSES,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Returns `synonyms` with the words that `make_prompts` puts in place of {subclass}.

    Takes the arguments of `make_prompts`. Without a template with {subclass}, nothing is added.
    """
    found = {name: tuple(words) for name, words in (synonyms or {}).items()}
    templates = [templates] if isinstance(templates, str) else templates
    if not any("subclass" in template_fields(template) for template in templates):
        return found
    for name in classes:
        if words := find_entry(name, subclasses):
            known = find_entry(name, found)
            known = find_entry(name, SYNONYMS) or () if known is None else known
            found = {k: v for k, v in found.items() if name_key(k) != name_key(name)}
            found[name] = tuple(dict.fromkeys((*known, *words)))
    return found


def read_templates(path: str | os.PathLike[str]) -> list[str]:
    """Reads one template per line; blank lines, and lines that begin with #, are skipped.

    Raises:
        UserError: a line is not a template or not UTF-8, or the file has no template. The message
            names the file and the line.
    """
    templates = []
    for place, template in read_entries(Path(path)):
        try:
            templates.append(require_template(template))
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not templates:
        raise UserError(f"{path}: no template in the file, at least one is needed")
    return templates


def require_list_template(template: str) -> None:
    """Raises a UserError unless a template has {classes} and no other field."""
    _require_fields(template, ("classes",), "must name the classes as {classes}")


def list_classes(template: str, classes: Sequence[str]) -> str:
    """Fills a template with names: "a photo of a cat and an aeroplane".

    Raises:
        UserError: see `require_list_template`.
    """
    require_list_template(template)
    names = (next(_fill("a {class}", name, {})) for name in classes)
    return template.format_map({"classes": " and ".join(names)})


def template_fields(template: str) -> Iterator[str]:
    """Yields the fields of a template as they are written, with their format specifiers."""
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is not None:
            yield name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")


def require_template(template: str) -> str:
    """Returns a template; a UserError unless it has {class} or {subclass} and no other field."""
    return _require_fields(template, FIELDS, "must name the class as {class} or {subclass}")


def _require_fields(template: str, known: Sequence[str], needed: str) -> str:
    require_text(template, "template")
    try:
        fields = list(template_fields(template))
    except ValueError as error:
        raise UserError(f"template {quoted(template)} cannot be read: {error}") from None
    if not fields or not set(fields) <= set(known):
        raise UserError(
            f"template {quoted(template)} {needed} and have no other field; write {{{{ and }}}} "
            "for braces"
        )
    return template


def _fill(template: str, name: str, subclasses: Mapping[str, Sequence[str]]) -> Iterator[str]:
    kinds = find_entry(name, subclasses) if "subclass" in template_fields(template) else None
    for word in kinds or (name,):
        text = template
        for field, value in zip(FIELDS, (name, word), strict=True):
            text = _set_article(text, field, value)
        yield text.format_map({"class": name, "subclass": word})


def _set_article(template: str, field: str, value: str) -> str:
    # The sound decides: a unicorn, a ewe, a one-man band; an hourglass, an SUV.
    sounds_open = re.match(
        r"(?!uni|uten|use|eu|ewe|one)[aeiou]|hour|heir|honest|suv\b", value, re.I
    )
    article = rf"\1n {{{field}}}" if sounds_open else rf"\1 {{{field}}}"
    return re.sub(rf"\b([Aa])n? \{{{field}\}}", article, template)
