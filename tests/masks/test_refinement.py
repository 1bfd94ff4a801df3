import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.masks.refinement import neighbour_weights, refine
from tests import reference


def random_image(rng, height, width):
    """Two flat regions with noise on one of them, uint8: some neighbourhoods have no spread."""
    image = np.full((height, width, 3), (200, 40, 90), np.uint8)
    image[height // 3 :, width // 4 :] = rng.integers(0, 256, (1, 1, 3))
    noise = rng.integers(-20, 20, (height // 2, width, 3))
    image[: height // 2] = (image[: height // 2] + noise).clip(0, 255)
    return image


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4), (3, 9)], ids=str)
def test_weights_equal_the_loop_over_pixels(dilations):
    image = random_image(np.random.default_rng(0), 11, 14)
    got = neighbour_weights(jnp.asarray(image, jnp.float32), dilations)
    expected = reference.neighbour_weights(image, dilations)
    # Float32 exponentials of sums of 3 quotients.
    np.testing.assert_allclose(np.moveaxis(got, 0, -1), expected, atol=2e-6)


@pytest.mark.parametrize("dilations", [(1,), (1, 2, 4, 8, 12, 24)], ids=str)
@pytest.mark.parametrize("iterations", [1, 7])
def test_refined_mask_equals_the_loop_over_pixels(dilations, iterations):
    rng = np.random.default_rng(1)
    image, soft = random_image(rng, 13, 10), rng.random((13, 10), dtype=np.float32)
    kernel = jax.jit(refine, static_argnames=("iterations", "dilations"))
    got = kernel(jnp.asarray(image), jnp.asarray(soft), iterations=iterations, dilations=dilations)
    expected = reference.refine(image, soft, iterations, dilations)
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the bound of the whole method


def test_many_iterations_stay_within_the_range_of_the_mask_and_equal_the_matrix_power():
    rng = np.random.default_rng(2)
    image, soft = random_image(rng, 8, 8), rng.random((8, 8), dtype=np.float32)
    basis = np.eye(64).reshape(64, 8, 8)
    step = np.stack([reference.refine(image, unit, 1).ravel() for unit in basis], axis=1)
    expected = (np.linalg.matrix_power(step, 5000) @ soft.ravel()).reshape(8, 8)
    got = refine(jnp.asarray(image), jnp.asarray(soft), iterations=5000)
    assert soft.min() <= got.min() and got.max() <= soft.max()
    # Float32 rounding of 5000 weighted means.
    np.testing.assert_allclose(got, expected, atol=5e-4)


def test_a_flat_image_averages_the_neighbours():
    soft = jnp.zeros((5, 5)).at[2, 2].set(1)
    got = refine(jnp.full((5, 5, 3), 77, jnp.uint8), soft, iterations=1)
    expected = np.zeros((5, 5))
    expected[1:4, 1:4] = 1 / 8
    expected[2, 2] = 0
    np.testing.assert_allclose(got, expected, atol=1e-7)


def test_the_mask_moves_to_the_edge_in_the_image():
    image = np.zeros((12, 12, 3), np.uint8)
    image[:, 6:] = 255
    soft = np.zeros((12, 12), np.float32)
    soft[:, 8:] = 1
    got = refine(jnp.asarray(image), jnp.asarray(soft), iterations=200)
    np.testing.assert_array_equal(np.asarray(got) > 0.5, np.arange(12)[None, :].repeat(12, 0) >= 6)


def test_a_constant_mask_stays_constant():
    image = jnp.asarray(random_image(np.random.default_rng(3), 9, 9))
    got = refine(image, jnp.full((9, 9), 0.25), iterations=50)
    # The 8 float32 weights sum to 1 within rounding, 50 times.
    np.testing.assert_allclose(got, 0.25, atol=5e-6)


def test_zero_iterations_return_the_mask():
    soft = jnp.asarray(np.random.default_rng(4).random((6, 7)), jnp.float32)
    np.testing.assert_array_equal(refine(jnp.zeros((6, 7, 3)), soft, iterations=0), soft)


def test_an_image_of_one_pixel_keeps_its_mask():
    got = refine(jnp.full((1, 1, 3), 9.0), jnp.full((1, 1), 0.5), iterations=3, dilations=(1, 4))
    np.testing.assert_allclose(got, [[0.5]], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": -1}, "iterations=-1 is negative"),
        ({"iterations": 1, "dilations": ()}, "at least one distance"),
        ({"iterations": 1, "dilations": (1, 0)}, r"dilations=\(1, 0\).*1 or more"),
    ],
)
def test_unsupported_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        refine(jnp.zeros((4, 4, 3)), jnp.zeros((4, 4)), **options)
