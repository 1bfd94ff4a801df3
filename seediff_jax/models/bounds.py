"""How large the numbers of a config may be, so that no config makes a program that cannot end.

The bounds lie several times above the largest Stable Diffusion. They are checked before anything is
traced or allocated: every layer takes time to trace, and a width of 10**9 is written in no time.
"""

import dataclasses
import math
from typing import Any

_COUNTS = (1, 2**16)
_OF_FIELD = {
    "eos_token_id": (0, 2**20),
    "freq_shift": (0, 1),
    "layers_per_block": (1, 4),
    "num_hidden_layers": (0, 64),  # the embedded model's text encoder is embeddings alone
    "sample_size": (1, 2**12),
    "transformer_layers_per_block": (0, 16),
    "vocab_size": (1, 2**20),
}
_MOST_BLOCKS = 8


def check_bounds(config: Any, source: str) -> None:
    """Checks the numbers of a frozen dataclass, each alone and those in its tuples.

    Args:
        config: its fields have the types that they are annotated with.
        source: names the file in errors.

    Raises:
        ValueError: an integer is beyond its bounds, a float is not above 0 or not finite, or a
            tuple is empty or has more items than a model has blocks.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple) and not 1 <= len(value) <= _MOST_BLOCKS:
            raise ValueError(
                f"{source}: {field.name} has {len(value)} items, needed 1 to {_MOST_BLOCKS}"
            )
        for number in value if isinstance(value, tuple) else (value,):
            _check_number(source, field.name, number)


def _check_number(source: str, name: str, number: Any) -> None:
    if isinstance(number, float) and not (math.isfinite(number) and number > 0):
        raise ValueError(f"{source}: {name} = {number}, needed a finite number above 0")
    if isinstance(number, int) and not isinstance(number, bool):
        least, most = _OF_FIELD.get(name, _COUNTS)
        if not least <= number <= most:
            raise ValueError(f"{source}: {name} = {number}, needed {least} to {most}")
