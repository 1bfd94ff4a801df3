"""Inputs of a UNet in addition to latents and text: timestep, guidance, pooled text and sizes.

Stable Diffusion XL (arXiv 2307.01952, section 2.2) adds pooled text and the sizes of the image to
the embedding of the timestep; latent consistency models (arXiv 2310.04378, section 4.2) add the
guidance scale.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float, typechecked
from seediff_jax.errors import UserError
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.layers import timestep_embedding

NUM_SIZES = 6
"""Height and width of the original, top and left of the crop, height and width of the target."""


@struct.dataclass
class Conditions:
    """Inputs that some UNets read besides the text; None if this UNet does not read one.

    Attributes:
        pooled_text: float32 `[b, p]`, from `encode_text_and_pool`.
        sizes: int32 `[b, 6]` in pixels: height and width of the original image, top and left of its
            crop, height and width of the target.
        guidance_scale: float32 `[b]`, 1 is no guidance.
    """

    pooled_text: Array | None = None
    sizes: Array | None = None
    guidance_scale: Array | None = None


NO_CONDITIONS = Conditions()


def zero_conditions(config: UNetConfig, batch_size: int) -> Conditions:
    """The conditions that a UNet with this config reads, all zero."""
    pools, is_guided = config.pooled_text_dim > 0, config.time_cond_proj_dim is not None
    return Conditions(
        pooled_text=jnp.zeros((batch_size, config.pooled_text_dim)) if pools else None,
        sizes=jnp.zeros((batch_size, NUM_SIZES), jnp.int32) if pools else None,
        guidance_scale=jnp.zeros(batch_size) if is_guided else None,
    )


def check_conditions(conditions: Conditions, config: UNetConfig, batch_size: int) -> None:
    """Raises a UserError unless the conditions are those that the UNet reads."""
    wanted = jax.eval_shape(lambda: zero_conditions(config, batch_size))
    for name in ("pooled_text", "sizes", "guidance_scale"):
        given, needed = getattr(conditions, name), getattr(wanted, name)
        given_shape = None if given is None else given.shape
        needed_shape = None if needed is None else needed.shape
        if given_shape != needed_shape:
            raise UserError(
                f"conditions.{name} has shape {given_shape}, this UNet needs {needed_shape}"
            )


class TimeEmbedding(nn.Module):
    """Two dense layers on the sinusoidal embedding of the timestep."""

    config: UNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, timesteps: Array, guidance_scale: Array | None) -> Array:
        """int32 `[b]`, float32 `[b]` -> `[b, 4 * width of the first block]`."""
        config, width = self.config, self.config.block_out_channels[0]
        x = timestep_embedding(
            timesteps, width, flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        ).astype(self.dtype)
        if guidance_scale is not None:
            y = guidance_embedding(guidance_scale, config.time_cond_proj_dim).astype(self.dtype)
            x = x + nn.Dense(width, use_bias=False, dtype=self.dtype, name="cond_proj")(y)
        return _two_layers(x, 4 * width, self.dtype)


class AddedEmbedding(nn.Module):
    """Two dense layers on the pooled text and the sinusoidal embeddings of the sizes."""

    config: UNetConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, pooled_text: Array, sizes: Array) -> Array:
        """float32 `[b, p]`, int32 `[b, 6]` -> `[b, 4 * width of the first block]`."""
        config = self.config
        embedded = timestep_embedding(
            sizes.ravel(),
            config.addition_time_embed_dim,
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        x = jnp.concatenate([pooled_text, embedded.reshape(len(sizes), -1)], axis=-1)
        return _two_layers(x.astype(self.dtype), 4 * config.block_out_channels[0], self.dtype)


@typechecked
def guidance_embedding(guidance_scale: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """Sinusoidal embedding of the guidance scale; 1, no guidance, has the angle 0."""
    angles = 1000 * (guidance_scale - 1)
    return timestep_embedding(angles, width, flip_sin_to_cos=False, freq_shift=1)


def _two_layers(x: Array, width: int, dtype: DTypeLike) -> Array:
    """Call it in a compact method."""
    x = nn.Dense(width, dtype=dtype, name="linear_1")(x)
    return nn.Dense(width, dtype=dtype, name="linear_2")(nn.silu(x))
