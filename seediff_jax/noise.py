"""The noise of samples: one key each, from the seed and the sample's index alone.

Where a sample is made, in which batch and on which device, does not matter to its noise.
"""

import jax
import numpy as np

from seediff_jax.arrays import Array
from seediff_jax.model import Model

# Stands where the index of a sample stands, and is none: indices are int32.
_NO_INDEX = 2**32 - 1


def latent_size(
    model: Model, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Height and width of the latents of an image.

    Args:
        model: the model.
        height: of the image in pixels; None is the side that the model was trained for.
        width: the same.

    Raises:
        ValueError: the image cannot be halved as often as the networks do.
    """
    factor = model.vae_config.downsampling
    multiple = factor * 2 ** (len(model.unet_config.block_out_channels) - 1)
    sizes = [model.unet_config.sample_size] * 2
    for axis, (name, pixels) in enumerate({"height": height, "width": width}.items()):
        if pixels is None:
            continue
        if not isinstance(pixels, (int, np.integer)) or pixels < 1 or pixels % multiple:
            raise ValueError(
                f"{name}={pixels!r} must be a multiple of {multiple} pixels, which this model's "
                "networks halve to whole numbers"
            )
        sizes[axis] = int(pixels) // factor
    return sizes[0], sizes[1]


def initial_latents(
    model: Model, rng_seed: Array, indices: Array, size: tuple[int, int] | None = None
) -> Array:
    """Draws the noise that sampling starts from, one key a sample; float32 `[b, h, w, c]`.

    Args:
        model: the model.
        rng_seed: uint32 `[]`.
        indices: int32 `[b]`.
        size: h and w; by default those that the UNet's config says.
    """
    return _draw(model, jax.random.key(rng_seed), indices, size)


def step_noise(
    model: Model,
    rng_seed: Array,
    indices: Array,
    call: Array,
    size: tuple[int, int] | None = None,
) -> Array:
    """Draws the fresh noise of UNet call number `call` for stochastic samplers.

    Like `initial_latents`, and independent of them.
    """
    rng = jax.random.fold_in(jax.random.key(rng_seed), _NO_INDEX)
    return _draw(model, jax.random.fold_in(rng, call), indices, size)


def _draw(model: Model, rng: Array, indices: Array, size: tuple[int, int] | None) -> Array:
    shape = (*(size or latent_size(model)), model.unet_config.in_channels)

    def draw(index):
        return jax.random.normal(jax.random.fold_in(rng, index), shape)

    return jax.vmap(draw)(indices)
