"""Building blocks of the UNet and the VAE; submodule names are those of diffusers' checkpoints.

Arrays are NHWC. Norms, attention logits and softmax are float32 whatever `dtype`.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.arrays import Array, Float, Int, typechecked

# Most per-head probabilities of an image that a recorded layer holds at once, unless one head has
# more: all heads of 64 x 64 locations are 512 MiB, while walking the heads of a small layer one by
# one only costs time.
_MAX_PROBS = 2**22


@typechecked
def timestep_embedding(
    timesteps: Int[Array, " b"] | Float[Array, " b"],
    width: int,
    *,
    flip_sin_to_cos: bool,
    freq_shift: int,
) -> Float[Array, "b width"]:
    """Sinusoidal embedding of timesteps, 0..999 (DDPM, arXiv 2006.11239), in float32."""
    half = width // 2
    exponent = jnp.arange(half, dtype=jnp.float32) * (-math.log(10000) / (half - freq_shift))
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate((cos, sin) if flip_sin_to_cos else (sin, cos), axis=-1)


def group_norm(x: Array, num_groups: int, epsilon: float, name: str) -> Array:
    """GroupNorm over the last axis in float32, returned in the dtype of `x`; call while compact."""
    # Two-pass variance: one-pass loses digits where a group's mean is large.
    norm = nn.GroupNorm(
        num_groups, epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name
    )
    return norm(x.astype(jnp.float32)).astype(x.dtype)


def layer_norm(x: Array, epsilon: float, name: str) -> Array:
    """LayerNorm over the last axis in float32, returned in the dtype of `x`; call while compact."""
    norm = nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
    return norm(x.astype(jnp.float32)).astype(x.dtype)


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


def attend_causal(query: Array, key: Array, value: Array) -> Array:
    """Attention of every token to itself and those before it, `[b, l, heads, k]` each."""
    tokens = query.shape[1]
    earlier = jnp.tril(jnp.ones((tokens, tokens), bool))
    probs = _attention_probs(query, key, jnp.where(earlier, 0.0, -jnp.inf))
    return jnp.einsum("bhnm,bmhk->bnhk", probs.astype(value.dtype), value)


def attend(query: Array, key: Array, value: Array) -> Array:
    """Attention of `[b, n, heads, k]` to `[b, m, heads, k]`, the fastest way of the platform."""
    # On a CPU jax.nn.dot_product_attention holds the probabilities of all rows and heads: 2 GiB for
    # two rows of 64 x 64 locations with 8 heads, and three times slower than one head at a time.
    return jax.lax.platform_dependent(
        query, key, value, cpu=_attend_head_by_head, default=_dot_product_attention
    )


def _dot_product_attention(query: Array, key: Array, value: Array) -> Array:
    # It mixes float32 with the query's dtype, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(query, key, value)


def _attend_head_by_head(query: Array, key: Array, value: Array) -> Array:
    def split(x):
        return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])

    b, n, heads, k = query.shape
    out = jax.lax.map(lambda head: _attend_head(*head), (split(query), split(key), split(value)))
    return out.reshape(b, heads, n, k).swapaxes(1, 2)


@jax.custom_vjp
def _attend_head(query: Array, key: Array, value: Array) -> Array:
    """`[n, k]`, `[m, k]`, `[m, k]` -> `[n, k]`; its gradient keeps no probabilities."""
    return _attend_head_forward(query, key, value)[0]


def _attend_head_forward(query: Array, key: Array, value: Array):
    logits = _matmul(query, key.T) * (1 / math.sqrt(query.shape[-1]))
    largest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    out = (_matmul(weights.astype(value.dtype), value) / total).astype(value.dtype)
    return out, (query, key, value, out, (largest + jnp.log(total)).T)


def _attend_head_backward(residuals, out_bar: Array):
    """FlashAttention's backward pass (Dao et al., arXiv 2205.14135, appendix B.2), untiled."""
    query, key, value, out, log_total = residuals
    scale = 1 / math.sqrt(query.shape[-1])
    # Keys before queries, `[m, n]`: two of the three products below then need no transpose.
    probs = jnp.exp(_matmul(key, query.T) * scale - log_total)
    expected = jnp.sum(out_bar * out, axis=-1, dtype=jnp.float32)
    logits_bar = probs * (_matmul(value, out_bar.T) - expected[None, :]) * scale
    logits_bar, probs = logits_bar.astype(query.dtype), probs.astype(value.dtype)
    bars = _matmul(logits_bar.T, key), _matmul(logits_bar, query), _matmul(probs, out_bar)
    return tuple(bar.astype(x.dtype) for bar, x in zip(bars, (query, key, value), strict=True))


