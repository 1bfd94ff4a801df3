"""Parsers of flags whose value is not a plain number, word or list."""

import json
import math
from collections.abc import Sequence
from typing import Any

from seediff_jax.errors import UserError, shown


def parse_scheduler_options(text: str) -> dict[str, Any]:
    """Splits `name=value,name=value`; a value is JSON's, or else a word.

    Raises:
        UserError: a part is not a pair.
    """
    options: dict[str, Any] = {}
    for pair in filter(None, text.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value) or name in options:
            raise UserError(
                f"scheduler_options={shown(text, 200)!r}: {shown(pair, 200)!r} must be name=value, "
                "each once"
            )
        try:
            options[name] = json.loads(value)
        except (ValueError, RecursionError):
            options[name] = value
        if isinstance(options[name], float) and not math.isfinite(options[name]):
            raise UserError(f"scheduler_options={shown(text, 200)!r}: {name} must be finite")
    return options


def parse_loras(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Splits `path:weight`; without a weight it is 1.

    Raises:
        UserError: a weight is not a finite number.
    """
    pairs = []
    for text in texts:
        path, colon, weight = text.rpartition(":")
        if not colon or weight.endswith(".safetensors"):
            path, weight = text, "1"
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or not path:
            wrong = f"{shown(weight, 200)!r} is not a number" if path else "it names no file"
            raise UserError(f"lora={shown(text, 200)!r}: {wrong}; write path:weight")
        pairs.append((path, number))
    return tuple(pairs)


def parse_batch_size(text: str) -> int | None:
    """Reads a number, or "auto", which is None.

    Raises:
        UserError: it is neither.
    """
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"batch_size={shown(text, 200)!r} must be a whole number, or auto"
        ) from None
