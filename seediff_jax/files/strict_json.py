"""JSON from files of unknown origin: an object, or a UserError that names the file.

It also refuses what Python's parser accepts silently (NaN, numbers beyond float64, a key that is
given twice), deep nesting, on which the parser fails in another way, and files too long to be a
config. Infinity is refused unless the caller allows it: diffusers writes it into scheduler files.
"""

import collections
import functools
import json
import math
import os
from pathlib import Path
from typing import Any

from seediff_jax.errors import UserError, listed, shown
from seediff_jax.files.text import open_regular

LONGEST = 2**24
"""Bytes; the tokenizer.json of Stable Diffusion, the longest in use, has 3.6 million."""
DEEPEST = 32
"""Levels of lists and objects; tokenizer.json has 6."""


def read_json(path: Path, *, infinity: bool = False) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        path: the file.
        infinity: read Infinity and -Infinity, too.

    Raises:
        UserError: the file is missing, is not JSON, or holds something other than an object.
    """
    content = read_json_value(path, infinity=infinity)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it must hold a JSON object")
    return content


def read_json_value(path: Path, *, infinity: bool = False, longest: int = LONGEST) -> Any:
    """Reads any value in a JSON file of at most `longest` bytes; otherwise as `read_json`."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > longest:
                raise UserError(f"{path} has {size} bytes; JSON files are read up to {longest}")
            text = file.read(size)  # `longest` would be allocated at once
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check the name, or fetch the file again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return parse_json(text, infinity=infinity)
    except ValueError as error:
        raise UserError(f"{path} is damaged, it is not JSON: {shown(str(error))}") from error


def parse_json(text: bytes | str, *, infinity: bool = False, flat: bool = True) -> Any:
    """Parses a JSON text in UTF-8; with `flat=False` the caller must call `require_flat`.

    Raises:
        UserError: the text is not JSON, or one of the cases above.
    """
    try:
        content = _decoder(infinity).decode(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise UserError("it is nested too deeply") from None
    except MemoryError:
        raise UserError("it is too large for the memory") from None
    except ValueError as error:
        raise UserError(str(error)) from error
    if flat:
        require_flat(content)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in counts.items() if count > 1)
        raise UserError(f"keys that are given twice: {listed(map(repr, twice))}")
    return content


def require_flat(content: Any, levels: int = DEEPEST - 1) -> None:
    """Raises a UserError if lists and objects are nested so deeply that `repr` could fail."""
    if not isinstance(content, (dict, list)):
        return
    if not levels:
        raise UserError("it is nested too deeply")
    for child in content.values() if isinstance(content, dict) else content:
        require_flat(child, levels - 1)


@functools.cache
def _decoder(infinity: bool) -> json.JSONDecoder:
    def constant(name: str) -> float:
        if infinity and name != "NaN":
            return float(name)
        raise UserError(f"{name} is not a number of JSON")

    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=constant, parse_float=_finite)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise UserError(f"{shown(text, 50)} is too large")
    return value
