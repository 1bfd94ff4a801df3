"""Prompt records: made from templates, or read from a file and checked entry by entry.

The first stage of the data flow, host only. A record pairs a prompt with the classes that get a
mask; `generate` takes them as the columns `prompts` and `classes`.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from seediff_jax.class_lists import COCO_CLASSES, SHAPES_CLASSES, SUBCLASSES, SYNONYMS, VOC_CLASSES
from seediff_jax.class_names import (
    find_mentions,
    require_classes,
    require_mentions,
    require_unnamed,
)
from seediff_jax.dataset_diffusion import read_dataset_diffusion
from seediff_jax.prompt_formats import Entry, read_csv, read_jsonl, read_text
from seediff_jax.prompt_records import PromptRecord
from seediff_jax.templates import make_prompts

__all__ = [
    "COCO_CLASSES",
    "SHAPES_CLASSES",
    "SUBCLASSES",
    "SYNONYMS",
    "VOC_CLASSES",
    "PromptRecord",
    "make_prompts",
    "read_prompts",
]

_READERS = {".txt": read_text, ".jsonl": read_jsonl, ".csv": read_csv}


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
    `.csv`: the same in columns below a header, with semicolons between the names of a cell.
    `.json`: a prompt file of Dataset Diffusion, see `dataset_diffusion`.

    Args:
        path: file name ending in .txt, .jsonl, .csv or .json.
        classes: names to look for; needed unless every entry has its own.
        synonyms: see `class_names.find_mentions`.

    Raises:
        ValueError: with file and line number, for text that is not UTF-8, a line that is no such
            entry, or a prompt that does not name its classes or any class; or for an empty file.
        FileNotFoundError: where there is no such file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*_READERS, ".json"):
        raise ValueError(f"{path}: a prompt file must end in .txt, .jsonl, .csv or .json")
    if classes is not None:
        require_classes(classes, "read_prompts")
    if suffix == ".json":
        return read_dataset_diffusion(path, classes, synonyms)
    records = []
    for entry in _READERS[suffix](path):
        try:
            records.append(_make_record(entry, classes, synonyms))
        except ValueError as error:
            raise ValueError(f"{entry.place}: {error}") from error
    if not records:
        raise ValueError(f"{path}: no prompt in the file, at least one is needed")
    return records


def _make_record(
    entry: Entry,
    classes: Sequence[str] | None,
    synonyms: Mapping[str, Sequence[str]] | None,
) -> PromptRecord:
    named = entry.classes
    if named is None:
        named = _find_named(entry.prompt, classes, synonyms, required=not entry.unnamed)
    record = PromptRecord(entry.prompt, (*named, *entry.unnamed), tuple(entry.unnamed))
    if record.named:
        require_mentions(record.prompt, record.named, synonyms)
    require_unnamed(record.prompt, record.named, record.unnamed, synonyms)
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
            f"prompt {prompt!r} has no classes; pass the classes to look for, or use a .jsonl or "
            '.csv file with "classes" in every line'
        )
    mentions = find_mentions(prompt, classes, synonyms) if classes else {}
    named = tuple(name for name, spans in mentions.items() if spans)
    if required and not named:
        raise ValueError(
            f"prompt {prompt!r} names none of the {len(classes)} classes: {', '.join(classes)}"
        )
    return named
