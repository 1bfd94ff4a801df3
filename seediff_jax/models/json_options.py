"""Dataclasses from parsed JSON: every key is read, known to have no effect, or an error.

Numbers have limits, because a damaged config with a width of 10**9 would trace or compile without
end. The limits are several times the values of the largest Stable Diffusion.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from seediff_jax.errors import UserError, listed, shown

_COUNTS = (1, 2**16)
_OF_FIELD = {
    "eos_token_id": (0, 2**20),
    "freq_shift": (0, 1),
    "in_channels": (1, 2**8),
    "latent_channels": (1, 2**8),
    "layers_per_block": (1, 4),
    "num_hidden_layers": (0, 64),  # the embedded model's text encoder is embeddings alone
    "out_channels": (1, 2**8),
    "sample_size": (1, 2**12),
    "transformer_layers_per_block": (0, 16),
    "vocab_size": (1, 2**20),
}
_MOST_BLOCKS = 8


def known_fields(
    cls: type,
    json: Mapping[str, Any],
    source: str,
    without_effect: Mapping[str, Sequence[Any]],
    ignored: Collection[str],
) -> dict[str, Any]:
    """Returns the fields of a dataclass that the JSON sets, with lists as tuples.

    Args:
        cls: the dataclass.
        json: parsed JSON.
        source: names it in errors.
        without_effect: keys that are not fields, and the values at which they change nothing.
        ignored: keys that change nothing at any value, as do those that start with "_".
    """
    names = {field.name for field in dataclasses.fields(cls)}
    fields = {}
    for key, value in json.items():
        if key in names:
            fields[key] = tuple(value) if isinstance(value, list) else value
        elif key in without_effect:
            require_one_of(source, key, value, without_effect[key])
        elif not key.startswith("_") and key not in ignored:
            raise UserError(
                f"{source}: unknown option {_text(key)} = {_text(value)}; this package would run "
                f"the checkpoint without it. Supported options: {', '.join(sorted(names))}"
            )
    return fields


def make_config(cls: type, fields: Mapping[str, Any], source: str) -> Any:
    """Makes a dataclass of `fields`.

    Raises:
        UserError: a field is missing, of another type, or out of range; a tuple is empty or has
            more items than a model has blocks.
    """
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if missing := sorted(required - fields.keys()):
        raise UserError(f"{source}: missing options {', '.join(missing)}")
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
            raise UserError(f"{source}: {field.name} = {_text(value)}, expected {kind}")
        if is_list and not 1 <= len(items) <= _MOST_BLOCKS:
            raise UserError(
                f"{source}: {field.name} has {len(items)} items, expected 1 to {_MOST_BLOCKS}"
            )
        for item in items:
            _require_bounds(source, field.name, item)
    return cls(**fields)


def per_block(source: str, key: str, value: Any, num_blocks: int) -> tuple[Any, ...]:
    """Returns one value per block, of a list of that length or a number for all blocks."""
    if not isinstance(value, int | list | tuple):
        raise UserError(f"{source}: {key} = {_text(value)}, expected a number or a list of them")
    values = (value,) * num_blocks if isinstance(value, int) else tuple(value)
    if len(values) != num_blocks:
        raise UserError(
            f"{source}: {key} = {_text(value)} has {len(values)} items, expected {num_blocks}"
        )
    return values


def require_one_of(source: str, key: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises a UserError unless `value` is one of `allowed`."""
    # `1 == True` in Python: compare types too, so that a stray boolean is not taken for a number.
    if not any(
        value == item and isinstance(value, bool) == isinstance(item, bool) for item in allowed
    ):
        supported = listed(map(repr, allowed))
        raise UserError(
            f"{source}: {key} = {_text(value)} is not supported; supported: {supported}"
        )


def require_divisible(source: str, key: str, value: int, divisor: int) -> None:
    """Raises a UserError unless `value` is a multiple of `divisor`."""
    if divisor < 1 or value % divisor:
        raise UserError(f"{source}: {key} = {value} is not a multiple of {divisor}")


def _is(value: Any, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return isinstance(value, wanted)


def _require_bounds(source: str, name: str, number: Any) -> None:
    if isinstance(number, float) and not (math.isfinite(number) and number > 0):
        raise UserError(f"{source}: {name} = {number}, expected a finite number above 0")
    if isinstance(number, int) and not isinstance(number, bool):
        least, most = _OF_FIELD.get(name, _COUNTS)
        if not least <= number <= most:
            raise UserError(f"{source}: {name} = {_text(number)}, expected {least} to {most}")


def _text(value: Any) -> str:
    return shown(repr(value), 200)
