"""float16 <-> float32 against NumPy's casts: every float16, every tie, and their neighbours."""

import numpy as np
import pytest

from seediff_jax.half_floats import narrow, widen

HALVES = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = HALVES[np.isfinite(HALVES)]


def bits(array):
    return array.view(f"u{array.itemsize}")


def test_every_float16_is_widened_exactly():
    np.testing.assert_array_equal(bits(widen(FINITE)), bits(FINITE.astype(np.float32)))


def test_every_float16_comes_back():
    np.testing.assert_array_equal(bits(narrow(widen(FINITE))), bits(FINITE))


def test_infinity_and_nan_are_widened():
    np.testing.assert_array_equal(widen(HALVES), HALVES.astype(np.float32))


def test_ties_and_their_neighbours_are_rounded_as_numpy_does_it():
    """Halfway between float16 numbers, the float32 numbers beside that, and beside the numbers."""
    numbers = np.sort(FINITE[FINITE >= 0]).astype(np.float32)
    ties = (numbers[:-1] + numbers[1:]) / 2  # exact: a float32 has 13 bits more
    around = [np.nextafter(x, way, dtype=np.float32) for x in (numbers, ties) for way in (0, 7e4)]
    values = np.concatenate([numbers, ties, *around])
    values = values[np.abs(values) < 65520]
    values = np.concatenate([values, -values])
    np.testing.assert_array_equal(bits(narrow(values)), bits(values.astype(np.float16)))


def test_random_numbers_of_every_size_are_rounded_as_numpy_does_it():
    patterns = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32)
    values = patterns.view(np.float32)
    values = values[np.abs(values) < 65520]
    np.testing.assert_array_equal(bits(narrow(values)), bits(values.astype(np.float16)))


@pytest.mark.parametrize("value", [65520, -65520, 1e30, np.inf, -np.inf, np.nan])
def test_beyond_float16_is_infinity_and_nan_stays(value):
    values = np.array([1, value, 2], np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(narrow(values), expected)


def test_strided_unaligned_and_empty_arrays_are_cast_alike():
    halves = FINITE[:6000].reshape(60, 100)
    moved = np.frombuffer(b"\0" + halves.tobytes(), np.uint8)[1:].view(np.float16)
    wide = halves.astype(np.float32)
    np.testing.assert_array_equal(widen(moved), wide.ravel())
    np.testing.assert_array_equal(widen(halves.T), wide.T)
    np.testing.assert_array_equal(widen(halves[:, ::2]), wide[:, ::2])
    np.testing.assert_array_equal(narrow(wide.T), halves.T)
    assert widen(halves[:0]).shape == narrow(wide[:0]).shape == (0, 100)


def test_the_argument_is_not_changed():
    halves, wide = FINITE.copy(), FINITE.astype(np.float32)
    halves.flags.writeable = wide.flags.writeable = False
    widen(halves), narrow(wide)
