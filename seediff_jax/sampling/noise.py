"""The noise of samples: one key per sample, derived from the seed and the sample's index alone.

The noise does not depend on the batch, the device or JAX's settings: it is always partitionable
threefry in float32 without a seed offset, whatever `jax.config` and the environment variables say.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from seediff_jax.array_typing import Array
from seediff_jax.errors import UserError
from seediff_jax.models.model import Model

# Cannot equal the index of a sample, which is an int32.
_NO_INDEX = np.uint32(2**32 - 1)


def latent_size(
    model: Model, height: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Height and width of the latents of an image.

    Args:
        model: the model.
        height: of the image in pixels; None is the side that the model was trained for.
        width: likewise.

    Raises:
        UserError: the networks cannot halve the image as often as they have levels.
    """
    factor = model.vae_config.downsampling
    multiple = factor * 2 ** (len(model.unet_config.block_out_channels) - 1)
    sizes = [model.unet_config.sample_size] * 2
    for axis, (name, pixels) in enumerate({"height": height, "width": width}.items()):
        if pixels is None:
            continue
        if not isinstance(pixels, (int, np.integer)) or pixels < 1 or pixels % multiple:
            raise UserError(
                f"{name}={pixels!r} must be a multiple of {multiple} pixels, which this model's "
                "networks halve to whole numbers"
            )
        sizes[axis] = int(pixels) // factor
    return sizes[0], sizes[1]


def initial_latents(
    model: Model, rng_seed: Array, indices: Array, size: tuple[int, int] | None = None
) -> Array:
    """Draws the noise that sampling starts from, float32 `[b, h, w, c]`.

    `rng_seed` is uint32 `[]`, `indices` are int32 `[b]`; h and w are by default those of the
    UNet's config.
    """
    return draw_rows(jax.random.normal, seed_key(rng_seed), indices, _latent_shape(model, size))


def step_noise(
    model: Model,
    rng_seed: Array,
    indices: Array,
    call: Array,
    size: tuple[int, int] | None = None,
) -> Array:
    """Draws the fresh noise of UNet call number `call`, independent of `initial_latents`."""
    key = jax.random.fold_in(jax.random.fold_in(seed_key(rng_seed), _NO_INDEX), call)
    return draw_rows(jax.random.normal, key, indices, _latent_shape(model, size))


def seed_key(rng_seed: Array) -> Array:
    """Makes the threefry key of a seed, uint32 `[]`."""
    # jax.random.key would add jax_random_seed_offset, and 64-bit seeds fill both words.
    seed = jnp.asarray(rng_seed, jnp.uint32)
    return jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(seed), seed]), impl="threefry2x32")


def draw_rows(
    distribution: Callable[..., Array], key: Array, indices: Array, shape: tuple[int, ...]
) -> Array:
    """Draws one row per sample from a distribution of `jax.random`, float32 `[b, *shape]`."""

    def draw(index):
        return distribution(jax.random.fold_in(key, index), shape, jnp.float32)

    with jax.threefry_partitionable(True):
        return jax.vmap(draw)(jnp.asarray(indices, jnp.int32))


def _latent_shape(model: Model, size: tuple[int, int] | None) -> tuple[int, int, int]:
    return (*(size or latent_size(model)), model.unet_config.in_channels)
