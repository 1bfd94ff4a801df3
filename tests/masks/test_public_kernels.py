"""Every public mask kernel takes NumPy arrays, and reports a wrong shape in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import seediff_jax as sd
from seediff_jax.errors import UserError

RANDOM = np.random.default_rng(0)
CROSS = RANDOM.random((3, 64), np.float32)
SELF = {side: RANDOM.random((side**2, side**2), np.float32) for side in (8, 16)}
SEEDS = CROSS[0] > 0.7
IMAGE = RANDOM.integers(0, 256, (16, 20, 3), np.uint8)
SOFT = RANDOM.random((16, 20), np.float32)

CALLS = {
    "seed_map": lambda to: sd.seed_map(to(CROSS)),
    "find_seeds": lambda to: sd.find_seeds(to(CROSS[0])),
    "expand": lambda to: sd.expand(to(SEEDS), jax.tree.map(to, SELF)),
    "soft_mask": lambda to: sd.soft_mask(to(CROSS), jax.tree.map(to, SELF), 32),
    "class_soft_mask": lambda to: sd.class_soft_mask(
        to(CROSS), jax.tree.map(to, SELF), 32, sd.MaskConfig(method="exponentiation")
    ),
    "refine": lambda to: sd.refine(to(IMAGE), to(SOFT), iterations=2, dilations=[1, 2]),
    "label_map": lambda to: sd.label_map(to(np.stack([SOFT, 1 - SOFT])), to(np.float32(0.6))),
}


def to_float64(array):
    return array.astype(np.float64) if array.dtype == np.float32 else array


@pytest.mark.parametrize("name", CALLS)
def test_numpy_arrays_and_lists_of_arrays_give_what_jax_arrays_give(name):
    expected = CALLS[name](jnp.asarray)
    for to in (np.asarray, to_float64, list):
        if to is list and name in ("expand", "soft_mask", "class_soft_mask", "label_map"):
            continue  # their dictionaries and scalars are not lists
        got = CALLS[name](to)
        assert isinstance(got, jax.Array) and got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(
        sd.label_map([SOFT, 1 - SOFT], 0.6), CALLS["label_map"](jnp.asarray)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sd.seed_map(CROSS[0]),
            "seed_map: cross_attention is float32 [64], expected float [layers, n0]",
        ),
        (
            lambda: sd.find_seeds(CROSS),
            "find_seeds: seed_map is float32 [3, 64], expected float [n0]",
        ),
        (
            lambda: sd.expand(SEEDS, SELF[8]),
            "expand: self_attention is float32 [64, 64], expected a mapping of int to float [_, _]",
        ),
        (
            lambda: sd.expand(CROSS[0], SELF),
            "expand: seeds is float32 [64], expected bool [n0]",
        ),
        (
            lambda: sd.soft_mask(CROSS, {8: SELF[8][0]}, 32),
            "soft_mask: self_attention is {8: float32 [64]}, expected a mapping of int to "
            "float [_, _]",
        ),
        (
            lambda: sd.class_soft_mask(CROSS, SELF, 32, "seediff"),
            "class_soft_mask: config is 'seediff', expected MaskConfig",
        ),
        (
            lambda: sd.refine(IMAGE, SOFT.T, iterations=1),
            "refine: soft_mask is float32 [20, 16], expected float [H, W] with H = 16, W = 20",
        ),
        (
            lambda: sd.label_map(SOFT, 0.5),
            "label_map: soft_masks is float32 [16, 20], expected float [c, H, W]",
        ),
    ],
)
def test_a_wrong_shape_gives_one_line(call, message):
    with pytest.raises(TypeError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sd.expand(SEEDS, {8: SELF[8][:, :5]}), "self_attention[8] is [64, 5]"),
        (lambda: sd.expand(SEEDS[:9], SELF), "needs 64 seeds, got 9"),
        (lambda: sd.expand(SEEDS, {}), "self_attention has no level"),
        (lambda: sd.expand(SEEDS, SELF, power=0), "power=0 is not supported"),
        (lambda: sd.refine(IMAGE, SOFT, iterations=-1), "iterations=-1 is negative"),
        (lambda: sd.soft_mask(CROSS, SELF, 0), "side=0 is not a size"),
    ],
)
def test_sizes_and_options_that_do_not_fit_are_refused_in_one_line(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value) and len(str(error.value)) < 200
    assert "\n" not in str(error.value)
