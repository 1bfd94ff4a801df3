"""Settings of the two programs of a run, and how devices share them. Loads no JAX.

rng_seed, SamplingConfig, MaskConfig -> PairSettings -> static_part, scalars
"""

import dataclasses
import numbers
import re
from typing import Any, NamedTuple

from seediff_jax.errors import UserError, shown
from seediff_jax.masks.config import MaskConfig, Thresholds
from seediff_jax.sampling.config import SamplingConfig, SizeCondition
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.settings import static_part

DATA, MODEL = "data", "model"
"""Axes of the mesh: samples, and the weights of models that do not fit on one device."""

PARTITIONS = ("shard_map", "pmap")
"""How JAX can run the programs on all devices."""

LAST_SEED, LAST_INDEX = 2**32 - 1, 2**31 - 1
"""Seeds are uint32, and the indices of samples are int32."""


class MeshShape(NamedTuple):
    """Devices along each axis of the mesh; data = -1 means all that the model axis leaves."""

    data: int = -1
    model: int = 1


ALL_DEVICES = MeshShape()
"""Every device makes samples of its own."""


def parse_mesh(text: str) -> MeshShape:
    """Reads "data:-1,model:2"; an axis that is not named has its default.

    Raises:
        UserError: the text has another form or axis.
    """
    sizes = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(rf"({DATA}|{MODEL}):(-1|[1-9]\d{{0,8}})", part.strip())
        if match is None or match[1] in sizes or match[1] == MODEL and match[2] == "-1":
            raise UserError(
                f"mesh={shown(text, 200)!r} must be like {DATA}:-1,{MODEL}:2, where -1 stands for "
                f"all devices that are left, on the {DATA} axis alone"
            )
        sizes[match[1]] = int(match[2])
    return MeshShape(**sizes)


class PairScalars(NamedTuple):
    """The settings that are traced, so that other values run the same programs.

    Attributes:
        rng_seed: uint32 `[]`.
        guidance_scale: float32 `[]`.
        guidance_rescale: float32 `[]`, or None for none, which is another program.
        size_condition: of Stable Diffusion XL.
        thresholds: of float32 `[]`.
        other_thresholds: those of the methods after the first one.
        timesteps: int32 `[t]` of a SegmentConfig, else None.
    """

    rng_seed: Any
    guidance_scale: Any
    guidance_rescale: Any
    size_condition: SizeCondition
    thresholds: Thresholds
    other_thresholds: tuple[Thresholds, ...] = ()
    timesteps: Any = None


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Everything that images and masks depend on besides the model, prompts and classes.

    Attributes:
        rng_seed: 0 to LAST_SEED.
        sampling: of the images; a SegmentConfig where images are given.
        masks: of the masks.

    Raises:
        UserError: the seed is out of range.
    """

    rng_seed: int = 0
    sampling: SamplingConfig | SegmentConfig = SamplingConfig()
    masks: MaskConfig = MaskConfig()

    def __post_init__(self):
        require_range("rng_seed", self.rng_seed, LAST_SEED)

    @property
    def static(self) -> "PairSettings":
        """The settings with traced ones at their defaults: equal results run the same programs."""
        return PairSettings(0, static_part(self.sampling), static_part(self.masks))

    @property
    def of_tiles(self) -> "PairSettings":
        """The settings of tiles, in which no class is left out: the whole image decides that.

        A tile may show a part of an object, which is hard to tell.
        """
        sampling = dataclasses.replace(self.sampling, presence_draws=0)
        masks = dataclasses.replace(self.masks, min_presence=0.0)
        return dataclasses.replace(self, sampling=sampling, masks=masks)

    def scalars(self) -> PairScalars:
        """The settings that are traced."""
        import numpy as np

        rescale = self.sampling.guidance_rescale
        timesteps = None
        if isinstance(self.sampling, SegmentConfig):
            timesteps = np.array(self.sampling.timesteps, np.int32)
        thresholds, *others = (
            Thresholds(*map(np.float32, each.thresholds)) for each in self.masks.each()
        )
        return PairScalars(
            rng_seed=np.uint32(self.rng_seed),
            guidance_scale=np.float32(self.sampling.guidance_scale),
            guidance_rescale=np.float32(rescale) if rescale else None,
            size_condition=self.sampling.size_condition,
            thresholds=thresholds,
            other_thresholds=tuple(others),
            timesteps=timesteps,
        )


def require_range(name: str, value: int, last: int) -> None:
    """Raises a UserError unless `value` is a whole number in 0..`last`."""
    if not isinstance(value, numbers.Integral) or not 0 <= value <= last:
        raise UserError(f"{name}={value!r} must be a whole number in 0..{last}")
