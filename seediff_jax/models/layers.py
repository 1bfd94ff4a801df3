"""Building blocks of the UNet and the VAE; submodule names are those of diffusers' checkpoints.

Arrays are NHWC. Norms, attention logits and softmax are float32 whatever `dtype`.
"""

import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float, Real, typechecked


@typechecked
def timestep_embedding(
    timesteps: Real[Array, " b"], width: int, *, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "b width"]:
    """Sinusoidal embedding of timesteps, 0..999 (DDPM, arXiv 2006.11239), in float32."""
    half = width // 2
    exponent = jnp.arange(half, dtype=jnp.float32) * (-math.log(10000) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate((cos, sin) if flip_sin_to_cos else (sin, cos), axis=-1)


def group_norm(x: Array, num_groups: int, epsilon: float, name: str) -> Array:
    """GroupNorm over the last axis in float32, returned in the dtype of `x`; call while compact."""
    norm = nn.GroupNorm(num_groups, **_norm_options(x, epsilon, name))
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, epsilon: float, name: str) -> Array:
    """LayerNorm over the last axis in float32, returned in the dtype of `x`; call while compact."""
    norm = nn.LayerNorm(**_norm_options(x, epsilon, name))
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def _norm_options(x: Array, epsilon: float, name: str) -> dict[str, Any]:
    """For bfloat16 only, computes the variance in one pass, mean(x^2) - mean(x)^2.

    One pass is fused with the computation of `x`; a second one reads it from memory again. The
    error is a few units of 2^-24 mean^2 where sums are trees, as on TPUs and GPUs; rounding to
    bfloat16 has added 2^-20 mean^2 or more.
    """
    is_fast = x.dtype == jnp.bfloat16
    return {"epsilon": epsilon, "dtype": jnp.float32, "use_fast_variance": is_fast, "name": name}


def conv3x3(features: int, dtype: DTypeLike, name: str, stride: int = 1) -> nn.Conv:
    """3x3 convolution, one pixel of zero padding on every side."""
    return nn.Conv(features, (3, 3), strides=stride, padding=1, dtype=dtype, name=name)


class ResnetBlock(nn.Module):
    """Two convolutions with an optional time embedding between them, plus the input."""

    channels: int
    num_groups: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, time_embedding: Array | None = None) -> Array:
        """`[b, h, w, c]`, `[b, e]` -> `[b, h, w, channels]`."""
        y = nn.silu(group_norm(x, self.num_groups, self.epsilon, "norm1"))
        y = conv3x3(self.channels, self.dtype, "conv1")(y)
        if time_embedding is not None:
            shift = nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")
            y = y + shift(nn.silu(time_embedding))[:, None, None, :]
        y = nn.silu(group_norm(y, self.num_groups, self.epsilon, "norm2"))
        y = conv3x3(self.channels, self.dtype, "conv2")(y)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + y


class Downsample(nn.Module):
    """Strided 3x3 convolution; `padding` differs between the UNet and the VAE encoder."""

    channels: int
    dtype: DTypeLike
    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` -> `[b, h/2, w/2, channels]`; with (1, 1) padding halves round up."""
        return nn.Conv(
            self.channels, (3, 3), strides=2, padding=self.padding, dtype=self.dtype, name="conv"
        )(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling, cut to a size, then a 3x3 convolution."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, height: int, width: int) -> Array:
        """`[b, h, w, c]` -> `[b, height, width, channels]`; height is 2h, or 2h - 1 if odd."""
        x = x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
        return conv3x3(self.channels, self.dtype, "conv")(x)
