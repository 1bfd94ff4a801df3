"""Makes the PromptPlan and the class list of a run from its settings. Host only.

prompt file | templates x classes x sub-classes -> PromptRecords -> PromptPlan
"""

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.prompts import class_files
from seediff_jax.prompts.class_lists import CLASS_LISTS, COCO_CLASSES, OTHER_NAMES, SUBCLASSES
from seediff_jax.prompts.embedded_models import (
    EMBEDDED_MODELS,
    require_drawn,
    require_known_words,
    split_by_model,
)
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import name_key, require_classes
from seediff_jax.prompts.prompt_files import iterate_prompts, records_of_texts
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord, PromptTable
from seediff_jax.prompts.settings import DEFAULT_TEMPLATE, SUBCLASS_TEMPLATE, PromptSource
from seediff_jax.prompts.templates import (
    list_classes,
    make_prompts,
    read_templates,
    require_template,
    template_fields,
    with_subclasses,
)

WordLists = Mapping[str, Sequence[str]]


def make_plan(source: PromptSource) -> tuple[PromptPlan, tuple[str, ...]]:
    """Makes the prompts of a run, and the run's class list.

    Returns:
        The plan, and the classes of the run in the order of their ids: those of the list that
        `class_ids` names; or the given ones, in their order; or, if only the prompts name classes
        or a list is given, those of an official list that has all of them, in any capitals.
        Further classes of the prompts follow in the order of their first mention. A class has one
        name in all prompts, whatever spelling the prompts use.

    Raises:
        UserError: the settings give no prompts, or too many classes for label maps.
        FileNotFoundError: there is no such file.
    """
    classes, synonyms = _read_classes(source)
    unnamed = ()
    if source.unnamed_classes:
        unnamed = require_classes(source.unnamed_classes, "--unnamed_classes")
    if source.prompts is not None:
        records = iterate_prompts(source.prompts, classes, synonyms, source.model)
    elif source.texts:
        embedded = EMBEDDED_MODELS.get(source.model)
        looked_for = classes or (embedded.classes if embedded else COCO_CLASSES)
        records = records_of_texts(source.texts, looked_for, synonyms, source.model)
    else:
        shown = _classes_to_show(source, classes)
        records, synonyms = _fill_templates(source, shown, synonyms)
    return _collect(source, _with_unnamed(records, unnamed, synonyms), classes, synonyms)


def make_image_plan(
    model: str,
    images: Sequence[str],
    template: str,
    classes: Sequence[str] | None = None,
    image_classes: str | None = None,
    class_ids: str | None = None,
) -> tuple[PromptPlan, tuple[str, ...]]:
    """Makes a prompt for each of given images, which names all classes to look for in it.

    Args:
        model: the name of the model; an embedded one has its own classes.
        images: names of the files.
        template: with {classes}, see `list_classes`.
        classes: as `PromptSource.classes`: what to look for, and the ids.
        image_classes: file with a list for each image, see `read_image_classes`; by default all
            classes are looked for in every image.
        class_ids: as `PromptSource.class_ids`.

    Returns:
        As `make_plan`; prompt i is that of image i.

    Raises:
        UserError: neither is given, an image has no list, or a list has a class that is not one of
            `classes` or that the embedded model does not draw.
        FileNotFoundError: there is no such file.
    """
    source = PromptSource(
        model=model, classes=None if classes is None else tuple(classes), class_ids=class_ids
    )
    names, synonyms = _read_classes(source)
    if image_classes is not None:
        lists = _lists_of_images(image_classes, images, names)
    elif names is not None:
        lists = itertools.repeat(_classes_to_show(source, names), len(images))
    else:
        raise UserError("say what to look for: --classes, or --image_classes for each image")

    @functools.cache  # a million images have few lists
    def make_record(shown: tuple[str, ...]) -> PromptRecord:
        prompt = list_classes(template, shown)
        require_drawn(model, split_by_model(model, shown)[1])
        require_known_words(model, prompt)
        return PromptRecord(prompt, shown)

    return _collect(source, map(make_record, lists), names, synonyms)


