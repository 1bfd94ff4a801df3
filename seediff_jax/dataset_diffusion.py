"""The prompt files of Dataset Diffusion (arXiv 2309.14303): a JSON list of captions with classes.

    [{"filename": "0.jpg", "caption": "a baby in a toy car; person car",
      "class_prompt": "person car"}, ...]

The caption is the prompt. The class prompt is names with blanks between, each once for every object
that was seen; it usually ends the caption, too, behind a semicolon. Host only.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seediff_jax.class_lists import COCO_CLASSES, VOC_CLASSES
from seediff_jax.class_names import find_mentions, split_names
from seediff_jax.json_files import parse_json
from seediff_jax.prompt_records import PromptRecord

KEYS = ("filename", "caption", "class_prompt")
NEEDED = 'needed {"filename": "...", "caption": "...", "class_prompt": "..."}'


def read_dataset_diffusion(
    path: Path,
    classes: Sequence[str] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[PromptRecord]:
    """Reads captions; a class of the class prompt that the caption does not name is an unnamed one.

    Args:
        path: the file.
        classes: all names that a class prompt may have; by default those of PASCAL VOC or of COCO,
            the first list that has all names of the file.
        synonyms: see `class_names.find_mentions`.

    Raises:
        ValueError: with the number of the entry, counted from 1, for an entry that has other keys
            or a class prompt that is no sequence of names; or for another JSON file.
        OSError: the file cannot be read.
    """
    entries = _read_list(path)
    for number, entry in enumerate(entries, 1):
        _require_entry(f"{path}: entry {number}", entry)
    lists = [classes] if classes is not None else [VOC_CLASSES, COCO_CLASSES]
    shown = _split_class_prompts(path, [entry["class_prompt"] for entry in entries], lists)
    records = []
    for number, (entry, names) in enumerate(zip(entries, shown, strict=True), 1):
        try:
            records.append(_make_record(entry["caption"], names, synonyms))
        except ValueError as error:
            raise ValueError(f"{path}: entry {number}: {error}") from error
    return records


def _read_list(path: Path) -> list[Any]:
    try:
        entries = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(entries, list):
        found = f"an object with {_listed(entries)}" if isinstance(entries, dict) else repr(entries)
        raise ValueError(
            f"{path}: a .json prompt file is a list as Dataset Diffusion has it, {NEEDED}; found "
            f"{found[:80]}"
        )
    if not entries:
        raise ValueError(f"{path}: no prompt in the file, at least one is needed")
    return entries


def _require_entry(place: str, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: found {entry!r:.80}; {NEEDED}")
    if set(entry) != set(KEYS):
        hint = "; an object a line with prompt and classes goes into a .jsonl file"
        raise ValueError(
            f"{place}: found {_listed(entry)}; {NEEDED}{hint if 'prompt' in entry else ''}"
        )
    for key in KEYS:
        if not isinstance(entry[key], str):
            raise ValueError(f"{place}: {key} must be a text, found {entry[key]!r:.80}")
    if not entry["class_prompt"].strip():
        raise ValueError(f"{place}: the class_prompt is empty, there is no mask; leave it out")


def _listed(entry: Mapping[str, Any]) -> str:
    return f"keys {', '.join(map(repr, entry))}"[:80] if entry else "no key"


def _split_class_prompts(
    path: Path, class_prompts: Sequence[str], lists: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Classes of each class prompt, out of the first list that has them all."""
    errors = []
    for names in lists:
        found: list[tuple[str, ...]] = []
        try:
            for class_prompt in class_prompts:
                found.append(split_names(class_prompt, names))
            return found
        except ValueError as error:
            errors.append((len(found), str(error)))
    done, error = max(errors)
    raise ValueError(f"{path}: entry {done + 1}: class_prompt {error}; name the classes of the run")


def _make_record(
    caption: str, names: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None
) -> PromptRecord:
    mentions = find_mentions(caption, names, synonyms)
    unnamed = tuple(name for name in names if not mentions[name])
    named = tuple(name for name in names if mentions[name])
    return PromptRecord(caption, (*named, *unnamed), unnamed)
