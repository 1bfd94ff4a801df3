"""JSON from files of unknown origin: an object, or a ValueError that names the file.

Refused beside what is no JSON: what Python's parser takes in silence (NaN, numbers beyond
float64, a key that is given twice) or fails on in another way (deep nesting), and files so long
that they are no config. Infinity is refused, too, unless the caller asks for it: diffusers writes
it into the files of a scheduler.
"""

import collections
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

LONGEST = 2**24
"""Bytes; the tokenizer.json of Stable Diffusion, the longest in use, has 3.6 million."""
DEEPEST = 32
"""Lists and objects inside one another; tokenizer.json has 6."""


def read_json(path: Path, *, infinity: bool = False) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        infinity: read Infinity and -Infinity, too.

    Raises:
        ValueError: the file is missing, no JSON, or holds something else than an object.
    """
    try:
        if not path.exists():
            raise ValueError(f"{path} is missing; check the name, or fetch the file again")
        if not path.is_file():  # a pipe would make the reader wait
            raise ValueError(f"{path} is not a file; a JSON file is needed")
        if (size := path.stat().st_size) > LONGEST:
            raise ValueError(f"{path} has {size} bytes; JSON files are read up to {LONGEST}")
        text = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        content = parse_json(text, infinity=infinity)
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object")
    return content


def parse_json(text: bytes, *, infinity: bool = False) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: the text is no JSON, or one of the cases above.
    """
    try:
        content = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_infinity if infinity else _refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_flat(content)
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in counts.items() if count > 1)
        raise ValueError(f"keys that are given twice: {', '.join(map(repr, twice))}")
    return content


def _require_flat(content: Any) -> None:
    """Refuses what is nested so deeply that a later walk, or its repr, could fail."""
    level = [content]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError("it is nested too deeply")


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _infinity(name: str) -> float:
    return _refuse_constant(name) if name == "NaN" else float(name)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large")
    return value
