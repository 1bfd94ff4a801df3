"""Attention against plain NumPy in float64, its memory, and the sizes of resized images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import normal

from seediff_jax.models import layers


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
    "attend", [layers.attend, layers._attend_head_by_head, layers._dot_product_attention]
)
def test_attention_of_every_platform_equals_the_definition(inputs, attend):
    expected, _ = reference_attention(*inputs)
    np.testing.assert_allclose(attend(*inputs), expected, atol=5e-6)  # float32 sums


def test_gradients_agree_between_platforms(inputs):
    weights = normal(4, 3, 10, 6, 8)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: (weights * attend(*x)).sum(), (0, 1, 2)))(*inputs)

    pairs = zip(gradients(layers.attend), gradients(layers._dot_product_attention), strict=True)
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, atol=1e-5)  # float32 sums of 10 terms


@pytest.mark.parametrize("most", [1, 150, 250, 10**9], ids=["by head", "two", "three", "all heads"])
def test_recorded_attention_equals_the_definition_however_heads_are_grouped(
    inputs, most, monkeypatch
):
    monkeypatch.setattr(layers, "_MAX_PROBS", most)
    out, head_sum = layers.attend_recording(*map(jnp.asarray, inputs))
    expected, expected_sum = reference_attention(*inputs)
    np.testing.assert_allclose(out, expected, atol=5e-6)
    np.testing.assert_allclose(head_sum, expected_sum, atol=5e-6)
    np.testing.assert_allclose(head_sum.sum(-1), 6, rtol=1e-6)


def test_causal_attention_does_not_see_later_tokens():
    query, key, value = (normal(i, 2, 5, 3, 4) for i in range(3))
    got = layers.attend_causal(query, key, value)
    for last in range(5):
        seen = slice(0, last + 1)
        expected, _ = reference_attention(query[:, seen], key[:, seen], value[:, seen])
        np.testing.assert_allclose(got[:, last], expected[:, -1], atol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_probabilities_of_low_precision_are_summed_in_float32(inputs, dtype):
    query, key, value = (jnp.asarray(x, dtype) for x in inputs)
    out, head_sum = layers.attend_recording(query, key, value)
    assert out.dtype == layers.attend(query, key, value).dtype == dtype
    assert head_sum.dtype == jnp.float32
    # The rounded inputs, but no rounding after them.
    _, expected = reference_attention(*(np.asarray(x, np.float64) for x in (query, key, value)))
    np.testing.assert_allclose(head_sum, expected, atol=1e-5)


@pytest.mark.parametrize("keys", [10, 7], ids=["self", "cross"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize(
    "attend",
    [
        layers.attend,
        layers._attend_head_by_head,
        layers._dot_product_attention,
        lambda *x: layers.attend_recording(*x)[0],
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
    _, head_sum = layers.attend_recording(query, key, value)
    np.testing.assert_allclose(head_sum, expected_sum, atol=1e-3)


def test_neither_attention_holds_all_heads_of_the_finest_level():
    """Stable Diffusion at 64 x 64: the probabilities of one head are 64 MiB, of all 512 MiB."""
    row = jax.ShapeDtypeStruct((1, 4096, 8, 40), jnp.float32)
    for function in (layers.attend, layers.attend_recording):
        memory = jax.jit(function).lower(row, row, row).compile().memory_analysis()
        assert memory.temp_size_in_bytes < 200 * 2**20


def test_timestep_embedding_of_hand_computed_angles():
    """Frequencies 1 and 0.01 at width 4: exp(-log(10000) * (0, 1/2))."""
    timesteps = jnp.array([0, 100], jnp.int32)
    got = layers.timestep_embedding(timesteps, 4, flip_sin_to_cos=True, freq_shift=0)
    sin, cos = np.sin([100.0, 1.0]), np.cos([100.0, 1.0])
    # A float32 angle of 100 has a rounding of 4e-6, the frequency 0.01 one of 1e-9.
    np.testing.assert_allclose(got, [[1, 1, 0, 0], [*cos, *sin]], atol=1e-5)
    unflipped = layers.timestep_embedding(timesteps, 4, flip_sin_to_cos=False, freq_shift=0)
    np.testing.assert_allclose(unflipped, np.roll(got, 2, axis=1))


@pytest.mark.parametrize(("size", "expected"), [((2, 4), (4, 8)), ((2, 4), (3, 7))])
def test_upsampling_doubles_and_cuts_to_the_skip_connection(size, expected):
    x = jnp.arange(8.0).reshape(1, *size, 1)
    module = layers.Upsample(1, jnp.float32)
    identity = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    params = {"conv": {"kernel": identity, "bias": jnp.zeros(1)}}
    got = module.apply({"params": params}, x, *expected)[0, :, :, 0]
    rows, columns = np.arange(expected[0]) // 2, np.arange(expected[1]) // 2
    np.testing.assert_array_equal(got, np.asarray(x)[0, :, :, 0][np.ix_(rows, columns)])


def test_norms_of_low_precision_keep_small_differences_of_a_large_mean():
    """Values 1000 to 1004 in steps of 4, all exact in bfloat16: their variance is not lost."""
    x = jnp.asarray(np.tile([1000, 1004], 8).reshape(1, 1, 1, 16), jnp.bfloat16)
    norm = layers.nn.compact(lambda module, x: layers.group_norm(x, 2, 1e-5, "norm"))
    module = type("Norm", (layers.nn.Module,), {"__call__": norm})()
    got, _ = module.init_with_output(jax.random.key(0), x)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32).ravel(), np.tile([-1, 1], 8), rtol=1e-2)
