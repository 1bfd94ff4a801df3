"""Makes the PromptPlan and the class list of a run from its settings. Host only.

prompt file | templates x classes x sub-classes -> PromptRecords -> PromptPlan
"""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.prompts.class_files import (
    is_class_file,
    read_classes,
    read_image_classes,
    read_subclasses,
)
from seediff_jax.prompts.class_lists import CLASS_LISTS, COCO_CLASSES, OTHER_NAMES, SUBCLASSES
from seediff_jax.prompts.embedded_models import EMBEDDED_MODELS, require_drawn, split_by_model
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import name_key, require_classes
from seediff_jax.prompts.prompt_files import iterate_prompts, records_of_texts
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import ClassList, PromptRecord, PromptTable
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
        `class_ids` names; or those asked for, in their order; or, where the prompts alone name
        classes, or a list was asked for, an official list that has all of them, in any capitals.
        Further classes of the prompts follow in the order of their first mention. A class has one
        name in all prompts, in whatever spelling the prompts name it.

    Raises:
        UserError: no prompts can be made of this, or they have too many classes for label maps.
        FileNotFoundError: there is no such file.
    """
    classes, synonyms = _read_classes(source)
    unnamed = ()
    if source.unnamed_classes:
        unnamed = require_classes(source.unnamed_classes, "--unnamed_classes")
    if source.prompts is not None:
        records = iterate_prompts(source.prompts, classes, synonyms)
    elif source.texts:
        records = records_of_texts(source.texts, classes or _looked_for(source.model), synonyms)
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
    if image_classes is None:
        if names is None:
            raise UserError("say what to look for: --classes, or --image_classes for each image")
        record = _image_record(template, _classes_to_show(source, names))
        return _collect(source, [record] * len(images), names, synonyms)
    lists = read_image_classes(image_classes)
    known = {name_key(name) for name in names or ()}
    made: dict[tuple[str, ...], PromptRecord] = {}  # a million images have few lists
    records = []
    for image in images:
        name = unicodedata.normalize("NFC", image)
        found = lists.get(name) or lists.get(Path(name).stem)
        if found is None:
            raise UserError(f"{image_classes} has no entry for the image {quoted(image)}")
        if found not in made:
            if unknown := [name for name in found if names and name_key(name) not in known]:
                raise UserError(
                    f"{image_classes}: image {quoted(image)} has {quoted(unknown[0])}, which is "
                    "not one of --classes"
                )
            made[found] = _image_record(template, found)
        records.append(made[found])
    return _collect(source, records, names, synonyms)


def _image_record(template: str, names: Sequence[str]) -> PromptRecord:
    return PromptRecord(list_classes(template, names), tuple(names))


def _collect(
    source: PromptSource,
    records: Iterable[PromptRecord],
    classes: Sequence[str] | None,
    synonyms: WordLists,
) -> tuple[PromptPlan, tuple[str, ...]]:
    """Gives each class of the prompts one name and id, and makes the plan of the prompts."""
    names = _Names(classes or ())
    table = PromptTable(names.collect(records))
    if source.model in EMBEDDED_MODELS:
        asked = dict.fromkeys(name for each in table.class_lists for name in each.classes)
        require_drawn(source.model, split_by_model(source.model, tuple(asked))[1])
    if source.class_ids is not None:
        class_names = names.take_list(source.class_ids)
    else:
        class_names = names.choose(official=classes is None or bool(_listed_classes(source)))
    plan = PromptPlan(
        records=names.rename(table),
        synonyms=synonyms,
        images_per_prompt=source.images_per_prompt or 1,
        shuffle_seed=source.shuffle_seed if source.shuffle else None,
        balance_classes=source.balance_classes,
    )
    return plan, class_names


def _looked_for(model: str) -> tuple[str, ...]:
    """The classes that are looked for in prompts where none are given."""
    return EMBEDDED_MODELS[model].classes if model in EMBEDDED_MODELS else COCO_CLASSES


class _Names:
    """The names of the classes of a run: one per class, and no more than label maps have ids."""

    def __init__(self, classes: Iterable[str]):
        self._spellings: dict[str, str] = {}  # spelling -> key
        self._names: dict[str, str] = {}  # key -> name
        for name in classes:
            self._add(name)

    def _add(self, name: str) -> None:
        self._spellings[name] = name_key(name)
        self._names.setdefault(name_key(name), name)
        if len(self._names) >= IGNORE_INDEX:
            raise UserError(
                f"the prompts have {len(self._names)} classes or more, but a mask has ids for "
                f"{IGNORE_INDEX - 1}"
            )

    def collect(self, records: Iterable[PromptRecord]) -> Iterator[PromptRecord]:
        """Yields records and adds their classes; a UserError if there are too many."""
        for record in records:
            for name in record.classes:
                if name not in self._spellings:
                    self._add(name)
            yield record

    def choose(self, *, official: bool) -> tuple[str, ...]:
        """Returns the names in the order of their ids.

        If `official`, the names and ids of an official list are taken if one has all classes: of
        several, the one with most of the spellings, then the first.
        """
        lists = [{name_key(name): name for name in known} for known in CLASS_LISTS.values()]
        lists = [known for known in lists if official and self._names.keys() <= known.keys()]
        if lists:
            self._names = max(
                lists, key=lambda known: len(self._spellings.keys() & set(known.values()))
            )
        return tuple(self._names.values())

    def take_list(self, name: str) -> tuple[str, ...]:
        """Returns the names of a list in the order of its ids.

        A class takes the name of the list that is a word for the same thing, as sofa for couch.

        Raises:
            UserError: the list lacks a class of the run, or has one name for two.
        """
        names = CLASS_LISTS[name]
        known = {name_key(word): each for each in names for word in OTHER_NAMES.get(each, ())}
        known |= {name_key(each): each for each in names}
        if missing := [each for key, each in self._names.items() if key not in known]:
            raise UserError(
                f"class_ids={name} has no id for {listed(map(quoted, missing))}; leave it out to "
                "number the classes of the run"
            )
        taken: dict[str, str] = {}
        for key, each in self._names.items():
            if (other := taken.setdefault(known[key], each)) != each:
                raise UserError(
                    f"class_ids={name} has one id, of {known[key]}, for {quoted(other)} and "
                    f"{quoted(each)}; leave one out"
                )
        self._names = {key: known[key] for key in self._names}
        return names

    def rename(self, table: PromptTable) -> PromptTable:
        """Returns the prompts with the chosen names of their classes."""
        names = {spelling: self._names[key] for spelling, key in self._spellings.items()}
        if all(spelling == name for spelling, name in names.items()):
            return table
        return table.map_classes(
            lambda each: ClassList(*(tuple(names[name] for name in part) for part in each))
        )


def _classes_to_show(source: PromptSource, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes that templates are filled with.

    An embedded model leaves out what it does not draw of a list that is given by its name, and
    refuses a class that is given by its own name.
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
    """The classes of a named list that no prompt is made of; see `_classes_to_show`."""
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


def _is_class_file(classes: Sequence[str] | None) -> bool:
    return classes is not None and len(classes) == 1 and is_class_file(classes[0])


def _read_classes(
    source: PromptSource,
) -> tuple[tuple[str, ...] | None, dict[str, Sequence[str]]]:
    """Reads the names of the classes, and the synonyms in their file."""
    classes = source.classes
    if classes is None:
        return None, {}
    if _is_class_file(classes):
        found = read_classes(classes[0])
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
    """Reads the lists of a file; classes without one keep the built-in list."""
    own = read_subclasses(path)
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
