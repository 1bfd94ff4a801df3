"""The check of arguments: what is converted, and how a wrong argument is reported."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.array_typing import Array, Bool, Float, Int, UInt8, typechecked


@typechecked
def scale(
    maps: Float[Array, "c n"],
    weights: Float[Array, " c"] | None = None,
    levels: Mapping[int, Float[Array, "n n"]] | None = None,
    *,
    factor: float | Float[Array, ""] = 2.0,
    rows: Int[Array, " r"] | None = None,
) -> Float[Array, "c n"]:
    """Keeps the types that it is given."""
    scaled = maps * factor
    return scaled if weights is None else scaled * weights[:, None]


MAPS = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "maps",
    [MAPS, np.float32(MAPS), jnp.float32(MAPS), MAPS.tolist(), list(MAPS), list(jnp.float32(MAPS))],
)
def test_arrays_of_any_library_and_lists_of_them_are_taken(maps):
    got = scale(maps, [1.0, 2.0])
    assert isinstance(got, jax.Array) and got.dtype == jnp.float32
    np.testing.assert_array_equal(got, MAPS * [[2], [4]])


def test_values_of_64_bits_become_32_bits_where_jax_allows_64():
    with jax.enable_x64(True):
        given = jnp.asarray(MAPS)
        assert given.dtype == jnp.float64
        assert scale(given, MAPS[:, 0], factor=np.float64(3)).dtype == jnp.float32
        assert jax.jit(scale)(given, factor=3.0).dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([MAPS[0]], {}, "scale: maps is float32 [3], expected float [c, n]"),
        ([np.int32(MAPS)], {}, "scale: maps is int32 [2, 3], expected float [c, n]"),
        ([None], {}, "scale: maps is None, expected float [c, n]"),
        (["text"], {}, "scale: maps is 'text', expected float [c, n]"),
        (
            [MAPS, np.ones(3)],
            {},
            "scale: weights is float32 [3], expected float [c] or None with c = 2",
        ),
        (
            [[MAPS[0], MAPS[1, :2]]],
            {},
            "scale: maps is a list of float64 [3], float64 [2], expected float [c, n]",
        ),
        (
            [MAPS, None, {8: np.ones((3, 2))}],
            {},
            "scale: levels is {8: float32 [3, 2]}, "
            "expected a mapping of int to float [n, n] or None",
        ),
        (
            [MAPS],
            {"factor": [1.0, 2.0]},
            "scale: factor is float32 [2], expected float or float []",
        ),
        ([MAPS], {"rows": [0.5]}, "scale: rows is float32 [1], expected int [r] or None"),
        ([], {}, "scale: missing a required argument: 'maps'"),
        ([MAPS], {"size": 3}, "scale: got an unexpected keyword argument 'size'"),
    ],
)
def test_a_wrong_argument_is_said_in_one_line(arguments, options, message):
    with pytest.raises(TypeError) as error:
        scale(*arguments, **options)
    assert str(error.value) == message


def test_a_message_is_short_and_printable_whatever_was_given():
    for given in ("\x1b[31m" * 1000, [np.ones(n) for n in range(1000)], {"a\n": np.ones(3)}, scale):
        with pytest.raises(TypeError) as error:
            scale(given)
        assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_a_result_that_does_not_fit_is_an_error():
    @typechecked
    def first(maps: Float[Array, "c n"]) -> Float[Array, " n"]:
        return maps[:, 0]

    with pytest.raises(
        TypeError, match=r"first: the result is float32 \[2\], expected float \[n\]"
    ):
        first(MAPS)


def test_vmap_and_jit_see_the_shape_of_one_example_and_trace_once():
    traces = []

    @typechecked
    def count(seeds: Bool[Array, " n"]) -> Int[Array, ""]:
        traces.append(seeds.shape)
        return jnp.sum(seeds, dtype=jnp.int32)

    program = jax.jit(jax.vmap(count))
    for rows in (np.eye(3, dtype=bool), jnp.eye(3, dtype=bool)):
        np.testing.assert_array_equal(program(rows), [1, 1, 1])
    assert traces == [(3,)]
    with pytest.raises(TypeError, match=r"count: seeds is bool \[3, 3\], expected bool \[n\]"):
        count(np.eye(3, dtype=bool))


@typechecked
@dataclasses.dataclass(frozen=True)
class Pair:
    """A class whose fields are checked when it is made."""

    image: UInt8[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]


def test_the_fields_of_a_class_are_checked_when_it_is_made():
    image = np.zeros((2, 3), np.uint8)
    assert isinstance(Pair(image, image), Pair)
    with pytest.raises(TypeError, match=r"^Pair: mask is uint8 \[3, 2\], expected uint8 \[h, w\]"):
        Pair(image, mask=image.T)
