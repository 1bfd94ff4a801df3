"""Attention on TPUs: one Pallas kernel that keeps logits and probabilities in on-chip memory.

    query block, keys and values of a head -> logits -> softmax -> attended values
                                                           |
                            float32 sum over the heads  <--+   (only where it is recorded)

Every block of queries sees all keys of a head at once, so the softmax needs no second pass and
nothing per head goes to HBM. Arrays are `[b, heads, k, n]` here: tokens along the lanes of a
register, because heads are 40 to 160 wide and would be padded to 128 and 256 there.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from seediff_jax.array_typing import Array
from seediff_jax.models.attention_choice import Blocks

_LANES = 128


def flash(
    query: Array, key: Array, value: Array, *, blocks: Blocks, interpret: bool = False
) -> Array:
    """Attention of `[b, n, heads, k]` to `[b, m, heads, k]`, of any lengths.

    Logits, softmax and sums are float32.

    Args:
        query: `[b, n, heads, k]`.
        key: `[b, m, heads, k]`.
        value: `[b, m, heads, k]`.
        blocks: from `flash_blocks`.
        interpret: whether to run the kernel as plain JAX operations, on any platform.
    """
    return _attend(query, key, value, blocks, False, interpret)[0]


def flash_recording(
    query: Array,
    key: Array,
    value: Array,
    total: Array | None = None,
    *,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """As `flash`; also returns `total` plus the head sum of the probabilities, float32 `[b, n, m]`.

    With `blocks.adds` the result takes the place of `total`.
    """
    if total is None or blocks.adds:
        return _attend(query, key, value, blocks, True, interpret, total)
    out, head_sum = _attend(query, key, value, blocks, True, interpret)
    return out, total + head_sum


def _attend(query, key, value, blocks, is_recorded, interpret, total=None):
    # The scale depends on the width of the queries, which the padding below does not change.
    query, key, value = (x.transpose(0, 2, 3, 1) for x in (query, key, value))
    keys = key.shape[-1]
    padding = ((0, 0), (0, 0), (0, 0), (0, -keys % _LANES))
    key, value = (jnp.pad(x, padding) for x in (key, value))
    out, *sums = _call(query, key, value, keys, blocks, is_recorded, interpret, total)
    return out.transpose(0, 3, 1, 2), *(head_sum[..., :keys] for head_sum in sums)


def _call(query, key, value, keys, blocks, is_recorded, interpret, total):
    b, heads, width, n = query.shape
    m, rows = key.shape[-1], blocks.queries
    count = pl.cdiv(n, rows)
    # Along the innermost axis the large block stays in memory: the sum, or the keys of a head.
    grid = (b, count, heads) if is_recorded else (b, heads, count)

    def block(shape, place):
        def swapped(i, j, head):
            return place(i, head, j)

        return pl.BlockSpec(shape, swapped if is_recorded else place)

    some = block((1, 1, width, rows), lambda i, head, j: (i, head, 0, j))
    if blocks.all_heads:
        whole = block((1, heads, width, m), lambda i, head, j: (i, 0, 0, 0))
    else:
        whole = block((1, 1, width, m), lambda i, head, j: (i, head, 0, 0))
    # Under jax.shard_map results vary over the devices as the queries do. JAX 0.10.0 renamed this.
    kind = jax.typeof(query)
    name = "manual_axis_type" if hasattr(kind, "manual_axis_type") else "vma"
    result = functools.partial(jax.ShapeDtypeStruct, **{name: getattr(kind, name)})
    inputs, in_specs = [query, key, value], [some, whole, whole]
    shapes, specs = [result(query.shape, value.dtype)], [some]
    if is_recorded:
        shapes.append(result((b, n, m), jnp.float32))
        specs.append(block((1, rows, m), lambda i, head, j: (i, j, 0)))
    if total is not None:
        inputs.append(total)
        in_specs.append(specs[1])
    readings = count if is_recorded and not blocks.all_heads else 1
    itemsize = query.dtype.itemsize
    sums = is_recorded + (total is not None)
    moved = itemsize * b * heads * width * 2 * (n + readings * m) + 4 * b * n * m * sums
    return pl.pallas_call(
        functools.partial(
            _kernel,
            scale=width**-0.5,
            keys=keys,
            all_heads=blocks.all_heads,
            adds=total is not None,
        ),
        grid=grid,
        in_specs=in_specs,
        out_specs=specs,
        out_shape=shapes,
        input_output_aliases={3: 1} if total is not None else {},
        cost_estimate=pl.CostEstimate(
            flops=4 * b * heads * n * m * width,
            transcendentals=b * heads * n * m,
            bytes_accessed=moved,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=blocks.vmem_limit,
        ),
        interpret=interpret,
    )(*inputs)


def _kernel(query_ref, key_ref, value_ref, *refs, scale, keys, all_heads, adds):
    """One block of queries of one head: `[k, rows]`, `[k, m]`, `[k, m]` -> `[k, rows]`."""
    totals, (out_ref, *sum_refs) = refs[:adds], refs[adds:]
    head = pl.program_id(2)  # the head if the sum is recorded; otherwise unused
    own = head if all_heads else 0
    query, key, value = query_ref[0, 0], key_ref[0, own], value_ref[0, own]
    logits = _dot(query, key, 0) * scale
    if keys < key.shape[1]:
        column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(column < keys, logits, -jnp.inf)
    weights = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    probs = weights * (1 / jnp.sum(weights, axis=1, keepdims=True))
    out_ref[0, 0] = _dot(value, probs.astype(value.dtype), 1).astype(out_ref.dtype)
    if sum_refs:
        _add_to(sum_refs[0], probs, head, *totals)


def _add_to(sum_ref, probs: Array, head: Array, total_ref=None) -> None:
    @pl.when(head == 0)
    def _():
        sum_ref[0] = probs if total_ref is None else total_ref[0] + probs

    @pl.when(head > 0)
    def _():
        sum_ref[0] += probs


def _dot(a: Array, b: Array, axis: int) -> Array:
    """Sums products over an axis of both: 0 is `a.T @ b`, 1 is `a @ b.T`."""
    axes = (((axis,), (axis,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
