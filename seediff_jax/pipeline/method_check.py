"""Checks, before sampling, that what a model records suits a method and is not too large."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from seediff_jax.errors import UserError, shown
from seediff_jax.masks.config import METHODS, MaskConfig, method_of
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.masks.own_methods import method_name
from seediff_jax.models.capture import check_capture, kept_bytes, layer_sizes
from seediff_jax.models.model import Model
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.noise import latent_size
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.step import make_steps
from seediff_jax.settings import static_part

_MOST_KEPT = 2**32


def require_method(
    model: Model, masks: MaskConfig, sampling: SamplingConfig | SegmentConfig
) -> None:
    """Checks that the model records what a method needs, and tries out a user's own method.

    The trial is on random attention, in the shapes of the model, whose weights are not needed.

    Raises:
        UserError: the model lacks layers, or cannot make images of this size; or the function
            cannot be imported, raises an error, or returns something else than finite float32
            `[H, W]` in [0, 1].
    """
    for method in masks.methods:
        require_capture(model, method)
    size = latent_size(model, sampling.height, sampling.width)
    for one in static_part(masks).each():
        if one.method in METHODS:
            continue
        capture, sizes = model.capture, layer_sizes(model.unet_config, size)
        levels = tuple(sizes[name] for name in capture.self_layers)
        seed = min(levels or (sizes[capture.cross_layers[0]],))
        image = tuple(model.vae_config.downsampling * side for side in size)
        try_out(one, (len(capture.cross_layers), *seed), levels, image)


def require_capture(model: Model, method: str) -> None:
    """Raises a UserError unless the model records the attention that a method needs."""
    needed = ("cross_layers",)
    if method_of(method).needs_self_attention:
        needed += ("self_layers",)
    for name in needed:
        if not getattr(model.capture, name):
            raise UserError(
                f"the model's capture has no {name}; masks by {method_name(method)!r} need at "
                "least one of them: add it, or choose the capture 'published'"
            )


def require_kept_fits(model: Model, sampling: SamplingConfig, images: int, columns: int) -> None:
    """Raises a UserError where `capture.kept_layers` would take more than 4 GiB.

    `columns` are those of the cross-attention of each of the `images`.
    """
    capture, unet = model.capture, model.unet_config
    if not capture.kept_layers:
        return
    size = latent_size(model, sampling.height, sampling.width)
    check_capture(capture, unet, size[0])
    calls = len(make_steps(model.scheduler_config, sampling.num_steps).timesteps)
    total = images * calls * kept_bytes(capture, unet, size, columns)
    if total > _MOST_KEPT:
        raise UserError(
            f"capture.kept_layers would take {total / 2**30:.1f} GiB for images={images} and "
            f"{calls} UNet calls, at most {_MOST_KEPT / 2**30:.0f} GiB are kept; name fewer or "
            "coarser layers, or use fewer images or steps"
        )


@functools.lru_cache(maxsize=8)
def try_out(
    masks: MaskConfig,
    cross: tuple[int, int, int],
    levels: tuple[tuple[int, int], ...],
    image_size: tuple[int, int],
) -> None:
    """Makes the soft masks of two classes of random attention by a user's own method.

    Args:
        masks: names the function.
        cross: number of layers, and height and width of the seed level.
        levels: height and width of each level of self-attention.
        image_size: height and width of the image.

    Raises:
        UserError: as `require_method`.
    """
    layers, height, width = cross
    shapes = (
        jax.ShapeDtypeStruct((2, layers, height * width), jnp.float32),
        {side: jax.ShapeDtypeStruct((side * wide,) * 2, jnp.float32) for side, wide in levels},
    )

    @jax.jit
    def make(cross_attention, self_attention):
        def one_class(column):
            return class_soft_mask(column, self_attention, image_size, masks)

        return jax.vmap(one_class)(cross_attention)

    rng = np.random.default_rng(0)
    try:
        jax.eval_shape(make, *shapes)
        drawn = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
        soft_masks = np.asarray(make(*drawn))
    except UserError:
        raise
    except Exception as error:  # whatever a function of the user raises
        reason = shown(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}", 300)
        raise UserError(
            f"the method {method_name(masks.method)} cannot be used, it fails under jax.jit and "
            f"jax.vmap with {reason}"
        ) from error
    low, high = soft_masks.min(), soft_masks.max()
    if not (np.isfinite([low, high]).all() and -1e-5 <= low and high <= 1 + 1e-5):
        raise UserError(
            f"the method {method_name(masks.method)} returns values from {low:g} to {high:g} of "
            "random attention; soft masks must lie in 0..1"
        )
