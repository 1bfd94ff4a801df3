import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks import expansion
from seediff_jax.masks.config import AFFINITIES
from seediff_jax.masks.expansion import spread
from tests import reference
from tests.helpers.random_attention import random_attention, random_blobs, random_self_attention

expand = jax.jit(expansion.expand, static_argnames=("affinity", "power", "background"))

EXPAND_OPTIONS = [
    {},
    {"background": False},
    {"power": 2},
    {"power": 4},
    {"affinity": "transition"},
    {"affinity": "transition", "power": 4},
    {"affinity": "transition", "power": 2, "background": False},
    {"affinity": "sinkhorn"},
    {"affinity": "sinkhorn", "power": 3},
]


def to_jax(self_attention):
    return {side: jnp.asarray(level) for side, level in self_attention.items()}


def in_float64(self_attention):
    return {side: level.astype(np.float64) for side, level in self_attention.items()}


def one_level(rng_seed, side):
    rng = np.random.default_rng(rng_seed)
    return random_self_attention(rng, random_blobs(rng, 2), side)


@pytest.mark.parametrize("num_seeds", [1, 7, 64])
def test_cosine_spread_equals_the_loop_over_seeds(num_seeds):
    attention = one_level(0, 8)
    seeds = np.random.default_rng(1).permutation(64) < num_seeds
    got = spread(jnp.asarray(seeds, jnp.float32), jnp.asarray(attention))
    expected = reference.seed_similarity(seeds, attention.astype(np.float64))
    # Float32 sums of 64 products, twice.
    np.testing.assert_allclose(got, expected / expected.max(), rtol=2e-6)


@pytest.mark.parametrize("power", [1, 2, 3, 4])
def test_transition_spread_equals_the_power_of_the_matrix(power):
    attention = one_level(2, 8)
    field = np.random.default_rng(3).random(64, dtype=np.float32)
    got = spread(jnp.asarray(field), jnp.asarray(attention), affinity="transition", power=power)
    expected = reference.transition_power(field, attention.astype(np.float64), power)
    # Float32 sums of 64 products, four times.
    np.testing.assert_allclose(got, expected / expected.max(), rtol=4e-6)


@pytest.mark.parametrize("power", [1, 3])
def test_sinkhorn_spread_equals_the_power_of_the_doubly_stochastic_matrix(power):
    attention = one_level(2, 8)
    field = np.random.default_rng(3).random(64, dtype=np.float32)
    got = spread(jnp.asarray(field), jnp.asarray(attention), affinity="sinkhorn", power=power)
    expected = reference.spread(field, attention.astype(np.float64), "sinkhorn", power)
    # Float32 sums of 64 products, in each of 30 divisions by a sum.
    np.testing.assert_allclose(got, expected / expected.max(), rtol=2e-5)


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_the_scale_of_the_attention_does_not_matter(affinity):
    attention = jnp.asarray(one_level(4, 8))
    seeds = jnp.arange(64) == 20
    once = expand(seeds, {8: attention}, affinity=affinity)
    # A power of two scales float32 exactly.
    np.testing.assert_array_equal(expand(seeds, {8: 8 * attention}, affinity=affinity), once)


def test_a_high_power_does_not_overflow():
    attention = {16: jnp.asarray(one_level(5, 16))}
    soft = expand(jnp.arange(256) < 9, attention, power=100)
    assert np.isfinite(soft).all() and soft.max() == 1


@pytest.mark.parametrize("options", EXPAND_OPTIONS, ids=str)
@pytest.mark.parametrize(
    "sides",
    [(8, 16, 32), (12, 24), (16,), ((8, 12), (16, 24)), ((7, 4), (13, 8), (25, 15))],
    ids=str,
)
@pytest.mark.parametrize("rng_seed", range(2))
def test_expand_equals_the_reference(sides, rng_seed, options):
    cross_attention, self_attention = random_attention(rng_seed, sides)
    seeds = reference.find_seeds(reference.seed_map(cross_attention[..., 0]))
    expected = reference.expand(seeds, in_float64(self_attention), **options)
    got = expand(jnp.asarray(seeds), to_jax(self_attention), **options)
    assert got.shape == ((sides[-1],) * 2 if isinstance(sides[-1], int) else sides[-1])
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method