def _lists_of_images(
    path: str, images: Sequence[str], classes: Sequence[str] | None
) -> Iterator[tuple[str, ...]]:
    """Yields the classes that a file lists for each image, which must be some of `classes`."""
    lists = class_files.read_image_classes(path)
    known = {name_key(name) for name in classes or ()}
    for image in images:
        name = unicodedata.normalize("NFC", image)
        found = lists.get(name) or lists.get(Path(name).stem)
        if found is None:
            raise UserError(f"{path} has no entry for the image {quoted(image)}")
        if unknown := [each for each in found if known and name_key(each) not in known]:
            raise UserError(
                f"{path}: image {quoted(image)} has {quoted(unknown[0])}, which is not one of "
                "--classes"
            )
        yield found


def _collect(
    source: PromptSource,
    records: Iterable[PromptRecord],
    classes: Sequence[str] | None,
    synonyms: WordLists,
) -> tuple[PromptPlan, tuple[str, ...]]:
    """Assigns one name and id to each class of the prompts, and makes the plan."""
    keys = {spelling: name_key(spelling) for spelling in classes or ()}
    names = {key: spelling for spelling, key in keys.items()}  # in order of the ids
    table = PromptTable(_note_classes(records, keys, names))
    asked = tuple(dict.fromkeys(name for each in table.class_lists for name in each.classes))
    require_drawn(source.model, split_by_model(source.model, asked)[1])
    if source.class_ids is not None:
        names = _names_in_list(source.class_ids, names)
        class_names = CLASS_LISTS[source.class_ids]
    else:
        if classes is None or _listed_classes(source):
            names = _official_names(names, keys)
        class_names = tuple(names.values())
    plan = PromptPlan(
        records=table.rename_classes({spelling: names[key] for spelling, key in keys.items()}),
        synonyms=synonyms,
        images_per_prompt=source.images_per_prompt or 1,
        shuffle_seed=source.shuffle_seed if source.shuffle else None,
        balance_classes=source.balance_classes,
    )
    return plan, class_names


def _note_classes(
    records: Iterable[PromptRecord], keys: dict[str, str], names: dict[str, str]
) -> Iterator[PromptRecord]:
    """Yields records; adds spelling -> key, and key -> first spelling, of their classes.

    Raises:
        UserError: there are more classes than label maps have ids.
    """
    for record in records:
        for spelling in record.classes:
            if spelling not in keys:
                keys[spelling] = name_key(spelling)
                names.setdefault(keys[spelling], spelling)
        if len(names) >= IGNORE_INDEX:
            raise UserError(
                f"the prompts have {len(names)} classes or more, but a mask has ids for "
                f"{IGNORE_INDEX - 1}"
            )
        yield record


def _official_names(names: Mapping[str, str], spellings: Mapping[str, str]) -> Mapping[str, str]:
    """Returns key -> name of an official list that has all keys of `names`, or else `names`.

    Of several such lists, the one that matches most spellings is used, then the first.
    """
    lists = [{name_key(name): name for name in known} for known in CLASS_LISTS.values()]
    lists = [known for known in lists if names.keys() <= known.keys()]
    return max(lists, key=lambda known: len(spellings.keys() & known.values()), default=names)


def _names_in_list(list_name: str, names: Mapping[str, str]) -> dict[str, str]:
    """Returns key -> the name that an official list has for each class of a run.

    It may be another word for the same thing, as sofa for couch.

    Raises:
        UserError: the list lacks a class of the run, or has one name for two.
    """
    official = CLASS_LISTS[list_name]
    known = {name_key(word): each for each in official for word in OTHER_NAMES.get(each, ())}
    known |= {name_key(each): each for each in official}
    if missing := [name for key, name in names.items() if key not in known]:
        raise UserError(
            f"class_ids={list_name} has no id for {listed(map(quoted, missing))}; leave it out to "
            "number the classes of the run"
        )
    taken: dict[str, str] = {}
    for key, name in names.items():
        if (other := taken.setdefault(known[key], name)) != name:
            raise UserError(
                f"class_ids={list_name} has one id, of {known[key]}, for {quoted(other)} and "
                f"{quoted(name)}; leave one out"
            )
    return {key: known[key] for key in names}