_attend_head.defvjp(_attend_head_forward, _attend_head_backward)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _attention_probs(query: Array, key: Array, bias: Array | None = None) -> Array:
    logits = jnp.einsum("bnhk,bmhk->bhnm", query, key, preferred_element_type=jnp.float32)
    logits = logits * (1 / math.sqrt(query.shape[-1]))
    return jax.nn.softmax(logits if bias is None else logits + bias[None, None], axis=-1)


@typechecked
def attend_recording(
    query: Float[Array, "b n heads k"],
    key: Float[Array, "b m heads k"],
    value: Float[Array, "b m heads k"],
) -> tuple[Float[Array, "b n heads k"], Float[Array, "b n m"]]:
    """Attention that also returns its probabilities, summed over the heads.

    The heads are walked in groups, so their probabilities never exist together.

    Returns:
        The attended values in the dtype of `value`, and the head sum in float32: every row of it
        sums to the number of heads.
    """
    b, n, heads, k = query.shape
    m = key.shape[1]
    fits = (g for g in range(1, heads) if heads % g == 0 and heads // g * n * m <= _MAX_PROBS)
    groups = next(fits, heads)

    def grouped(x):
        return jnp.moveaxis(x.reshape(b, -1, groups, heads // groups, k), 2, 0)

    def attend_group(head_sum, group):
        query, key, value = group
        probs = _attention_probs(query, key)
        out = jnp.einsum("bhnm,bmhk->bnhk", probs.astype(value.dtype), value)
        return head_sum + probs.sum(axis=1), out

    # The first group starts the sum: under jax.shard_map a loop may not start from a constant where
    # it goes on with values that differ between devices.
    walked = (grouped(query), grouped(key), grouped(value))
    head_sum, first = attend_group(0.0, [x[0] for x in walked])
    head_sum, others = jax.lax.scan(attend_group, head_sum, [x[1:] for x in walked])
    out = jnp.concatenate([first[None], others])
    return jnp.moveaxis(out, 0, 2).reshape(b, n, heads, k), head_sum


class Attention(nn.Module):
    """Multi-head attention that can return the head-summed probabilities of its last rows."""

    num_heads: int
    dtype: DTypeLike
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Array, context: Array, recorded_rows: int = 0
    ) -> tuple[Array, Array | None]:
        """`[b, n, c]` attends to `[b, m, d]`.

        Args:
            x: queries, `[b, n, c]`.
            context: keys and values, `[b, m, d]`; `x` itself for self-attention.
            recorded_rows: how many rows, from the end of the batch, to record.

        Returns:
            `[b, n, c]`, and float32 `[recorded_rows, n, m]`, or None where nothing is recorded.
        """

        def heads(name, source):
            y = nn.Dense(x.shape[-1], use_bias=self.use_bias, dtype=self.dtype, name=name)(source)
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        query, key, value = heads("to_q", x), heads("to_k", context), heads("to_v", context)
        plain = x.shape[0] - recorded_rows
        outs, head_sum = [], None
        if plain:
            outs.append(attend(query[:plain], key[:plain], value[:plain]))
        if recorded_rows:
            out, head_sum = attend_recording(query[plain:], key[plain:], value[plain:])
            outs.append(out)
        out = jnp.concatenate(outs).reshape(x.shape)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(out), head_sum
