"""Dataclasses from parsed JSON: every key is understood, without effect, or an error."""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from seediff_jax.models.bounds import check_bounds


def known_fields(
    cls: type,
    json: Mapping[str, Any],
    source: str,
    without_effect: Mapping[str, Sequence[Any]],
    ignored: Collection[str],
) -> dict[str, Any]:
    """The fields of a dataclass that the JSON sets; lists become tuples.

    Args:
        cls: the dataclass.
        json: parsed JSON.
        source: names it in errors.
        without_effect: keys that are no fields, and the values at which they change nothing.
        ignored: keys that change nothing at any value; those that start with "_" never do.

    Raises:
        ValueError: a key is unknown, or has a value that would change something.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    fields = {}
    for key, value in json.items():
        if key in names:
            fields[key] = tuple(value) if isinstance(value, list) else value
        elif key in without_effect:
            require_one_of(source, key, value, without_effect[key])
        elif not key.startswith("_") and key not in ignored:
            raise ValueError(
                f"{source}: unknown option {key!r} = {value!r}; this package would run the "
                f"checkpoint without it. Supported options: {', '.join(sorted(names))}"
            )
    return fields


def build(cls: type, fields: Mapping[str, Any], source: str) -> Any:
    """Makes a dataclass of `fields`, whose types and bounds are checked.

    Raises:
        ValueError: a field is missing, of another type, or beyond its bounds.
    """
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if missing := sorted(required - fields.keys()):
        raise ValueError(f"{source}: missing options {', '.join(missing)}")
    for field in dataclasses.fields(cls):
        value, wanted = fields.get(field.name, field.default), field.type
        if isinstance(wanted, types.UnionType):  # X | None
            if value is None:
                continue
            wanted = typing.get_args(wanted)[0]
        is_list = typing.get_origin(wanted) is tuple
        wanted = typing.get_args(wanted)[0] if is_list else wanted
        items = value if is_list and isinstance(value, tuple) else (value,)
        if isinstance(value, tuple) != is_list or not all(_is(item, wanted) for item in items):
            kind = f"a list of {wanted.__name__}" if is_list else f"one {wanted.__name__}"
            raise ValueError(f"{source}: {field.name} = {value!r}, needed {kind}")
    config = cls(**fields)
    check_bounds(config, source)
    return config


def per_block(source: str, key: str, value: Any, num_blocks: int) -> tuple[Any, ...]:
    """One value a block: a list of that length, or a number that all blocks share.

    Raises:
        ValueError: it is neither, or the list is of another length.
    """
    if not isinstance(value, int | list | tuple):
        raise ValueError(f"{source}: {key} = {value!r}, needed a number or a list of them")
    values = (value,) * num_blocks if isinstance(value, int) else tuple(value)
    if len(values) != num_blocks:
        raise ValueError(
            f"{source}: {key} = {value!r} has {len(values)} items, needed {num_blocks}"
        )
    return values


def require_one_of(source: str, key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises a ValueError unless `value` is one of `allowed`."""
    # `1 == True` in Python: compare types too, so that a stray boolean is not taken for a number.
    if not any(
        value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed
    ):
        listed = ", ".join(repr(item) for item in allowed)
        raise ValueError(f"{source}: {key} = {value!r} is not supported; supported: {listed}")


def require_divisible(source: str, key: str, value: int, divisor: int) -> None:
    """Raises a ValueError unless `value` is a multiple of `divisor`."""
    if divisor < 1 or value % divisor:
        raise ValueError(f"{source}: {key} = {value} is not a multiple of {divisor}")


def _is(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, wanted)
