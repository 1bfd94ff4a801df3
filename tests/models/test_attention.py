"""Attention against plain NumPy in float64, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from seediff_jax.errors import UserError
from seediff_jax.models import attention, tpu_attention
from seediff_jax.models.attention_choice import Layer, Place, flash_blocks
from tests.helpers.random_models import normal, quick_jit


def reference_attention(query, key, value):
    """Attended values, and probabilities summed over heads, one head at a time."""
    out, head_sum = np.zeros(query.shape), 0
    for head in range(query.shape[2]):
        q, k, v = (np.float64(x[:, :, head]) for x in (query, key, value))
        logits = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        out[:, :, head], head_sum = probs @ v, head_sum + probs
    return out, head_sum


@pytest.fixture(params=[10, 7], ids=["self", "cross"])
def inputs(request):
    keys = request.param
    return 2 * normal(0, 3, 10, 6, 8), 2 * normal(1, 3, keys, 6, 8), normal(2, 3, keys, 6, 8)


@pytest.mark.parametrize(
    "attend", [attention.attend, attention._attend_head_by_head, attention._dot_product_attention]
)
def test_attention_of_every_platform_equals_the_definition(inputs, attend):
    expected, _ = reference_attention(*inputs)
    np.testing.assert_allclose(attend(*inputs), expected, atol=5e-6)  # float32 sums


def test_gradients_agree_between_platforms(inputs):
    weights = normal(4, 3, 10, 6, 8)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: (weights * attend(*x)).sum(), (0, 1, 2)))(*inputs)

    pairs = zip(
        gradients(attention.attend), gradients(attention._dot_product_attention), strict=True
    )
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, atol=1e-5)  # float32 sums of 10 terms


@pytest.mark.parametrize("most", [1, 150, 250, 10**9], ids=["by head", "two", "three", "all heads"])
def test_recorded_attention_equals_the_definition_however_heads_are_grouped(
    inputs, most, monkeypatch
):
    monkeypatch.setattr(attention, "_MAX_PROBS", most)
    out, head_sum = attention.attend_recording(*map(jnp.asarray, inputs))
    expected, expected_sum = reference_attention(*inputs)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    np.testing.assert_allclose(head_sum, expected_sum, atol=5e-6)
    np.testing.assert_allclose(head_sum.sum(-1), 6, rtol=1e-6)


def test_heads_are_kept_apart(inputs):
    out, probs = quick_jit(attention.attend_keeping_heads)(*inputs)
    for head in range(6):
        expected, of_head = reference_attention(*(x[:, :, [head]] for x in inputs))
        np.testing.assert_allclose(out[:, :, [head]], expected, atol=5e-6)
        np.testing.assert_allclose(probs[:, head], of_head, atol=5e-6)


def test_watched_keys_are_recorded_separately_and_do_not_change_the_output():
    """Three rows attend to five tokens; the last two are compared with four others as well."""
    x, context, watched = normal(0, 3, 6, 8), normal(1, 3, 5, 12), normal(2, 2, 4, 12)
    module = attention.Attention(num_heads=2, dtype=jnp.float32)
    variables = module.init(jax.random.key(0), x, context)
    apply = jax.jit(module.apply, static_argnums=3)
    alone, (own,) = apply(variables, x, context, 2)
    out, (still_own, others) = apply(variables, x, context, 2, watched)
    np.testing.assert_array_equal(out, alone)
    np.testing.assert_array_equal(still_own, own)
    params = variables["params"]
    query = (x @ params["to_q"]["kernel"]).reshape(3, 6, 2, 4)[1:]
    for keys, got in ((context[1:], own), (watched, others)):
        key = (keys @ params["to_k"]["kernel"]).reshape(2, -1, 2, 4)
        _, expected = reference_attention(query, key, key)
        np.testing.assert_allclose(got, expected, atol=5e-6)  # float32 sums


def test_causal_attention_does_not_see_later_tokens():
    query, key, value = (normal(i, 2, 5, 3, 4) for i in range(3))
    got = attention.attend_causal(query, key, value)
    for last in range(5):
        seen = slice(0, last + 1)
        expected, _ = reference_attention(query[:, seen], key[:, seen], value[:, seen])
        np.testing.assert_allclose(got[:, last], expected[:, -1], atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_probabilities_of_low_precision_are_summed_in_float32(inputs, dtype):
    query, key, value = (jnp.asarray(x, dtype) for x in inputs)
    out, head_sum = attention.attend_recording(query, key, value)
    assert out.dtype == attention.attend(query, key, value).dtype == dtype
    assert head_sum.dtype == jnp.float32
    # The rounded inputs, but no rounding after them.
    _, expected = reference_attention(*(np.asarray(x, np.float64) for x in (query, key, value)))
    np.testing.assert_allclose(head_sum, expected, atol=1e-5)


@pytest.mark.parametrize("keys", [10, 7], ids=["self", "cross"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "attend",
    [
        attention.attend,
        attention._attend_head_by_head,
        attention._dot_product_attention,
        lambda *x: attention.attend_recording(*x)[0],
    ],
    ids=["attend", "by head", "dot product", "recording"],
)
def test_logits_beyond_float16_stay_finite_and_right(attend, dtype, keys):
    """Queries of norm 1000 and more: products to 3e6, where float16 ends at 65504."""
    query, key, value = (
        jnp.asarray(scale * normal(i, 2, n, 3, 64), dtype)
        for i, (scale, n) in enumerate(((200, 10), (200, keys), (1, keys)))
    )
    exact = [np.asarray(x, np.float64) for x in (query, key, value)]
    expected, expected_sum = reference_attention(*exact)
    assert np.abs(np.einsum("bnhk,bmhk->bhnm", *exact[:2])).max() > 1e6
    got = attend(query, key, value)
    assert got.dtype == dtype
    # The softmax picks one key; what is left is the rounding of the result.
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=epsilon, atol=1e-5)
    _, head_sum = attention.attend_recording(query, key, value)
    np.testing.assert_allclose(head_sum, expected_sum, atol=1e-3)


def test_neither_attention_holds_all_heads_of_the_finest_level():
    """Stable Diffusion at 64 x 64: the probabilities of one head are 64 MiB, of all 512 MiB."""
    row = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    for function in (attention.attend, attention.attend_recording):
        memory = jax.jit(function).lower(row, row, row).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 200 * 2**20


V4, V5E = Place("tpu", "TPU v4"), Place("tpu", "TPU v5 lite")


# Each implementation is within 1.6e-6 of float64, for logits of size 5 and values of size 1.
ROUNDING = 4e-6


def flash_inputs(heads, width, n, m, rows=1, dtype=jnp.float32):
    inputs = (normal(i, rows, length, heads, width) for i, length in enumerate((n, m, m)))
    return [jnp.asarray(x, dtype) for x in inputs]


def flash_recording(query, key, value, total=None):
    shape = (query.dtype.name, *query.shape[2:], query.shape[1], key.shape[1])
    blocks = flash_blocks(Layer(*shape, True, total is not None), V5E)
    return tpu_attention.flash_recording(query, key, value, total, blocks=blocks, interpret=True)


@pytest.mark.parametrize(
    ("heads", "width", "n", "m", "rows"),
    [
        # Stable Diffusion 1 at 64 x 64, of whose heads two
        pytest.param(2, 40, 4096, 4096, 1, marks=pytest.mark.slow),
        (3, 80, 1024, 1024, 2),
        (8, 160, 256, 256, 2),
        (8, 160, 64, 64, 1),
        (5, 64, 576, 576, 1),  # Stable Diffusion 2 at 24 x 24
        (2, 40, 16 * 40, 16 * 40, 1),  # not square
        (2, 40, 39 * 27, 39 * 27, 3),  # odd: queries and keys end within a block
        (2, 40, 600, 77, 2),  # text
        (1, 512, 300, 300, 1),  # the VAE
    ],
)
def test_the_fused_kernel_equals_recorded_attention(heads, width, n, m, rows):
    inputs = flash_inputs(heads, width, n, m, rows)
    got, got_sum = flash_recording(*inputs)
    expected, expected_sum = attention._record_by_groups(*inputs)
    np.testing.assert_allclose(got, expected, atol=ROUNDING)
    np.testing.assert_allclose(got_sum, expected_sum, atol=1e-6 * heads)
    np.testing.assert_allclose(got_sum.sum(-1), heads, rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "m", "adds"),
    [(1024, 1024, True), (640, 640, True), (39 * 27, 39 * 27, False), (300, 77, False)],
)
def test_the_fused_kernel_adds_to_an_earlier_sum(n, m, adds):
    """In place where the keys fill registers, and by XLA elsewhere."""
    assert flash_blocks(Layer("float32", 2, 40, n, m, True, True), V5E).adds == adds
    inputs, total = flash_inputs(2, 40, n, m, 2), np.abs(normal(7, 2, n, m))
    got, got_sum = flash_recording(*inputs, jnp.asarray(total))
    expected, head_sum = attention._record_by_groups(*inputs)
    np.testing.assert_allclose(got, expected, atol=ROUNDING)
    # Totals up to 5 have a rounding of 2.4e-7 per addition.
    np.testing.assert_allclose(got_sum, total + head_sum, atol=1e-6)
    _, added = attention.attend_recording(*inputs, total=jnp.asarray(total))
    np.testing.assert_allclose(added, total + head_sum, atol=1e-6)


def test_keys_that_are_read_again_for_every_block_give_the_same():
    """As on a v4 chip, whose on-chip memory does not hold the keys of all heads."""
    layer = Layer("bfloat16", 8, 40, 4096, 4096, True)
    again, once = flash_blocks(layer, V4), flash_blocks(layer, V5E)
    assert not again.all_heads and once.all_heads and again.queries < once.queries
    inputs = flash_inputs(2, 40, 1024, 1024)
    got = tpu_attention.flash_recording(*inputs, blocks=again, interpret=True)
    expected = tpu_attention.flash_recording(*inputs, blocks=once, interpret=True)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=ROUNDING)


@pytest.mark.parametrize(("n", "m"), [(700, 700), (700, 77)])
def test_the_flash_kernel_equals_the_definition(n, m):
    inputs = flash_inputs(3, 40, n, m, 2)
    blocks = flash_blocks(Layer("float32", 3, 40, n, m), V5E)
    got = tpu_attention.flash(*inputs, blocks=blocks, interpret=True)
    expected, _ = reference_attention(*map(np.asarray, inputs))
    np.testing.assert_allclose(got, expected, atol=2e-6)  # float32 sums


def test_large_logits_of_low_precision_are_summed_in_float32():
    inputs = flash_inputs(2, 40, 300, 300, 2, jnp.bfloat16)
    inputs[0] *= 100
    out, head_sum = flash_recording(*inputs)
    assert out.dtype == jnp.bfloat16 and head_sum.dtype == jnp.float32
    _, expected = reference_attention(*(np.asarray(x, np.float64) for x in inputs))
    # Logits reach 1e3 with 24 bits each.
    np.testing.assert_allclose(head_sum, expected, atol=1e-3)


def test_another_platform_gets_its_own_program():
    """Lowered on this machine for TPUs and for NVIDIA GPUs, of which it has none."""
    row = jax.ShapeDtypeStruct((1, 1024, 2, 40), jnp.bfloat16)

    def text(platform, choice="auto"):
        def both(query, key, value):
            recorded, head_sum = attention.attend_recording(query, key, value, choice)
            return attention.attend(query, key, value, choice), recorded, head_sum

        traced = jax.jit(both).trace(row, row, row)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert text("tpu").count("@tpu_custom_call") == 2
    for other in (text("tpu", "xla"), text("cuda"), text("cpu")):
        assert "custom_call" not in other


def test_the_kernel_compiles_where_samples_are_split():
    """Under jax.shard_map, whose results vary over the devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    row = jax.ShapeDtypeStruct((2, 1024, 2, 40), jnp.bfloat16)
    split = jax.shard_map(
        attention.attend_recording, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    text = jax.jit(split).trace(row, row, row).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == 1


def test_what_is_forced_and_cannot_serve_is_refused(inputs):
    for function in (attention.attend, attention.attend_recording):
        with pytest.raises(UserError, match="attention=flash cannot be used: it needs a TPU"):
            function(*map(jnp.asarray, inputs), "flash")
    np.testing.assert_array_equal(
        attention.attend(*inputs, "xla"), attention.attend(*inputs, "auto")
    )


def test_the_gradient_of_the_kernel_is_that_of_xla():
    inputs = flash_inputs(2, 8, 130, 130)
    blocks = flash_blocks(Layer("float32", 2, 8, 130, 130, True), V5E)

    def kernel(*x):
        return tpu_attention.flash_recording(*x, blocks=blocks, interpret=True)

    weights = [normal(5, 1, 130, 2, 8), normal(6, 1, 130, 130)]

    def gradients(function):
        def loss(*x):
            return sum((w * y).sum() for w, y in zip(weights, function(*x), strict=True))

        return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)

    with_gradient = attention._with_gradient_of(attention._record_by_groups, kernel)
    expected = gradients(attention._record_by_groups)
    for got, one in zip(gradients(with_gradient), expected, strict=True):
        np.testing.assert_allclose(got, one, atol=1e-4)  # sums of 130 float32 products
