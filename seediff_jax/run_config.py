"""RunConfig: everything that a run of the driver is asked to make, checked before any model work.

    PromptPlan -> RunConfig -> the settings that pin its samples down

Host only. The plan says which prompt image i shows, and the image depends on `rng_seed` and i
alone; so the number of images, the batch size and the folder are no settings of a sample.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import seediff_jax
from seediff_jax.masks import PUBLISHED_THRESHOLDS, MaskConfig
from seediff_jax.model import Model
from seediff_jax.pipeline import REFINED_THRESHOLD
from seediff_jax.prompt_plan import PromptPlan
from seediff_jax.prompts import PromptRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to generate, with which settings, and where to put it.

    Attributes:
        plan: the prompts with their classes, and the order in which the images show them.
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

    plan: PromptPlan
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
        return self.plan.record(index)

    def settings(self) -> dict[str, Any]:
        """Settings of a sample that are known without the model, as JSON values."""
        threshold, uncertain = self.thresholds
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
            **self.plan.settings(),
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
