"""A choice of attention layers by name or by file: "published", "coarse", or lists in a JSON file.

`capture.json` of a model folder is such a file.
"""

import os
from pathlib import Path
from typing import Any

from seediff_jax.json_files import read_json
from seediff_jax.models.capture import PRESETS, CaptureConfig, check_capture
from seediff_jax.models.config import UNetConfig


def choose_capture(choice: str | CaptureConfig, unet: UNetConfig) -> CaptureConfig:
    """The layers that a name or a file says.

    Args:
        choice: a name of `capture.PRESETS`, a JSON file with the lists "cross_layers",
            "self_layers" and, if not all UNet calls are to be averaged, "calls", or the result.
        unet: the UNet, whose layers they are.

    Raises:
        ValueError: there is no such preset or file, or it asks for layers that the UNet lacks.
    """
    if isinstance(choice, str):
        if choice in PRESETS:
            return PRESETS[choice](unet)
        if not choice.endswith(".json"):
            raise ValueError(f"capture={choice!r} is neither {' nor '.join(PRESETS)} nor a .json")
        return _read_capture(Path(os.path.expanduser(choice)), unet)
    check_capture(choice, unet)
    return choice


def _read_capture(path: Path, unet: UNetConfig) -> CaptureConfig:
    content = read_json(path)
    try:
        capture = _capture_config(content)
        check_capture(capture, unet)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return capture


def _capture_config(content: dict[str, Any]) -> CaptureConfig:
    content = {"calls": [0.0, 1.0], **content}
    kinds = {"cross_layers": str, "self_layers": str, "calls": (int, float)}
    if content.keys() != kinds.keys() or not all(
        isinstance(values, list) and all(isinstance(value, kinds[name]) for value in values)
        for name, values in content.items()
    ):
        raise ValueError(
            "needed are lists of layer names under cross_layers and self_layers, and "
            'perhaps "calls": [from, to]; nothing else'
        )
    if len(content["calls"]) != 2:
        raise ValueError(f"calls = {content['calls']} must be two numbers, from and to")
    return CaptureConfig(**{name: tuple(values) for name, values in content.items()})
