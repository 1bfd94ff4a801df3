import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks.label_maps import BACKGROUND, IGNORE_INDEX, label_map
from tests import reference


@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("uncertain", [None, 0.5])
def test_label_map_equals_the_loop_over_pixels(classes, uncertain):
    # Multiples of 1/20 meet both thresholds and tie between classes.
    steps = np.random.default_rng(classes).integers(0, 21, (classes, 9, 12))
    soft_masks = (steps / 20).astype(np.float32)
    got = label_map(jnp.asarray(soft_masks), 0.6, uncertain)
    assert got.dtype == jnp.uint8
    expected = reference.label_map(soft_masks, np.float32(0.6), uncertain)
    np.testing.assert_array_equal(got, expected)


def test_threshold_is_exclusive_and_the_uncertain_band_half_open():
    soft_masks = jnp.array([[[0.1, 0.25, 0.4, 0.5, 0.75]]])
    np.testing.assert_array_equal(label_map(soft_masks, 0.5, 0.25), [[0, 255, 255, 0, 1]])
    np.testing.assert_array_equal(label_map(soft_masks, 0.5), [[0, 0, 0, 0, 1]])


def test_the_first_of_equally_large_classes_wins():
    soft_masks = jnp.array([0.2, 0.9, 0.9]).reshape(3, 1, 1)
    np.testing.assert_array_equal(label_map(soft_masks, 0.5), [[2]])


def test_empty_masks_are_background():
    np.testing.assert_array_equal(label_map(jnp.zeros((2, 3, 3)), 0.0), np.full((3, 3), BACKGROUND))


def test_another_threshold_does_not_recompile():
    kernel = jax.jit(label_map)
    soft_masks = jnp.linspace(0, 1, 32).reshape(2, 4, 4)
    for threshold in (0.3, 0.5, 0.8):
        kernel(soft_masks, threshold, 0.1)
    assert kernel._cache_size() == 1


@pytest.mark.parametrize("classes", [0, IGNORE_INDEX])
def test_a_number_of_classes_without_labels_is_named(classes):
    with pytest.raises(ValueError, match=f"{classes} classes.*1 to 254"):
        label_map(jnp.zeros((classes, 2, 2)), 0.5)
