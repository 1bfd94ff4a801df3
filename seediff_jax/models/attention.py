"""Attention: plain, causal, or with a record of its probabilities summed over heads.

    query, key, value -> choose (attention_choice) -> XLA, flash (tpu_attention) or cuDNN

The choice is made for the platform that a program is compiled for, which need not be that of this
process. Logits and softmax are float32 whatever the dtype of the query.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float, typechecked
from seediff_jax.models import tpu_attention
from seediff_jax.models.attention_choice import Layer, Place, choose, flash_blocks

# Most per-head probabilities of an image that a recorded layer holds at once, unless one head has
# more: all heads of 64 x 64 locations are 512 MiB, while walking the heads of a small layer one by
# one only costs time.
_MAX_PROBS = 2**22


def attend_causal(query: Array, key: Array, value: Array) -> Array:
    """Attention of every token to itself and those before it, `[b, l, heads, k]` each."""
    tokens = query.shape[1]
    earlier = jnp.tril(jnp.ones((tokens, tokens), bool))
    probs = _attention_probs(query, key, jnp.where(earlier, 0.0, -jnp.inf))
    return jnp.einsum("bhnm,bmhk->bnhk", probs.astype(value.dtype), value)


def attend(query: Array, key: Array, value: Array, choice: str = "auto") -> Array:
    """Attention of `[b, n, heads, k]` to `[b, m, heads, k]`.

    Args:
        query: `[b, n, heads, k]`.
        key: `[b, m, heads, k]`.
        value: `[b, m, heads, k]`.
        choice: which implementation, one of `attention_choice.ATTENTION`.

    Raises:
        UserError: the requested implementation cannot be used.
    """
    # On a CPU jax.nn.dot_product_attention holds the probabilities of all rows and heads: 2 GiB for
    # two rows of 64 x 64 locations with 8 heads, and three times slower than one head at a time.
    known = {"xla": _dot_product_attention, "cudnn": _cudnn_attention, "flash": tpu_attention.flash}
    by_platform = _by_platform(known, query, key, choice)
    by_platform["cpu"] = _attend_head_by_head
    return jax.lax.platform_dependent(query, key, value, **by_platform)


def place_of(device: Any, is_split: bool = False) -> Place:
    """Returns what `choose` needs to know about a device, which may be an abstract one.

    Args:
        device: a `jax.Device` or `jax.sharding.AbstractDevice`.
        is_split: see Place.
    """
    platform, capability = getattr(device, "platform", None), None
    if platform is None:  # of an abstract device before JAX 0.10.1
        platform = "tpu" if device.device_kind.startswith("TPU") else jax.default_backend()
    if platform == "gpu" and jax.default_backend() == "gpu":
        parts = str(getattr(jax.local_devices()[0], "compute_capability", "")).split(".")
        if all(part.isdigit() for part in parts):  # of ROCm it is a name
            capability = (int(parts[0]), int(parts[1]))
    return Place("cuda" if capability else platform, device.device_kind, capability, is_split)


def current_place() -> Place:
    """The devices of the mesh that is being traced for, or else the default device."""
    mesh = jax.sharding.get_abstract_mesh()
    by_compiler = (name for name in mesh.axis_names if name not in mesh.manual_axes)
    is_split = any(mesh.shape[name] > 1 for name in by_compiler)
    return place_of(mesh.abstract_device or jax.local_devices()[0], is_split)


def _by_platform(
    known: dict[str, Callable[..., Any]],
    query: Array,
    key: Array,
    choice: str,
    *,
    is_recorded: bool = False,
    is_added: bool = False,
) -> dict[str, Callable[..., Any]]:
    """The implementation for every platform, as arguments of `jax.lax.platform_dependent`.

    All are traced; only that of the platform is compiled. A forced choice applies to the platform
    that this is traced for.
    """
    _, n, heads, k = query.shape
    layer = Layer(query.dtype.name, heads, k, n, key.shape[1], is_recorded, is_added)
    current = current_place()
    chosen = {"default": known["xla"]}
    # Always in the same order, so that every process finds the program in the compilation cache.
    for platform in dict.fromkeys(("tpu", "cuda", current.platform)):
        here = platform == current.platform
        place = current if here else Place(platform, is_split=current.is_split)
        name = choose(layer, place, choice if here or choice == "xla" else "auto")
        function = known[name]
        if name == "flash":
            function = functools.partial(function, blocks=flash_blocks(layer, place))
        if name != "xla":
            chosen[platform] = _with_gradient_of(known["xla"], function)
    return chosen


def _with_gradient_of(reference: Callable[..., Any], function: Callable[..., Any]):
    """`function` with the gradient of another one, which computes the same."""
    with_gradient = jax.custom_vjp(function)
    with_gradient.defvjp(
        lambda *inputs: (function(*inputs), inputs),
        lambda inputs, bar: jax.vjp(reference, *inputs)[1](bar),
    )
    return with_gradient


def _cudnn_attention(query: Array, key: Array, value: Array) -> Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


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
    choice: str = "auto",
    total: Float[Array, "b n m"] | None = None,
) -> tuple[Float[Array, "b n heads k"], Float[Array, "b n m"]]:
    """Attention that also returns its probabilities, summed over the heads.

    Args:
        query: as of `attend`.
        key: as of `attend`.
        value: as of `attend`.
        choice: as of `attend`; cuDNN does not return probabilities and leaves this to XLA.
        total: float32, what the head sum is added to, such as that of earlier calls.

    Returns:
        The attended values in the dtype of `value`, and the head sum in float32: without `total`,
        every row of it sums to the number of heads.

    Raises:
        UserError: the requested implementation cannot be used.
    """
    known = {"xla": _record_by_groups, "flash": tpu_attention.flash_recording}
    inputs = (query, key, value) if total is None else (query, key, value, total)
    options = {"is_recorded": True, "is_added": total is not None}
    by_platform = _by_platform(known, query, key, choice, **options)
    return jax.lax.platform_dependent(*inputs, **by_platform)


def attend_keeping_heads(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Attention of `[b, n, heads, k]` and its probabilities, float32 `[b, heads, n, m]`, by XLA."""
    probs = _attention_probs(query, key)
    return jnp.einsum("bhnm,bmhk->bnhk", probs.astype(value.dtype), value), probs


