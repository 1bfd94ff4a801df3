import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks.config import METHODS, MaskConfig
from seediff_jax.masks.label_maps import label_map
from seediff_jax.masks.methods import class_soft_mask, soft_mask
from tests import reference
from tests.helpers.random_attention import random_attention

REFERENCES = {
    "seediff": reference.soft_mask,
    "cross_attention": lambda cross, _, side: reference.cross_attention_mask(cross, side),
    "exponentiation": reference.exponentiation_mask,
}


def to_jax(self_attention):
    return {side: jnp.asarray(level) for side, level in self_attention.items()}


@functools.partial(jax.jit, static_argnums=(2, 3))
def all_classes(cross_attention, self_attention, image_side, config):
    """Soft masks `[c, H, W]`: the kernel of one class, vmapped over the classes of an image."""

    def one_class(cross_attention):
        return class_soft_mask(cross_attention, self_attention, image_side, config)

    return jax.vmap(one_class, in_axes=-1)(cross_attention)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sides", [(8, 16, 32), (16, 32), (16,), (12, 24, 48)], ids=str)
@pytest.mark.parametrize("rng_seed", range(3))
def test_soft_masks_and_label_maps_equal_the_reference(method, sides, rng_seed):
    cross_attention, self_attention = random_attention(rng_seed, sides, num_objects=2)
    got = all_classes(cross_attention, self_attention, 128, MaskConfig(method=method))
    expected = np.stack(
        [REFERENCES[method](cross_attention[..., k], self_attention, 128) for k in range(2)]
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method
    labels = label_map(got, *METHODS[method].published[1:])
    expected_labels = reference.label_map(expected, *METHODS[method].published[1:])
    assert len(np.unique(expected_labels)) > 2
    assert np.mean(np.asarray(labels) == expected_labels) >= 0.999


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(512, 768), (768, 512)], ids=str)
def test_masks_of_other_proportions_equal_the_reference(method, size):
    """Stable Diffusion at 512 x 768 has levels of 16 x 24 and 32 x 48; the finest is left out."""
    levels = [(size[0] // factor, size[1] // factor) for factor in (32, 16)]
    cross_attention, self_attention = random_attention(5, levels, num_objects=2)
    got = all_classes(cross_attention, to_jax(self_attention), size, MaskConfig(method=method))
    assert got.shape == (2, *size)
    expected = [REFERENCES[method](cross_attention[..., k], self_attention, size) for k in range(2)]
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method
    labels = label_map(got, *METHODS[method].published[1:])
    expected_labels = reference.label_map(np.stack(expected), *METHODS[method].published[1:])
    assert len(np.unique(expected_labels)) > 2
    assert np.mean(np.asarray(labels) == expected_labels) >= 0.999


def assert_published_levels_equal_the_reference(levels, size):
    cross_attention, self_attention = random_attention(0, levels, num_objects=1)
    got = all_classes(cross_attention, to_jax(self_attention), size, MaskConfig())[0]
    expected = reference.soft_mask(cross_attention[..., 0], self_attention, size)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method
    assert np.mean((got > 0.5) == (expected > 0.5)) >= 0.999


def test_published_levels_equal_the_reference():
    assert_published_levels_equal_the_reference((16, 32, 64), 512)


@pytest.mark.slow
def test_published_levels_of_a_wide_image_equal_the_reference():
    assert_published_levels_equal_the_reference([(16, 24), (32, 48), (64, 96)], (512, 768))


@pytest.mark.parametrize(
    "options",
    [{"affinity": "transition", "power": 3}, {"power": 2}, {"background": False}],
    ids=str,
)
def test_config_options_reach_the_kernels(options):
    cross_attention, self_attention = random_attention(3, (8, 16), num_objects=1)
    got = all_classes(cross_attention, self_attention, 64, MaskConfig(**options))[0]
    in_float64 = {side: level.astype(np.float64) for side, level in self_attention.items()}
    expected = reference.soft_mask(cross_attention[..., 0], in_float64, 64, **options)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method
    published = reference.soft_mask(cross_attention[..., 0], in_float64, 64)
    assert np.abs(expected - published).max() > 0.01


@pytest.mark.parametrize("power", [1, 2])
def test_exponentiation_takes_another_power(power):
    cross_attention, self_attention = random_attention(4, (8, 16), num_objects=1)
    config = MaskConfig(method="exponentiation", power=power)
    got = all_classes(cross_attention, self_attention, 64, config)[0]
    expected = reference.exponentiation_mask(cross_attention[..., 0], self_attention, 64, power)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method


@pytest.mark.parametrize("method", METHODS)
def test_a_class_without_attention_gets_an_empty_mask(method):
    _, self_attention = random_attention(5, (8, 16))
    for value in (0.0, 0.3):
        constant = np.full((5, 64, 1), value, np.float32)
        got = all_classes(constant, self_attention, 32, MaskConfig(method=method))
        np.testing.assert_array_equal(got, np.zeros((1, 32, 32)))


def test_soft_mask_is_the_published_config():
    cross_attention, self_attention = random_attention(6, (8, 16), num_objects=1)
    one_class = jnp.asarray(cross_attention[..., 0])
    got = soft_mask(one_class, to_jax(self_attention), 64)
    expected = class_soft_mask(one_class, to_jax(self_attention), 64, MaskConfig())
    np.testing.assert_array_equal(got, expected)


def test_published_power_depends_on_the_method():
    assert MaskConfig().resolved.power == 1
    assert MaskConfig(method="exponentiation").resolved.power == 4
    assert MaskConfig(method="exponentiation", power=2).resolved.power == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "daam"}, "method=daam is not one of seediff, cross_attention, exponentiation"),
        ({"affinity": "dot"}, "affinity=dot is not one of cosine, transition, sinkhorn"),
        ({"power": 0}, "power=0 must be a whole number in 1..10000"),
        ({"power": 1.5}, "power=1.5 must be a whole number"),
    ],
)
def test_unsupported_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**options)


@pytest.mark.parametrize("method", METHODS)
def test_sizes_that_do_not_match_are_named(method):
    self_attention = {4: jnp.ones((16, 16))}
    with pytest.raises(ValueError, match="15"):
        class_soft_mask(jnp.ones((2, 15)), self_attention, 8, MaskConfig(method=method))
