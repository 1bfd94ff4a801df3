"""PairSettings: everything that images and masks depend on beside the model, prompts and classes.

Checked once, when it is made. What is static makes other compiled programs; the scalars are traced.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from flax import struct

from seediff_jax.arrays import Array
from seediff_jax.guidance import IMAGE_SIZE, SizeCondition
from seediff_jax.masks import PUBLISHED_THRESHOLDS, MaskConfig
from seediff_jax.model import Model
from seediff_jax.noise import latent_size
from seediff_jax.sampling import SampleConfig

REFINED_THRESHOLD = 0.8
"""Published threshold of a mask after refinement (method section 6)."""


@struct.dataclass
class PairScalars:
    """The settings that are traced, so that other values run the same programs.

    Attributes:
        rng_seed: uint32 `[]`.
        guidance_scale: float32 `[]`.
        guidance_rescale: float32 `[]`, or None for none, which is another program.
        threshold: float32 `[]`, as are the next two; see `make_masks`.
        uncertain: equal to the last threshold, it ignores nothing.
        refined_threshold: takes the place of `threshold` for refined masks.
    """

    rng_seed: Array
    guidance_scale: Array
    guidance_rescale: Array | None
    threshold: Array
    uncertain: Array
    refined_threshold: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Settings of `generate`, which documents them; `dry_run` is `SampleConfig.dry`.

    Raises:
        ValueError: a value is out of range.
    """

    rng_seed: int = 0
    num_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    size_condition: SizeCondition = IMAGE_SIZE
    mask_config: MaskConfig = MaskConfig()
    threshold: float | None = None
    uncertain: float | None = None
    refine_iterations: int = 0
    dilations: Sequence[int] = (1,)
    refined_threshold: float = REFINED_THRESHOLD
    dry_run: bool = False

    def __post_init__(self):
        object.__setattr__(self, "dilations", tuple(self.dilations))
        require_range("rng_seed", self.rng_seed, 2**32 - 1)
        require_range("refine_iterations", self.refine_iterations, 2**31 - 1)
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} must be 0 or more and finite; up to 1 the "
                "prompt alone is denoised"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ValueError(f"guidance_rescale={self.guidance_rescale} must lie in 0..1")
        self.size_condition.require_valid()
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(
                f"dilations={list(self.dilations)} must hold at least one distance, each 1 or more"
            )
        SampleConfig(num_steps=self.num_steps)
        self._require_thresholds()

    @property
    def thresholds(self) -> tuple[float, float | None]:
        """`threshold` and `uncertain` as they are applied, with their published values."""
        if self.threshold is not None:
            return self.threshold, self.uncertain
        threshold, published = PUBLISHED_THRESHOLDS[self.mask_config.method]
        return threshold, published if self.uncertain is None else self.uncertain

    def scalars(self) -> PairScalars:
        """The settings that are traced."""
        threshold, uncertain = self.thresholds
        last = self.refined_threshold if self.refine_iterations else threshold
        return PairScalars(
            rng_seed=np.uint32(self.rng_seed),
            guidance_scale=np.float32(self.guidance_scale),
            guidance_rescale=np.float32(self.guidance_rescale) if self.guidance_rescale else None,
            threshold=np.float32(threshold),
            uncertain=np.float32(last if uncertain is None else uncertain),
            refined_threshold=np.float32(self.refined_threshold),
        )

    def sample_config(self, model: Model, *, capture: bool = True) -> SampleConfig:
        """The static settings of the sampling program.

        Raises:
            ValueError: the model cannot make images of this size.
        """
        return SampleConfig(
            num_steps=self.num_steps,
            use_guidance=self.guidance_scale > 1,
            capture=capture,
            latent_size=latent_size(model, self.height, self.width),
            dry=self.dry_run,
        )

    def _require_thresholds(self) -> None:
        threshold, uncertain = self.thresholds
        applied = {"threshold": threshold}
        if self.refine_iterations:
            applied["refined_threshold"] = self.refined_threshold
        for name, value in applied.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie in 0..1")
        last_name, last = applied.popitem()
        if uncertain is not None and not 0 <= uncertain <= last:
            raise ValueError(f"uncertain={uncertain} must lie in 0..{last}, the {last_name}")


def require_range(name: str, value: int, last: int) -> None:
    """Raises a ValueError unless `value` is a whole number in 0..`last`."""
    if not isinstance(value, (int, np.integer)) or not 0 <= value <= last:
        raise ValueError(f"{name}={value!r} must be a whole number in 0..{last}")
