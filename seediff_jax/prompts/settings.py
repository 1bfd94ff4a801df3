"""PromptSource: the settings that say what a run shows.

Loads neither JAX nor NumPy, so that the command line can list the settings at once.
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


def _class_ids(alone: str) -> Any:
    return setting(
        None,
        "List whose ids the classes have in masks, as in PASCAL VOC's or COCO's own files. By "
        "default classes that --classes names are 1, 2, ... in that order, a list that it names "
        f"has its own ids, and classes of {alone} alone those of a list that has them all.",
        choices=tuple(CLASS_LISTS),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSource:
    """Settings of the prompts; None and () stand for a setting that was not given.

    See the help of each field, `seediff --help` or docs/flags.md. An embedded `model` has its own
    classes.

    Raises:
        UserError: settings exclude one another.
    """

    model: str
    texts: tuple[str, ...] = setting(
        (),
        "A prompt; can be repeated, and an argument without a flag is one, too. Its classes are "
        "those of --classes that it names, or else those of the embedded model or of COCO.",
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
        "file with one name per line: what to look for in --prompts, or else to make prompts of.",
        path=True,
    )
    unnamed_classes: tuple[str, ...] = setting(
        (), "Classes to look for in every image although no prompt names them, separated by commas."
    )
    class_ids: str | None = _class_ids("prompts")
    templates: tuple[str, ...] = setting(
        (),
        f'Prompt for a class, with {{class}} or {{subclass}}; by default "{DEFAULT_TEMPLATE}". Can '
        "be repeated, or be a .txt file with one template per line.",
        flag="template",
        repeated=True,
        path=True,
    )
    subclasses: str | None = setting(
        None,
        "File with the words for {subclass}: .txt with lines like `dog: puppy, terrier`, or .json; "
        "by default the built-in ones of VOC and COCO.",
        path=True,
    )
    num_images: int | None = setting(
        None,
        "Number of images of the run, cycling through the prompts; by default one round.",
        least=1,
        most=2**31 - 1,
    )
    images_per_prompt: int | None = setting(
        None,
        "Number of successive images that show the same prompt; by default 1.",
        least=1,
        most=2**31 - 1,
    )
    shuffle: bool = setting(
        False, "Show the prompts in a random order, which is the same in each round."
    )
    shuffle_seed: int | None = setting(
        None,
        "Seed of that order; by default --seed.",
        least=0,
        most=2**32 - 1,
        needs=("shuffle=true", lambda source: source.shuffle),
    )
    balance_classes: bool = setting(
        False, "Repeat the prompts of the classes shown least, so that all are shown equally often."
    )

    def __post_init__(self):
        check_settings(self)
        if self.texts and self.prompts is not None:
            raise UserError(
                f"prompt={shown(self.texts[0], 200)} and prompts={shown(self.prompts, 200)} both "
                "say what to show; give one"
            )
        for flag, given in (("--template", self.templates), ("--subclasses", self.subclasses)):
            if given and (self.texts or self.prompts is not None):
                what = "--prompt already is one" if self.texts else "a prompt file already has them"
                raise UserError(f"{flag} makes prompts, but {what}; give only one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The images to segment, what to look for in them, and the truth.

    Raises:
        UserError: there is no folder of images, or nothing to look for.
    """

    images: str | None = setting(None, "Folder or URL of images.", path=True)
    image_names: str | None = setting(
        None,
        "File with the names of the images to take, one per line, with or without their endings; "
        "by default all.",
        path=True,
    )
    classes: tuple[str, ...] | None = setting(
        None,
        f"What to look for, in the order of the ids: class names separated by commas, one of the "
        f"lists {', '.join(CLASS_LISTS)}, or a .txt file with one name per line.",
        path=True,
    )
    class_ids: str | None = _class_ids("--image_classes")
    image_classes: str | None = setting(
        None,
        "File with what to look for in each image: .txt with lines like `photo_12: cat, boat`, or "
        ".json; by default all --classes.",
        path=True,
    )
    truth: str | None = setting(
        None,
        "Folder or URL of true masks, one byte per pixel, named like the images; tells the mean "
        "IoU.",
        path=True,
    )

    def __post_init__(self):
        check_settings(self)
        if not self.images:
            raise UserError("images= is missing; give the folder of the images")
        if self.classes is None and self.image_classes is None:
            raise UserError("classes= is missing; say what to look for, or give image_classes=FILE")
