"""Prompt records: made from a template, or read from a text or JSONL file and checked line by line.

The first stage of the data flow, host only. A record pairs a prompt with the classes that get a
mask; `generate` takes them as the columns `prompts` and `classes`.
"""

import codecs
import dataclasses
import json
import os
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from seediff_jax.class_names import (
    COCO_CLASSES,
    SHAPES_CLASSES,
    SYNONYMS,
    VOC_CLASSES,
    find_mentions,
    require_classes,
    require_mentions,
)

__all__ = [
    "COCO_CLASSES",
    "SHAPES_CLASSES",
    "SYNONYMS",
    "VOC_CLASSES",
    "PromptRecord",
    "make_prompts",
    "read_prompts",
]


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """A prompt and the classes of its label map.

    Attributes:
        prompt: the text.
        classes: in order: class k has the label k + 1.
        unnamed: the last of `classes`, which the prompt does not name, see `class_columns`.

    Raises:
        ValueError: for a blank prompt, no class, or two classes with the same name.
    """

    prompt: str
    classes: tuple[str, ...]
    unnamed: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"a prompt must be a text that is not blank, got {self.prompt!r}")
        names = require_classes(self.classes, f"prompt {self.prompt!r}")
        object.__setattr__(self, "classes", names)
        if self.unnamed and names[-len(self.unnamed) :] != tuple(self.unnamed):
            raise ValueError(f"unnamed={self.unnamed!r} must be the last of classes={names!r}")

    @property
    def named(self) -> tuple[str, ...]:
        """The classes that the prompt names."""
        return self.classes[: len(self.classes) - len(self.unnamed)]


def make_prompts(
    classes: Sequence[str], template: str = "a photo of a {class}"
) -> list[PromptRecord]:
    """Writes one prompt a class; "a {class}" becomes "an aeroplane" before a vowel.

    Raises:
        ValueError: for classes that are empty or not different, or a template that has another
            field than {class} or none.
    """
    names = require_classes(classes, "make_prompts")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"template {template!r} cannot be read: {error}") from None
    fields = [part[1:] for part in parts if part[1] is not None]
    if not fields or any(field != ("class", "", None) for field in fields):
        raise ValueError(
            f"template {template!r} must name the class as {{class}} and have no other field; "
            "write {{ and }} for braces"
        )
    return [PromptRecord(_fill(template, name), (name,)) for name in names]


def _fill(template: str, name: str) -> str:
    # Vowels that sound like "you" or "wa" take "a": a unicorn, a ewe, a one-man band.
    sounds_open = re.match(r"(?!uni|uten|use|eu|ewe|one)[aeiou]|hour|heir|honest", name, re.I)
    article = r"\1n {class}" if sounds_open else r"\1 {class}"
    return re.sub(r"\b([Aa])n? \{class\}", article, template).format_map({"class": name})


def read_prompts(
    path: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[PromptRecord]:
    """Reads a prompt file (UTF-8) and checks that every prompt names its classes.

    `.txt`: a prompt a line; blank lines, and lines that begin with #, are skipped. A prompt gets
    those of `classes` that it names, in the order of `classes`.
    `.jsonl`: an object a line, {"prompt": "a dog on a sofa", "classes": ["dog", "sofa"]}; blank
    lines are skipped. An object without "classes" is treated like a line of a text file. Classes
    that the prompt does not name may be listed under "unnamed_classes".

    Args:
        path: file name ending in .txt or .jsonl.
        classes: names to look for; needed unless every object has its own.
        synonyms: see `class_names.find_mentions`.

    Raises:
        ValueError: with file and line number, for text that is not UTF-8, a line that is no such
            object, or a prompt that does not name its classes or any class; or for an empty file.
        FileNotFoundError: where there is no such file.
    """
    path = Path(path)
    if path.suffix.lower() not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: a prompt file must end in .txt or .jsonl")
    if classes is not None:
        require_classes(classes, "read_prompts")
    parse = _parse_json if path.suffix.lower() == ".jsonl" else _parse_text
    records = []
    for number, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        try:
            prompt, own_classes, unnamed = parse(line.decode("utf-8").strip())
            if prompt is not None:
                records.append(_make_record(prompt, own_classes, unnamed, classes, synonyms))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 ({error}); save it as UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    if not records:
        raise ValueError(f"{path}: no prompt in the file, at least one is needed")
    return records


def _parse_text(line: str) -> tuple[str | None, None, tuple[()]]:
    return (None if not line or line.startswith("#") else line), None, ()


def _parse_json(line: str) -> tuple[str | None, Sequence[str] | None, Sequence[str]]:
    if not line:
        return None, None, ()
    needed = 'needed {"prompt": "...", "classes": ["...", ...]}'
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}, column {error.colno}); {needed}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError(f"{line} is not an object with a text as its prompt; {needed}")
    if unknown := entry.keys() - {"prompt", "classes", "unnamed_classes"}:
        raise ValueError(f"unknown key {min(unknown)!r}; {needed}")
    for key in ("classes", "unnamed_classes"):
        if not isinstance(names := entry.get(key, []), list):
            raise ValueError(f"{key} must be a list of names, got {names!r}; {needed}")
    return entry["prompt"], entry.get("classes"), entry.get("unnamed_classes", [])


def _make_record(
    prompt: str,
    named: Sequence[str] | None,
    unnamed: Sequence[str],
    classes: Sequence[str] | None,
    synonyms: Mapping[str, Sequence[str]] | None,
) -> PromptRecord:
    if named is None:
        named = _find_named(prompt, classes, synonyms, required=not unnamed)
    record = PromptRecord(prompt, (*named, *unnamed), tuple(unnamed))
    if record.named:
        require_mentions(prompt, record.named, synonyms)
    require_unnamed(prompt, record.named, record.unnamed, synonyms)
    return record


def _find_named(
    prompt: str,
    classes: Sequence[str] | None,
    synonyms: Mapping[str, Sequence[str]] | None,
    *,
    required: bool,
) -> tuple[str, ...]:
    """Those of `classes` that the prompt names."""
    if classes is None and required:
        raise ValueError(
            f"prompt {prompt!r} has no classes; pass the classes to look for, or use a .jsonl file "
            'with "classes" in every line'
        )
    mentions = find_mentions(prompt, classes, synonyms) if classes else {}
    named = tuple(name for name, spans in mentions.items() if spans)
    if required and not named:
        raise ValueError(
            f"prompt {prompt!r} names none of the {len(classes)} classes: {', '.join(classes)}"
        )
    return named


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
