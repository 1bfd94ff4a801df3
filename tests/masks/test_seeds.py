import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks.seeds import find_seeds, seed_map
from tests import reference
from tests.helpers.random_attention import random_attention


def class_seeds(cross_attention):
    return find_seeds(seed_map(cross_attention))


maps_of_classes = jax.jit(jax.vmap(seed_map, in_axes=-1))
seeds_of_classes = jax.jit(jax.vmap(class_seeds, in_axes=-1))


@pytest.mark.parametrize("side", [8, 12, 16])
@pytest.mark.parametrize("rng_seed", range(8))
def test_seeds_of_every_class_equal_the_reference(side, rng_seed):
    cross_attention, _ = random_attention(rng_seed, [side], num_objects=3)
    soft = maps_of_classes(jnp.asarray(cross_attention))
    seeds = seeds_of_classes(jnp.asarray(cross_attention))
    for k in range(3):
        expected = reference.seed_map(cross_attention[..., k])
        # Float32 normalisation and sum of 5 layers.
        np.testing.assert_allclose(soft[k], expected, atol=1e-6)
        np.testing.assert_array_equal(seeds[k], reference.find_seeds(expected))


def test_a_flat_layer_has_weight_one_hundredth():
    strong = np.linspace(0, 1, 16, dtype=np.float32)
    flat = 1e-3 * strong[::-1]
    got = seed_map(jnp.asarray(np.stack([strong, flat])))
    expected = strong + 0.01 * strong[::-1]
    # Float32 sum of two normalised layers.
    np.testing.assert_allclose(got, (expected - 0.01) / 0.99, atol=1e-6)


@pytest.mark.parametrize(("factor", "first_location"), [(1.01, 1.0), (0.99, 0.01)])
def test_the_variance_is_unbiased_and_compared_with_the_published_floor(factor, first_location):
    # Two layers of 4 locations; the first has an unbiased variance of factor * 1e-4 and alone is
    # high at location 0, the second varies much and is high at location 3.
    near_floor = np.array([1, 0, 0, 0]) * np.sqrt(factor * 1e-4 / 0.25)
    varied = np.array([0, 0, 0, 2.0])
    got = seed_map(jnp.asarray(np.stack([near_floor, varied]), jnp.float32))
    np.testing.assert_allclose(got, [first_location, 0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_constant_cross_attention_has_no_seed(value):
    cross_attention = jnp.full((5, 64), value)
    np.testing.assert_array_equal(seed_map(cross_attention), np.zeros(64))
    assert jnp.sum(class_seeds(cross_attention)) == 0


def test_one_bright_location_is_the_only_seed():
    cross_attention = jnp.zeros((5, 64)).at[:, 27].set(0.9)
    np.testing.assert_array_equal(np.flatnonzero(class_seeds(cross_attention)), [27])


def test_a_level_of_one_location_has_no_seed():
    assert jnp.sum(class_seeds(jnp.ones((3, 1)))) == 0
