"""From what a run is asked to show to its PromptPlan and its class list; host only.

prompt file | templates x classes x sub-classes -> PromptRecords -> PromptPlan
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from seediff_jax.class_files import is_class_file, read_classes, read_subclasses
from seediff_jax.class_lists import CLASS_LISTS, SHAPES_CLASSES, SUBCLASSES
from seediff_jax.class_names import name_key, require_classes, require_unnamed
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.prompt_plan import PromptPlan
from seediff_jax.prompts import PromptRecord, make_prompts, read_prompts
from seediff_jax.templates import (
    read_templates,
    require_template,
    template_fields,
    with_subclasses,
)

DEFAULT_TEMPLATE = "a photo of a {class}"
SUBCLASS_TEMPLATE = "a photo of a {subclass}"
"""What is filled where no template is given; the second where sub-classes are."""

WordLists = Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource:
    """What to show, as a command line has it; None and empty is what was not given.

    Attributes:
        model: name of the model; "shapes" brings its own classes.
        prompts: name of a prompt file, see `read_prompts`; None fills templates.
        classes: names of classes, or the single name of a list of CLASS_LISTS or of a file, see
            `class_files`.
        unnamed_classes: further classes of every prompt, which no prompt names.
        templates: texts with {class} or {subclass}, or names of .txt files that have them.
        subclasses: name of a file of sub-classes, whose lists go before the built-in ones.
        images_per_prompt: images in succession that show one prompt; None is 1, of which a run
            may go round as often as it wants.
        shuffle_seed: see `PromptPlan`.
        balance_classes: see `PromptPlan`.
    """

    model: str
    prompts: str | None = None
    classes: Sequence[str] | None = None
    unnamed_classes: Sequence[str] = ()
    templates: Sequence[str] = ()
    subclasses: str | None = None
    images_per_prompt: int | None = None
    shuffle_seed: int | None = None
    balance_classes: bool = False


def make_plan(source: PromptSource) -> tuple[PromptPlan, tuple[str, ...]]:
    """Makes the prompts of a run, and the run's class list.

    Returns:
        The plan, and the classes of the run in the order of their ids: those of a class file; or
        the first official list that holds all; or else those asked for. What the records name
        beside follows in order.

    Raises:
        ValueError: no prompts can be made of this, or they have too many classes for label maps.
        FileNotFoundError: there is no such file.
    """
    classes, synonyms = _read_classes(source.classes)
    if source.prompts is not None:
        _require_no_templates(source)
        records = read_prompts(source.prompts, classes, synonyms)
    elif classes is None and source.model != "shapes":
        raise ValueError(f"model {source.model!r} needs a prompt file (--prompts) or --classes")
    else:
        records, synonyms = _fill_templates(source, classes or SHAPES_CLASSES, synonyms)
    records = [_with_unnamed(record, source.unnamed_classes, synonyms) for record in records]
    mentioned = [*(classes or ()), *(name for record in records for name in record.classes)]
    plan = PromptPlan(
        records=tuple(records),
        synonyms=synonyms,
        images_per_prompt=source.images_per_prompt or 1,
        shuffle_seed=source.shuffle_seed,
        balance_classes=source.balance_classes,
    )
    names = tuple(dict.fromkeys(mentioned))
    return plan, _require_ids(names if _names_file(source.classes) else _official_list(names))


def count_images(plan: PromptPlan, source: PromptSource, num_images: int | None) -> int:
    """Images of a run: `num_images`, or else one round of the plan.

    Raises:
        ValueError: `images_per_prompt` was asked for, and `num_images` would show prompts oftener.
    """
    if num_images is None:
        return plan.num_images
    exact = source.images_per_prompt is not None and not plan.balance_classes
    if exact and num_images > plan.num_images:
        raise ValueError(
            f"num_images={num_images} is more than {len(plan)} prompts have with "
            f"images_per_prompt={plan.images_per_prompt}, which is {plan.num_images}; leave one out"
        )
    return num_images


def _names_file(classes: Sequence[str] | None) -> bool:
    return classes is not None and len(classes) == 1 and is_class_file(classes[0])


def _read_classes(
    classes: Sequence[str] | None,
) -> tuple[Sequence[str] | None, dict[str, Sequence[str]]]:
    """Names of the classes, and the synonyms that their file gives."""
    if _names_file(classes):
        found = read_classes(classes[0])
        return [*found], {name: words for name, words in found.items() if words is not None}
    if classes is not None and len(classes) == 1:
        classes = CLASS_LISTS.get(classes[0], classes)
    return classes, {}


def _require_no_templates(source: PromptSource) -> None:
    for flag, given in (("--template", source.templates), ("--subclasses", source.subclasses)):
        if given:
            raise ValueError(f"{flag} is for making prompts, and a prompt file has them; give one")


def _fill_templates(
    source: PromptSource, classes: Sequence[str], synonyms: WordLists
) -> tuple[list[PromptRecord], WordLists]:
    """Prompts out of templates, and the synonyms by which these name their classes."""
    require_classes(classes, "--classes")
    templates = _read_templates(source)
    subclasses: WordLists = SUBCLASSES
    if source.subclasses is not None:
        if not any("subclass" in template_fields(template) for template in templates):
            raise ValueError("--subclasses fill {subclass}, which no --template has")
        subclasses = _read_subclasses(source.subclasses, classes)
    records = make_prompts(classes, templates, subclasses, synonyms)
    return records, with_subclasses(classes, templates, subclasses, synonyms)


def _read_templates(source: PromptSource) -> list[str]:
    if not source.templates:
        return [DEFAULT_TEMPLATE if source.subclasses is None else SUBCLASS_TEMPLATE]
    templates: list[str] = []
    for text in source.templates:
        if "{" not in text and Path(text).suffix.lower() == ".txt":
            templates += read_templates(text)
        else:
            require_template(text)
            templates.append(text)
    return templates


def _read_subclasses(path: str, classes: Sequence[str]) -> WordLists:
    """Lists of a file, and the built-in ones of the other classes."""
    own = read_subclasses(path)
    keys = {name_key(name) for name in classes}
    for name in own:
        if name_key(name) not in keys:
            raise ValueError(
                f"{path}: {name!r} is none of the {len(classes)} classes; add it to --classes, or "
                "delete its line"
            )
    taken = {name_key(name) for name in own}
    return own | {name: w for name, w in SUBCLASSES.items() if name_key(name) not in taken}


def _with_unnamed(record: PromptRecord, names: Sequence[str], synonyms: WordLists) -> PromptRecord:
    if not names:
        return record
    require_unnamed(record.prompt, record.classes, names, synonyms)
    return PromptRecord(record.prompt, (*record.classes, *names), (*record.unnamed, *names))


def _official_list(names: tuple[str, ...]) -> tuple[str, ...]:
    return next((known for known in CLASS_LISTS.values() if set(names) <= set(known)), names)


def _require_ids(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) >= IGNORE_INDEX:
        raise ValueError(f"{len(names)} classes, but a mask has ids for {IGNORE_INDEX - 1}")
    return names
