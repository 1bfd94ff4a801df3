"""PromptSource and ImageSource: settings of the prompts and classes, or of the given images.

Quick to import: it loads neither JAX nor NumPy.
"""

import dataclasses
from typing import Any

from seediff_jax.errors import UserError, shown
from seediff_jax.prompts.class_lists import CLASS_LISTS
from seediff_jax.settings import check_settings, setting

DEFAULT_TEMPLATE = "a photo of a {class}"
SUBCLASS_TEMPLATE = "a photo of a {subclass}"
"""The default templates, without and with sub-classes."""

LIST_TEMPLATE = "a photo of {classes}"
"""The default template of a prompt that names all classes of an image."""


def _may_show_several(source: "PromptSource") -> bool:
    """Whether a run may have several prompts, as far as its settings alone can tell."""
    if source.texts:
        return len(source.texts) > 1
    name = source.classes[0].strip().lower() if source.classes else ""
    one_class = len(source.classes or ()) == 1 and name not in CLASS_LISTS and name[-4:] != ".txt"
    several = len(source.templates) > 1 or _has_kinds(source)
    return source.prompts is not None or not one_class or several


def _has_kinds(source: "PromptSource") -> bool:
    """Whether templates may make more prompts of one class than of another."""
    files = [text for text in source.templates if "{" not in text]  # may have {subclass}
    return bool(files or source.subclasses or "{subclass}" in "".join(source.templates))


def _may_be_unbalanced(source: "PromptSource") -> bool:
    """Whether classes may be shown unequally often, or a run be longer than one cycle allows."""
    part_of_cycle = source.shuffle and len(source.templates) > 1
    longer = source.images_per_prompt is not None and source.num_images is not None
    own = source.texts or source.prompts is not None
    return bool(own or part_of_cycle or longer or _has_kinds(source))


_CLASS_IDS: Any = setting(
    None,
    "Numbering of the classes in masks: that of a list. By default, with --classes=cat,dog they "
    "are 1, 2, ...; with --classes=voc they are VOC's ids; without --classes, they are the ids of "
    "a list that contains every class, else 1, 2, ...",
    choices=tuple(CLASS_LISTS),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Settings of the prompts; None and () mean that a setting was not given.

    See the help of each field, `seediff --help` or docs/flags.md. `model` is needed because an
    embedded model has its own classes.

    Raises:
        UserError: two settings exclude each other.
    """

    model: str
    texts: tuple[str, ...] = setting(
        (),
        "Prompt; can be repeated, or given as an argument without a flag. Masks are made for the "
        "classes that the prompt mentions: from --classes if given, otherwise from those of the "
        "embedded model, or of COCO for other models.",
        flag="prompt",
        repeated=True,
    )
    prompts: str | None = setting(
        None,
        "Prompt file: .txt, .jsonl, .csv, or a .json of Dataset Diffusion; see docs/prompts.md.",
        path=True,
    )
    classes: tuple[str, ...] | None = setting(
        None,
        f"Class names separated by commas, one of the lists {', '.join(CLASS_LISTS)}, or a .txt "
        "file with one name per line. With --prompt or --prompts: the classes to look for in them. "
        "Without: one prompt is made for each class.",
        path=True,
    )
    unnamed_classes: tuple[str, ...] = setting(
        (),
        "Further classes, separated by commas: masks of them are made for every image, although no "
        "prompt mentions them.",
    )
    class_ids: str | None = _CLASS_IDS
    templates: tuple[str, ...] = setting(
        (),
        f'Template of a prompt, with {{class}} or {{subclass}}; by default "{DEFAULT_TEMPLATE}". '
        "Can be repeated, or be a .txt file with one template per line.",
        flag="template",
        repeated=True,
        path=True,
    )
    subclasses: str | None = setting(
        None,
        "File with the words that replace {subclass}: .txt with lines like `dog: puppy, terrier`, "
        "or .json; by default built-in words for the classes of VOC and COCO.",
        path=True,
    )
    num_images: int | None = setting(
        None,
        "Number of images of the run, which cycles through the prompts; by default one cycle.",
        least=1,
        most=2**31 - 1,
    )
    images_per_prompt: int | None = setting(
        None,
        "Number of successive images of the same prompt; by default 1.",
        least=1,
        most=2**31 - 1,
    )
    shuffle: bool = setting(
        False,
        "Use the prompts in a random order, the same in each cycle.",
        needs=("several prompts", _may_show_several),
    )
    shuffle_seed: int | None = setting(
        None,
        "Seed of the order of --shuffle; by default --seed.",
        least=0,
        most=2**32 - 1,
        needs=("shuffle=true", lambda source: source.shuffle),
    )
    balance_classes: bool = setting(
        False,
        "Repeat prompts of rare classes, so that all classes are shown about equally often.",
        needs=(
            "--prompt, --prompts or {subclass} in a --template, because prompts made of classes "
            "alone show them equally often",
            _may_be_unbalanced,
        ),
    )

    def __post_init__(self):
        check_settings(self)
        if self.texts and self.prompts is not None:
            raise UserError(
                f"prompt={shown(self.texts[0], 200)} and prompts={shown(self.prompts, 200)} "
                "exclude each other; give one"
            )
        for flag, given in (("--template", self.templates), ("--subclasses", self.subclasses)):
            if given and (self.texts or self.prompts is not None):
                other = "--prompt" if self.texts else "--prompts"
                raise UserError(f"{flag} and {other} exclude each other; give one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The images to segment, the classes to look for in them, and their true masks.

    Raises:
        UserError: the folder of images is missing, or the classes are.
    """

    images: str | None = setting(None, "Folder or URL of images.", path=True)
    image_names: str | None = setting(
        None,
        "File with the names of the images to segment, one per line, with or without their "
        "endings; by default all images of the folder.",
        path=True,
    )
    classes: tuple[str, ...] | None = setting(
        None,
        "Classes to look for: names separated by commas, one of the lists "
        f"{', '.join(CLASS_LISTS)}, or a .txt file with one name per line.",
        path=True,
    )
    class_ids: str | None = _CLASS_IDS
    image_classes: str | None = setting(
        None,
        "File with the classes to look for in each image: .txt with lines like `photo_12: cat, "
        "boat`, or .json; by default all --classes.",
        path=True,
    )
    truth: str | None = setting(
        None,
        "Folder or URL of true masks, one byte per pixel, named like the images. The run then "
        "also reports the mean IoU.",
        path=True,
    )

    def __post_init__(self):
        check_settings(self)
        if not self.images:
            raise UserError("images= is missing; give the folder of the images")
        if self.classes is None and self.image_classes is None:
            raise UserError("classes= is missing; say what to look for, or give image_classes=FILE")