def _record_by_groups(
    query: Array, key: Array, value: Array, total: Array | None = None
) -> tuple[Array, Array]:
    """Walks the heads in groups, so that their probabilities never exist together."""
    b, n, heads, k = query.shape
    m = key.shape[1]
    fits = (g for g in range(1, heads) if heads % g == 0 and heads // g * n * m <= _MAX_PROBS)
    groups = next(fits, heads)

    def grouped(x):
        return jnp.moveaxis(x.reshape(b, -1, groups, heads // groups, k), 2, 0)

    def attend_group(head_sum, group):
        query, key, value = group
        out, probs = attend_keeping_heads(query, key, value)
        return head_sum + probs.sum(axis=1), out

    # The first group starts the sum: under jax.shard_map a loop may not start from a constant if
    # its later values differ between devices.
    walked = (grouped(query), grouped(key), grouped(value))
    head_sum, first = attend_group(0.0, [x[0] for x in walked])
    head_sum, others = jax.lax.scan(attend_group, head_sum, [x[1:] for x in walked])
    out = jnp.concatenate([first[None], others])
    out = jnp.moveaxis(out, 0, 2).reshape(b, n, heads, k)
    return out, head_sum if total is None else total + head_sum


class Attention(nn.Module):
    """Multi-head attention that can return the head-summed probabilities of its last rows."""

    num_heads: int
    dtype: DTypeLike
    use_bias: bool = False
    choice: str = "auto"

    keeps_heads: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array,
        recorded_rows: int = 0,
        watched: Array | None = None,
        total: Array | None = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """`[b, n, c]` attends to `[b, m, d]`.

        Args:
            x: queries, `[b, n, c]`.
            context: keys and values, `[b, m, d]`; `x` itself for self-attention.
            recorded_rows: how many rows, from the end of the batch, to record.
            watched: `[recorded_rows, o, d]`, further keys for the recorded rows: their attention is
                recorded as if there were no other keys, and the output does not depend on it.
            total: `[recorded_rows, n, m]`, what the record is added to; not with `keeps_heads`.

        Returns:
            `[b, n, c]`, and the records: none, or float32 `[recorded_rows, n, m]`, or this and
            `[recorded_rows, n, o]`; with `keeps_heads` they have an axis of heads before n, and are
            not summed.
        """
        record = functools.partial(attend_recording, choice=self.choice)
        if self.keeps_heads:
            record = attend_keeping_heads

        def dense(name):
            return nn.Dense(x.shape[-1], use_bias=self.use_bias, dtype=self.dtype, name=name)

        def heads(y):
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        to_key = dense("to_k")
        query, value = heads(dense("to_q")(x)), heads(dense("to_v")(context))
        key = heads(to_key(context))
        plain = x.shape[0] - recorded_rows
        outs, records = [], []
        if plain:
            outs.append(attend(query[:plain], key[:plain], value[:plain], self.choice))
        if recorded_rows:
            rows = (x[plain:] for x in (query, key, value))
            out, probs = record(*rows) if total is None else record(*rows, total=total)
            outs.append(out)
            records.append(probs)
        if recorded_rows and watched is not None:
            key = heads(to_key(watched))
            records.append(record(query[plain:], key, key)[1])
        out = jnp.concatenate(outs).reshape(x.shape)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="to_out_0")(out), tuple(records)
