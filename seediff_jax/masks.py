"""From captured attention to the soft mask of a class: SeeDiff and the baselines beside it.

    cross_attention [layers, n0], self_attention {side: [n, n]} -> soft mask [H, W]

All methods read the same captured attention, so that one sampling run serves a comparison. Written
for one example and one class; `jax.vmap` adds classes and batch.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from seediff_jax.arrays import Array, Float, typechecked
from seediff_jax.expansion import expand, require_affinity, require_levels, spread
from seediff_jax.image_ops import grid_size, min_max, resize_cubic
from seediff_jax.seeds import find_seeds, seed_map

METHODS = ("seediff", "cross_attention", "exponentiation")
"""Names of the ways from attention to a soft mask."""

PUBLISHED_THRESHOLDS = {
    "seediff": (0.5, None),
    "cross_attention": (0.5, None),
    "exponentiation": (0.6, 0.5),
}
"""`threshold` and `uncertain` of `label_map` for each method (method sections 5 and 8)."""

_EXPONENTIATION_POWER = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How a soft mask is made of attention; hashable, a static argument of `jax.jit`.

    Attributes:
        method: one of METHODS.
        affinity: one of AFFINITIES; read by "seediff" only.
        power: applications of the affinity ("seediff") or exponent ("exponentiation"); None is the
            published value of the method, 1 and 4.
        background: refinement by background similarity at finer levels; read by "seediff" only.

    Raises:
        ValueError: unknown method or affinity, or power below 1.
    """

    method: str = "seediff"
    affinity: str = "cosine"
    power: int | None = None
    background: bool = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is not supported; use one of {METHODS}")
        require_affinity(self.affinity, self.resolved_power)

    @property
    def resolved_power(self) -> int:
        """The power that is applied: `power`, or the published one where that is None."""
        if self.power is not None:
            return self.power
        return _EXPONENTIATION_POWER if self.method == "exponentiation" else 1


@typechecked
def class_soft_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
    config: MaskConfig,
) -> Float[Array, "H W"]:
    """Makes the soft mask of one class by the method that `config` names.

    Args:
        cross_attention: float32, summed over heads: the recorded layers of the seed level.
        self_attention: float32 `[n, n]` of each level, keyed by side or height, see `expand`.
        image_side: side of the mask in pixels, or its height and width.
        config: the method and its options.
    """
    if config.method == "cross_attention":
        return cross_attention_mask(cross_attention, image_side)
    if config.method == "exponentiation":
        return exponentiation_mask(
            cross_attention, self_attention, image_side, power=config.resolved_power
        )
    return soft_mask(
        cross_attention,
        self_attention,
        image_side,
        affinity=config.affinity,
        power=config.resolved_power,
        background=config.background,
    )


@typechecked
def soft_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
    *,
    affinity: str = "cosine",
    power: int = 1,
    background: bool = True,
) -> Float[Array, "H W"]:
    """Makes the SeeDiff soft mask of one class, in [0, 1] (method sections 2 to 5).

    The published foreground is above 0.5. The options are those of `expand`.

    Args:
        cross_attention: float32, summed over heads: the recorded layers of the seed level.
        self_attention: float32 `[n, n]` of each level, keyed by side or height, see `expand`.
        image_side: side of the mask in pixels, or its height and width.
        affinity: "cosine" or "transition".
        power: applications of the affinity at every level.
        background: whether finer levels take away what resembles the background.

    Raises:
        ValueError: unknown affinity, power below 1, or sizes that do not match the sides.
    """
    seeds = find_seeds(seed_map(cross_attention))
    finest = expand(seeds, self_attention, affinity=affinity, power=power, background=background)
    return min_max(resize_cubic(finest, image_side))


@typechecked
def cross_attention_mask(
    cross_attention: Float[Array, "layers n0"], image_side: int | tuple[int, int]
) -> Float[Array, "H W"]:
    """Upsamples the seed map: what DAAM and DiffuMask start from (method section 8).

    Raises:
        ValueError: n0 locations make no grid of the proportions of the image.
    """
    size = grid_size(cross_attention.shape[-1], image_side)
    return min_max(resize_cubic(seed_map(cross_attention).reshape(size), image_side))


@typechecked
def exponentiation_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
    *,
    power: int = _EXPONENTIATION_POWER,
) -> Float[Array, "H W"]:
    """Spreads the mean cross-attention by a power of self-attention (Dataset Diffusion, 2023).

    The level used is the one after the seed level, or the seed level where it is the only one.
    Dataset Diffusion averages the self-attention of all layers there; this reads the recorded one.

    Raises:
        ValueError: power below 1, or sizes that do not match the sides.
    """
    sizes = require_levels(cross_attention.shape[-1], self_attention)
    size = sizes[:2][-1]
    field = resize_cubic(jnp.mean(cross_attention, axis=0).reshape(sizes[0]), size)
    field = spread(field.ravel(), self_attention[size[0]], affinity="transition", power=power)
    return min_max(resize_cubic(min_max(field).reshape(size), image_side))