def _classes_to_show(source: PromptSource, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes that templates are filled with.

    Of a list that is given by its name, classes that an embedded model does not draw are left out;
    one that is given by its own name is refused.
    """
    if classes is None:
        if source.model in EMBEDDED_MODELS:
            return EMBEDDED_MODELS[source.model].default_classes
        raise UserError(
            f"model {quoted(source.model)} needs a prompt (--prompt), a prompt file (--prompts) or "
            "--classes"
        )
    drawn, unknown = split_by_model(source.model, classes)
    if not (drawn and _listed_classes(source)):
        require_drawn(source.model, unknown)
    return drawn


def classes_left_out(source: PromptSource) -> tuple[str, ...]:
    """The classes of a named list that get no prompt; see `_classes_to_show`."""
    if source.prompts is not None or source.texts:
        return ()
    return split_by_model(source.model, _listed_classes(source))[1]


def _listed_classes(source: PromptSource) -> tuple[str, ...]:
    """Returns the classes of the list that `--classes` names; none if it does not name a list."""
    names = source.classes or ()
    return CLASS_LISTS.get(names[0].strip().lower(), ()) if len(names) == 1 else ()


def count_images(plan: PromptPlan, source: PromptSource) -> int:
    """Counts the images of a run: those asked for, or else one round of the plan.

    Raises:
        UserError: `images_per_prompt` was given, and `num_images` would exceed it.
    """
    num_images = source.num_images
    if num_images is None:
        return plan.num_images
    exact = source.images_per_prompt is not None and not plan.balance_classes
    if exact and num_images > plan.num_images:
        raise UserError(
            f"num_images={num_images} is more than {len(plan)} prompts have with "
            f"images_per_prompt={plan.images_per_prompt}, which is {plan.num_images}; leave one out"
        )
    return num_images


def _read_classes(source: PromptSource) -> tuple[tuple[str, ...] | None, dict[str, Sequence[str]]]:
    """Reads the names of the classes, and the synonyms in their file."""
    classes = source.classes
    if classes is None:
        return None, {}
    if len(classes) == 1 and class_files.is_class_file(classes[0]):
        found = class_files.read_classes(classes[0])
        names = tuple(found)
        synonyms = {name: words for name, words in found.items() if words is not None}
    else:
        names, synonyms = _listed_classes(source) or tuple(classes), {}
    if len(names) >= IGNORE_INDEX:
        raise UserError(f"{len(names)} classes, but a mask has ids for {IGNORE_INDEX - 1}")
    return require_classes(names, "--classes"), synonyms


def _fill_templates(
    source: PromptSource, classes: Sequence[str], synonyms: WordLists
) -> tuple[list[PromptRecord], WordLists]:
    """Makes prompts from templates, and the synonyms that name the classes in them."""
    templates = _read_templates(source)
    subclasses: WordLists = SUBCLASSES
    if source.subclasses is not None:
        if not any("subclass" in template_fields(template) for template in templates):
            raise UserError("--subclasses fill {subclass}, which no --template has")
        subclasses = _read_subclasses(source.subclasses, classes)
    records = make_prompts(classes, templates, subclasses, synonyms)
    for record in records:
        require_known_words(source.model, record.prompt)
    return records, with_subclasses(classes, templates, subclasses, synonyms)


def _read_templates(source: PromptSource) -> list[str]:
    if not source.templates:
        return [DEFAULT_TEMPLATE if source.subclasses is None else SUBCLASS_TEMPLATE]
    templates: list[str] = []
    for text in source.templates:
        is_file = "{" not in text and Path(text).suffix.lower() == ".txt"
        templates += read_templates(text) if is_file else [require_template(text)]
    return templates


def _read_subclasses(path: str, classes: Sequence[str]) -> WordLists:
    """Reads the lists of a file; classes without one keep the built-in list."""
    own = class_files.read_subclasses(path)
    keys = {name_key(name) for name in classes}
    for name in own:
        if name_key(name) not in keys:
            raise UserError(
                f"{path}: {quoted(name)} is not one of the {len(classes)} classes; add it to "
                "--classes, or delete its line"
            )
    taken = {name_key(name) for name in own}
    return own | {name: w for name, w in SUBCLASSES.items() if name_key(name) not in taken}


def _with_unnamed(
    records: Iterable[PromptRecord], unnamed: Sequence[str], synonyms: WordLists
) -> Iterator[PromptRecord]:
    if not unnamed:
        yield from records
        return
    finder = mention_finder(synonyms)
    for record in records:
        finder.require_unnamed(record.prompt, record.classes, unnamed)
        yield PromptRecord(record.prompt, (*record.classes, *unnamed), (*record.unnamed, *unnamed))
