import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks.image_ops import grid_size, min_max, otsu_foreground, resize_cubic
from tests import reference


def random_map(rng, side):
    """A map in [0, 1] with a few clusters of values, whose histogram has near-tied thresholds."""
    parts = rng.integers(2, 5)
    values = rng.normal(rng.random(parts), 0.02 + 0.2 * rng.random(parts), (side * side, parts))
    values = rng.permuted(values, axis=1)[:, 0].clip(0)
    return reference.min_max(values).reshape(side, side).astype(np.float32)


def levels_to_map(levels):
    """A map whose squares truncate to the given levels: the middle of each level's interval."""
    return jnp.asarray(np.sqrt((np.asarray(levels) + 0.5) / 255.0), jnp.float32)


def test_min_max_reaches_exactly_zero_and_one():
    field = jnp.asarray(np.random.default_rng(0).normal(3, 0.1, (7, 5)), jnp.float32)
    got = min_max(field)
    assert got.min() == 0 and got.max() == 1
    # One rounding of the difference and one of the quotient.
    np.testing.assert_allclose(got, reference.min_max(np.float64(field)), atol=3e-7)


@pytest.mark.parametrize("value", [0.0, 0.7, -3.0, 1e30])
def test_min_max_of_a_constant_map_is_zero(value):
    np.testing.assert_array_equal(min_max(jnp.full((4, 4), value)), np.zeros((4, 4)))


def test_min_max_does_not_stretch_rounding_noise():
    noisy = jnp.full(64, 0.7).at[::3].set(np.nextafter(np.float32(0.7), np.float32(1)))
    np.testing.assert_array_equal(min_max(noisy), np.zeros(64))


@pytest.mark.parametrize("side", [4, 16, 64])
def test_otsu_equals_opencv_on_many_maps(side):
    rng = np.random.default_rng(side)
    maps = np.stack([random_map(rng, side) for _ in range(400)])
    got = jax.jit(jax.vmap(otsu_foreground))(jnp.asarray(maps))
    # The squares are compared in float32, as the kernel computes them: the threshold is at stake.
    expected = np.stack([reference.otsu_foreground(soft) for soft in maps])
    np.testing.assert_array_equal(got, expected)


def test_otsu_foreground_lies_strictly_above_the_first_of_equal_thresholds():
    soft = levels_to_map([10, 10, 10, 200])
    np.testing.assert_array_equal(otsu_foreground(soft), [False, False, False, True])


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_otsu_of_a_single_level_follows_opencv(level):
    levels = np.full((1, 9), level, np.uint8)
    threshold, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    got = otsu_foreground(levels_to_map(levels))
    np.testing.assert_array_equal(got, levels > threshold)


def test_otsu_clips_the_overshoot_of_a_cubic_resize():
    soft = jnp.array([-0.2, 0.0, 1.0, 1.2])
    np.testing.assert_array_equal(otsu_foreground(soft), [False, False, True, True])


@pytest.mark.parametrize(
    ("old_side", "new_side"),
    [
        (16, 32),
        (32, 64),
        (64, 512),
        (24, 48),
        (96, 768),
        (16, 64),
        (7, 100),
        (64, 20),
        (1, 8),
        (2, 5),
    ],
)
def test_resize_cubic_equals_opencv(old_side, new_side):
    rng = np.random.default_rng(old_side * new_side)
    field = rng.random((old_side, old_side), dtype=np.float32)
    # Float32 sums of 16 products; OpenCV rounds the positions of the taps to float32 as well.
    expected = reference.resize_cubic(field, new_side)
    got = jax.jit(resize_cubic, static_argnums=1)(jnp.asarray(field), new_side)
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_resize_cubic_takes_maps_that_are_not_square():
    field = np.random.default_rng(0).random((6, 11), dtype=np.float32)
    for side in (17, (12, 22), (5, 40)):
        got = resize_cubic(jnp.asarray(field), side)
        np.testing.assert_allclose(got, reference.resize_cubic(field, side), atol=5e-6)


def test_resize_cubic_to_the_same_side_changes_nothing():
    field = jnp.asarray(np.random.default_rng(0).random((9, 9)), jnp.float32)
    np.testing.assert_array_equal(resize_cubic(field, 9), field)


def test_resize_cubic_needs_a_positive_side():
    with pytest.raises(ValueError, match="side=0.*1 or more"):
        resize_cubic(jnp.zeros((4, 4)), 0)


@pytest.mark.parametrize(
    ("num_locations", "side", "expected"),
    [
        (256, 512, (16, 16)),
        (384, (512, 768), (16, 24)),
        (384, (768, 512), (24, 16)),
        (2, (1, 2), (1, 2)),
    ],
)
def test_a_grid_has_the_proportions_of_its_image(num_locations, side, expected):
    assert grid_size(num_locations, side) == expected


@pytest.mark.parametrize(("num_locations", "side"), [(17, 512), (256, (512, 768)), (384, 512)])
def test_locations_that_make_no_such_grid_are_refused(num_locations, side):
    with pytest.raises(
        ValueError, match=f"{num_locations} locations do not form a grid .* of 512 x"
    ):
        grid_size(num_locations, side)