def test_levels_are_used_coarse_to_fine_in_any_order_of_the_dict():
    cross_attention, self_attention = random_attention(0, (8, 16))
    seeds = jnp.asarray(reference.find_seeds(reference.seed_map(cross_attention[..., 0])))
    expected = expand(seeds, to_jax(self_attention))
    finest_first = {side: jnp.asarray(self_attention[side]) for side in (16, 8)}
    np.testing.assert_array_equal(expand(seeds, finest_first), expected)


@pytest.mark.parametrize("options", EXPAND_OPTIONS, ids=str)
def test_without_seeds_the_mask_is_empty(options):
    _, self_attention = random_attention(1, (8, 16))
    soft = expand(jnp.zeros(64, bool), to_jax(self_attention), **options)
    np.testing.assert_array_equal(soft, np.zeros((16, 16)))


@pytest.mark.parametrize("seeds", [np.ones(64, bool), np.arange(64) == 35], ids=["all", "one"])
@pytest.mark.parametrize("background", [True, False])
def test_every_location_or_one_location_as_seed_equals_the_reference(seeds, background):
    _, self_attention = random_attention(2, (8, 16))
    expected = reference.expand(seeds, in_float64(self_attention), background=background)
    got = expand(jnp.asarray(seeds), to_jax(self_attention), background=background)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method


@pytest.mark.parametrize("sides", [(8, 16), (12, 24), (16, 32, 64)], ids=str)
@pytest.mark.parametrize("affinity", AFFINITIES)
def test_constant_self_attention_gives_an_empty_mask(sides, affinity):
    uniform = {side: jnp.full((side**2, side**2), 8 / side**2) for side in sides}
    seeds = jnp.arange(sides[0] ** 2) < 10
    soft = expand(seeds, uniform, affinity=affinity)
    np.testing.assert_array_equal(soft, np.zeros((sides[-1], sides[-1])))


def test_locations_that_attend_to_nothing_give_no_nan():
    attention = jnp.asarray(one_level(6, 8)).at[5].set(0)
    for affinity in AFFINITIES:
        soft = expand(jnp.arange(64) < 9, {8: attention}, affinity=affinity)
        assert np.isfinite(soft).all() and soft.ravel()[5] == 0


def test_a_level_of_one_location_gives_an_empty_mask():
    soft = expand(jnp.ones(1, bool), {1: jnp.ones((1, 1))})
    np.testing.assert_array_equal(soft, [[0]])


@pytest.mark.parametrize("affinity", AFFINITIES)
def test_no_product_of_two_attention_matrices_is_formed(affinity):
    def kernel(seeds, self_attention):
        return expand(seeds, self_attention, affinity=affinity, power=4)

    program = jax.jit(kernel).lower(jnp.ones(100, bool), {10: jnp.ones((100, 100))}).as_text()
    dot_outputs = re.findall(r"dot_general.*-> tensor<([0-9x]+)xf32>", program)
    assert "100" in dot_outputs and "100x100" not in dot_outputs


def test_the_number_of_seeds_does_not_recompile():
    level = {8: jnp.asarray(one_level(7, 8))}
    expand(jnp.arange(64) < 1, level)
    compiled = expand._cache_size()
    for num_seeds in (0, 30, 64):
        expand(jnp.arange(64) < num_seeds, level)
    assert expand._cache_size() == compiled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"affinity": "dot"}, r"'dot'.*'cosine', 'transition'"),
        ({"power": 0}, "power=0.*at least 1"),
        ({"power": -2}, "power=-2.*at least 1"),
    ],
)
def test_unsupported_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        expand(jnp.ones(16, bool), {4: jnp.ones((16, 16))}, **options)


@pytest.mark.parametrize(
    ("seeds", "sides", "message"),
    [
        (16, {}, "no level"),
        (16, {4: (16, 15)}, r"self_attention\[4\] is \[16, 15\].*\[16, 16\]"),
        (9, {4: (16, 16)}, "has 4 x 4 locations and needs 16 seeds, got 9"),
        (8, {4: (8, 8), 8: (64, 64)}, "levels of 4 x 2 and 8 x 8 locations.*same proportions"),
    ],
)
def test_sizes_that_do_not_match_are_named(seeds, sides, message):
    self_attention = {side: jnp.ones(shape) for side, shape in sides.items()}
    with pytest.raises(ValueError, match=message):
        expand(jnp.ones(seeds, bool), self_attention)
