"""From recorded attention to the soft mask of a class: SeeDiff, two baselines, users' own methods.

    cross_attention [layers, n0], self_attention {side: [n, n]}, image_side -> soft mask [H, W]

All methods have this form and read the same recorded attention, so methods can be compared on one
sampling run. Written for one example and one class; `jax.vmap` adds classes and batch.
"""

import inspect
from collections.abc import Mapping

import jax.numpy as jnp

from seediff_jax.array_typing import Array, Float, typechecked
from seediff_jax.errors import UserError
from seediff_jax.masks.config import METHODS, MaskConfig, method_of
from seediff_jax.masks.expansion import expand, require_levels, spread
from seediff_jax.masks.image_ops import grid_size, min_max, resize_cubic
from seediff_jax.masks.own_methods import load_method, method_name
from seediff_jax.masks.seeds import find_seeds, seed_map


@typechecked
def class_soft_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
    config: MaskConfig,
) -> Float[Array, "H W"]:
    """Makes the soft mask of one class by the method that `config` names.

    The function of a method takes the first three arguments. Of the settings it gets `affinity`,
    `power` (where it is not None) and `background` if it has keyword-only parameters of these
    names. It has to work under `jax.jit` and `jax.vmap`, and returns float32 `[H, W]` in [0, 1].

    Args:
        cross_attention: float32, summed over heads: the recorded layers of the seed level.
        self_attention: float32 `[n, n]` of each level, keyed by side or height, see `expand`.
        image_side: side of the mask in pixels, or its height and width.
        config: the method and its options.

    Raises:
        UserError: the function cannot be imported, or returns something else.
    """
    method = config.only_method
    function = load_method(method_of(method).function)
    settings = {"affinity": config.affinity, "background": config.background}
    settings |= {} if config.power is None else {"power": config.power}
    parameters = inspect.signature(function).parameters.values()
    taken = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    options = {name: value for name, value in settings.items() if name in taken}
    soft = function(cross_attention, self_attention, image_side, **options)
    form = (getattr(soft, "dtype", type(soft).__name__), *getattr(soft, "shape", ()))
    needed = (image_side, image_side) if isinstance(image_side, int) else tuple(image_side)
    if form != (jnp.float32, *needed):
        raise UserError(
            f"the method {method_name(method)} returns {form[0]} {list(form[1:])}; expected "
            f"float32 {list(needed)}"
        )
    return jnp.asarray(soft)


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
        affinity: one of AFFINITIES, see `spread`.
        power: applications of the affinity at every level.
        background: whether finer levels remove what resembles the background.

    Raises:
        UserError: unknown affinity, power below 1, or sizes that do not match the sides.
    """
    seeds = find_seeds(seed_map(cross_attention))
    finest = expand(seeds, self_attention, affinity=affinity, power=power, background=background)
    return min_max(resize_cubic(finest, image_side))


@typechecked
def cross_attention_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
) -> Float[Array, "H W"]:
    """Upsamples the seed map: the start of DAAM and DiffuMask (method section 8)."""
    del self_attention
    size = grid_size(cross_attention.shape[-1], image_side)
    return min_max(resize_cubic(seed_map(cross_attention).reshape(size), image_side))


@typechecked
def exponentiation_mask(
    cross_attention: Float[Array, "layers n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    image_side: int | tuple[int, int],
    *,
    power: int = METHODS["exponentiation"].published.power,
) -> Float[Array, "H W"]:
    """Spreads the mean cross-attention by a power of self-attention (Dataset Diffusion, 2023).

    The level used is the one after the seed level, or the seed level if there is no other. Dataset
    Diffusion averages the self-attention of all layers there; this reads the recorded one.
    """
    sizes = require_levels(cross_attention.shape[-1], self_attention)
    size = sizes[:2][-1]
    field = resize_cubic(jnp.mean(cross_attention, axis=0).reshape(sizes[0]), size)
    field = spread(field.ravel(), self_attention[size[0]], affinity="transition", power=power)
    return min_max(resize_cubic(min_max(field).reshape(size), image_side))
