"""RunConfig: everything that a run of the driver is asked to make, checked before any model work.

    prompts or classes -> PromptRecords -> RunConfig -> the settings that pin its samples down

Host only. Image i shows prompt i modulo the number of prompts, and depends on `rng_seed` and i
alone; so the number of images, the batch size and the folder are no settings of a sample.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import seediff_jax
from seediff_jax.class_names import require_unnamed
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.masks import PUBLISHED_THRESHOLDS, MaskConfig
from seediff_jax.model import Model
from seediff_jax.pipeline import REFINED_THRESHOLD
from seediff_jax.prompts import (
    COCO_CLASSES,
    SHAPES_CLASSES,
    VOC_CLASSES,
    PromptRecord,
    make_prompts,
    read_prompts,
)

DEFAULT_TEMPLATE = "a photo of a {class}"
CLASS_LISTS = {"shapes": SHAPES_CLASSES, "voc": VOC_CLASSES, "coco": COCO_CLASSES}
"""Class lists that have a name, each in the order of its official ids."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to generate, with which settings, and where to put it.

    Attributes:
        records: the prompts with their classes, in the order in which the images cycle through.
        class_names: of the whole run; the class at position k has the id k + 1 in every mask.
        num_images: images in the finished folder.
        revision, tokenizer, prediction_type, loras, scheduler, capture: see `load_model`; None is
            the checkpoint's own.
        height: of the images in pixels; None is the side that the model was trained for.
        width: the same.
        threshold: see `label_map`; None is the published value of the mask's method.
        uncertain: lower end of the ignored band; None is the published value of the method, where
            `threshold` is None too, and else no band.
        refined_threshold: takes the place of `threshold` for refined masks.
    """

    records: tuple[PromptRecord, ...]
    class_names: tuple[str, ...]
    output: Path
    num_images: int
    batch_size: int = 4
    model: str = "shapes"
    revision: str | None = None
    tokenizer: str | None = None
    prediction_type: str | None = None
    loras: tuple[tuple[str, float], ...] = ()
    dtype: str = "float32"
    scheduler: str | None = None
    capture: str | None = None
    rng_seed: int = 0
    num_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    mask_config: MaskConfig = MaskConfig()
    threshold: float | None = None
    uncertain: float | None = None
    refine_iterations: int = 0
    dilations: tuple[int, ...] = (1,)
    refined_threshold: float = REFINED_THRESHOLD

    def __post_init__(self):
        threshold, uncertain = self.thresholds
        last = self.refined_threshold if self.refine_iterations else threshold
        if not 0 <= threshold <= 1 or not 0 <= last <= 1:
            raise ValueError(f"the thresholds {threshold} and {last} must lie in 0..1")
        if uncertain is not None and not 0 <= uncertain <= last:
            raise ValueError(f"uncertain={uncertain} must lie in 0..{last}, the threshold")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"guidance_scale={self.guidance_scale} is not a finite number")
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale} must lie in 0..1")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"dilations={list(self.dilations)} must be whole numbers from 1 on")

    @property
    def thresholds(self) -> tuple[float, float | None]:
        """`threshold` and `uncertain` as they are applied."""
        if self.threshold is not None:
            return self.threshold, self.uncertain
        threshold, uncertain = PUBLISHED_THRESHOLDS[self.mask_config.method]
        return threshold, uncertain if self.uncertain is None else self.uncertain

    def record(self, index: int) -> PromptRecord:
        """The prompt of image `index`, which may lie beyond `num_images`."""
        return self.records[index % len(self.records)]

    def settings(self) -> dict[str, Any]:
        """Settings of a sample that are known without the model, as JSON values."""
        threshold, uncertain = self.thresholds
        records = [[record.prompt, record.named, record.unnamed] for record in self.records]
        return {
            "seediff_jax_version": seediff_jax.__version__,
            "model": self.model,
            "revision": self.revision,
            "tokenizer": self.tokenizer,
            "loras": [list(pair) for pair in self.loras],
            "dtype": self.dtype,
            "capture": self.capture,
            "rng_seed": self.rng_seed,
            "num_steps": self.num_steps,
            "guidance_scale": self.guidance_scale,
            "guidance_rescale": self.guidance_rescale,
            "negative_prompt": self.negative_prompt,
            "height": self.height,
            "width": self.width,
            "mask_method": self.mask_config.method,
            "affinity": self.mask_config.affinity,
            "power": self.mask_config.resolved_power,
            "background": self.mask_config.background,
            "threshold": threshold,
            "uncertain": uncertain,
            "refine_iterations": self.refine_iterations,
            "dilations": list(self.dilations),
            "refined_threshold": self.refined_threshold,
            "num_prompts": len(records),
            "prompts_sha256": hashlib.sha256(json.dumps(records).encode()).hexdigest(),
            "class_names": list(self.class_names),
        }

    def settings_with(self, model: Model) -> dict[str, Any]:
        """All settings of a sample, as JSON values: those known before and the model's."""
        config_hash = hashlib.sha256(repr(model.config).encode()).hexdigest()
        return self.settings() | {
            "scheduler": model.scheduler_config.kind,
            "prediction_type": model.scheduler_config.prediction_type,
            "weights_hash": model.weights_hash,
            "config_hash": config_hash,
        }


def make_records(
    model: str,
    prompts: str | None,
    classes: Sequence[str] | None,
    template: str | None,
    unnamed_classes: Sequence[str] = (),
) -> tuple[tuple[PromptRecord, ...], tuple[str, ...]]:
    """Makes the prompts of a run, from a file or from a template, and the run's class list.

    Args:
        model: name of the model; "shapes" brings its own classes.
        prompts: name of a prompt file, see `read_prompts`; None fills the template.
        classes: names of classes, or the single name of a list of CLASS_LISTS.
        template: text with {class}; None is DEFAULT_TEMPLATE.
        unnamed_classes: further classes of every prompt, which no prompt names.

    Returns:
        The records, and the classes of the run in the order of their ids: the first official list
        that holds all of them, or else `classes` and what the records name beside, in order.

    Raises:
        ValueError: no prompts can be made of this, or they have too many classes for label maps.
        FileNotFoundError: there is no such prompt file.
    """
    if classes is not None and len(classes) == 1:
        classes = CLASS_LISTS.get(classes[0], classes)
    if prompts is not None:
        if template is not None:
            raise ValueError("a template makes prompts and a prompt file has them; give one")
        records = read_prompts(prompts, classes)
    elif classes is None and model != "shapes":
        raise ValueError(f"model {model!r} needs a prompt file (--prompts) or --classes")
    else:
        records = make_prompts(classes or SHAPES_CLASSES, template or DEFAULT_TEMPLATE)
    if unnamed_classes:
        records = [_with_unnamed(record, unnamed_classes) for record in records]
    mentioned = [*(classes or ()), *(name for record in records for name in record.classes)]
    names = _official_list(tuple(dict.fromkeys(mentioned)))
    if len(names) >= IGNORE_INDEX:
        raise ValueError(f"{len(names)} classes, but a mask has ids for {IGNORE_INDEX - 1}")
    return tuple(records), names


def _with_unnamed(record: PromptRecord, names: Sequence[str]) -> PromptRecord:
    require_unnamed(record.prompt, record.classes, names)
    return PromptRecord(record.prompt, (*record.classes, *names), (*record.unnamed, *names))


def _official_list(names: tuple[str, ...]) -> tuple[str, ...]:
    return next((known for known in CLASS_LISTS.values() if set(names) <= set(known)), names)
