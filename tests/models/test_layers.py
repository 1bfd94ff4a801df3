"""Layers of the networks against hand-computed and float64 values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.models import layers


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


@pytest.mark.parametrize("kind", ["group_norm", "layer_norm"])
@pytest.mark.parametrize(
    ("dtype", "mean", "tolerance"),
    [
        # Results have 8 bits, so half a unit in the last place is 2^-8 at most.
        ("bfloat16", 0, 2**-8 + 1e-4),
        # Sums of 40,000 numbers, one after the other, err by 100 units of 2^-24, and the variance,
        # which is 1, by so many parts of mean^2.
        ("bfloat16", 30, 2**-8 + 6e-3),
        # So does the mean; one pass would miss the variance altogether.
        ("float32", 1000, 1e-2),
    ],
)
def test_norms_are_those_of_float64(kind, dtype, mean, tolerance):
    random = np.random.default_rng(0)
    x = jnp.asarray(mean + random.standard_normal((2, 64, 64, 20)), dtype)
    number = {"group_norm": (2,), "layer_norm": ()}[kind]
    call = layers.nn.compact(lambda module, x: getattr(layers, kind)(x, *number, 1e-5, "norm"))
    module = type("Norm", (layers.nn.Module,), {"__call__": call})()
    got, _ = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x))(x)
    groups = np.asarray(x, np.float64).reshape(2, 64 * 64, 2, 10)
    axes = (1, 3)
    if kind == "layer_norm":
        groups, axes = groups.reshape(2 * 64 * 64, 20), 1
    centred = groups - groups.mean(axes, keepdims=True)
    expected = centred / np.sqrt(centred.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        np.asarray(got, np.float64), expected.reshape(x.shape), rtol=tolerance, atol=tolerance
    )
