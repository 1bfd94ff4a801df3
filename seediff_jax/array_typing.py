"""Array types: axis letters, jaxtyping aliases and the run-time check of arguments.

Axis letters, used in every signature of the package:

    b  batch (images)        c  classes of an image     l  text tokens      d  embedding width
    n  image locations of one attention level (n = side * side), row major
    h  height                w  width                   H, W  height, width of the image, pixels

Images and latents are NHWC. A single axis is written with a leading blank (`" n"`).
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from beartype.door import is_bearable
from jax import Array
from jaxtyping import AbstractArray, Bool, Float, Int, Real, UInt8, jaxtyped

from seediff_jax.errors import listed, shown

__all__ = ["Array", "Bool", "Float", "Int", "Real", "UInt8", "typechecked"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_NARROWED = {np.dtype(f"{kind}64"): np.dtype(f"{kind}32") for kind in ("float", "int", "uint")}


def typechecked(function: _Function) -> _Function:
    """Decorator: converts array arguments, and checks arguments and result by the signature.

    On a class it checks the arguments of the constructor.

    Where the signature has a JAX array, a NumPy array, a number or a list of arrays of equal shapes
    is accepted, too. 64-bit types become 32-bit types whatever `jax_enable_x64` says. Inside
    `jax.jit` conversion and check happen while tracing and cost the compiled program nothing.

    Raises:
        TypeError: an argument does not fit the signature. The message is one line: the argument,
            what it is and what is needed. A result that does not fit raises the same.
    """
    if isinstance(function, type):
        function.__init__ = typechecked(function.__init__)
        return function
    label = function.__name__
    if label == "__init__":
        label = function.__qualname__.split(".")[-2]
    signature = inspect.signature(function)
    empty, returned = inspect.Signature.empty, signature.return_annotation
    hints = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    hints = {name: hint for name, hint in hints.items() if hint is not empty}

    @functools.wraps(function)
    def checked(*args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{label}: {error}") from None
        given = bound.arguments
        for name in given.keys() & hints.keys():
            given[name] = _convert(given[name], hints[name])
        with jaxtyped("context"):  # equal axis letters mean equal sizes in it
            for name, hint in hints.items():
                if name in given and not is_bearable(given[name], hint):
                    raise TypeError(
                        f"{label}: {name} is {_describe_value(given[name])}, expected "
                        f"{_describe_hint(hint)}{_describe_sizes(name, hints, given)}"
                    )
            result = function(*bound.args, **bound.kwargs)
            if returned is not empty and not is_bearable(result, returned):
                raise TypeError(
                    f"{label}: the result is {_describe_value(result)}, expected "
                    f"{_describe_hint(returned)}"
                )
        return result

    return checked


def _convert(value: Any, hint: Any) -> Any:
    """Converts array-like values where `hint` is a JAX array; returns other values unchanged."""
    for alternative in _alternatives(hint):
        if isinstance(value, Mapping) and typing.get_origin(alternative) is Mapping:
            of_value = typing.get_args(alternative)[1]
            return {key: _convert(item, of_value) for key, item in value.items()}
    plain = tuple(h for h in _alternatives(hint) if h in (bool, int, float))
    if not any(map(_is_array_hint, _alternatives(hint))) or type(value) in plain:
        return value
    if not isinstance(value, (Array, np.ndarray, np.generic, list, tuple, bool, int, float)):
        return value
    has_jax_arrays = any(isinstance(leaf, Array) for leaf in jax.tree.leaves(value))
    try:
        array = jnp.asarray(value) if has_jax_arrays else np.asarray(value)
    except (TypeError, ValueError):  # not arrays of equal shapes
        return value
    return value if array.dtype.kind in "OSU" else _narrow(array)


def _narrow(array: Any) -> Array:
    return jnp.asarray(array, _NARROWED.get(array.dtype, array.dtype))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if is_union else (hint,)


def _is_array_hint(hint: Any) -> bool:
    is_shaped = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return hint is Array or (is_shaped and hint.array_type is Array)


def _describe_hint(hint: Any) -> str:
    """Describes a type in words, for example "float [h, w] or None"."""
    if len(alternatives := _alternatives(hint)) > 1:
        return " or ".join(map(_describe_hint, alternatives))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return f"{hint.dtype.__name__.lower()} [{', '.join(_axis_names(hint))}]"
    if typing.get_origin(hint) is Mapping:
        return "a mapping of {} to {}".format(*map(_describe_hint, typing.get_args(hint)))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _describe_value(value: Any) -> str:
    """Describes a value in one line: an array by its dtype and shape."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        items = (f"{shown(str(k), 40)}: {_describe_value(item)}" for k, item in value.items())
        return f"{{{listed(items)}}}"
    if isinstance(value, (list, tuple)):
        items = (
            f"length {len(v)}" if isinstance(v, (list, tuple)) else _describe_value(v)
            for v in value
        )
        return f"a {type(value).__name__} of {listed(items) or 'nothing'}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return shown(repr(value), 60)
    return f"of type {type(value).__name__}"


def _describe_sizes(name: str, hints: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Lists the sizes that the arguments before `name` give to its axes."""
    sizes: dict[str, int] = {}
    for other, hint in hints.items():
        if other == name:
            break
        shape = getattr(given.get(other), "shape", None)
        for axes in map(_axis_names, _alternatives(hint)):
            if shape is not None and len(axes) == len(shape) and "*" not in "".join(axes):
                sizes = dict(zip(axes, shape, strict=True)) | sizes
    needed = {
        axis for alternative in _alternatives(hints[name]) for axis in _axis_names(alternative)
    }
    known = [
        f"{axis} = {size}" for axis, size in sizes.items() if axis in needed and not axis.isdigit()
    ]
    return f" with {listed(known)}" if known else ""


def _axis_names(hint: Any) -> list[str]:
    return getattr(hint, "dim_str", "").split()
