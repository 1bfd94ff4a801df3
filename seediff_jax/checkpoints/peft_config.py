"""Reads the scale and rank of LoRA layers from the config of peft."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seediff_jax.checkpoints.safetensors_files import Tensors
from seediff_jax.errors import UserError, listed, quoted, shown
from seediff_jax.files.strict_json import parse_json, read_json
from seediff_jax.models.model import COMPONENTS

PEFT = "base_model.model."
"""Beginning of the names of tensors in an adapter of peft."""

_LARGEST_ALPHA = 10**6
_METADATA, _CONFIG = "lora_adapter_metadata", "adapter_config.json"
# Options of peft's LoraConfig that change what an adapter computes, with their supported values;
# options of its training; all others must be off.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
_OF_TRAINING = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type", "ensure_weight_tying",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The scale of an adapter in peft's config.

    Attributes:
        alphas: alpha by the name of a module, or the end of the name; "" has that of all others.
        ranks: as `alphas`; without "" if it is not stated.
        is_rank_stabilized: whether alpha is divided by the root of the rank, not by the rank.
    """

    alphas: Mapping[str, float]
    ranks: Mapping[str, float]
    is_rank_stabilized: bool

    def scale(self, module: str, rank: int) -> float:
        """Returns the factor of up @ down for a layer."""
        alpha = _of_module(self.alphas, module)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def rank_of(self, module: str) -> float | None:
        """Returns the rank that a layer must have; None if the config does not state it."""
        return _of_module(self.ranks, module)


def _of_module(values: Mapping[str, Any], module: str) -> Any:
    ends = (name for name in values if not name or f".{module}".endswith(f".{name}"))
    return values.get(next(ends, ""))


def read_adapters(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> dict[str, Adapter]:
    """Reads peft's config: in a file next to an adapter of peft, or in the header of diffusers.

    The keys in a header begin with the component: `{"unet.lora_alpha": 8, ...}`.

    Returns:
        The adapter of each component that states one.
    """
    stated: dict[str, dict[str, Any]] = {}
    if any(name.startswith(PEFT) for name in tensors):
        source = path.parent / _CONFIG
        if not source.exists():
            raise UserError(
                f"{source} is missing; {path.name} is an adapter of peft, whose alpha is in this "
                "file"
            )
        stated = dict.fromkeys(("unet", "text_encoder"), read_json(source))
    else:
        source = f"{path}: {_METADATA} in its header"
        try:
            header = parse_json(metadata.get(_METADATA, "{}").encode("utf-8", "replace"))
        except UserError as error:
            raise UserError(f"{source} is not JSON: {shown(str(error))}") from error
        if not isinstance(header, dict):
            raise UserError(f"{source} is not a JSON object")
        for key, value in header.items():
            component, _, option = key.partition(".")
            stated.setdefault(component, {})[option] = value
    return {name: _make_adapter(stated[name], source) for name in COMPONENTS if name in stated}


def _make_adapter(options: Mapping[str, Any], source: Path | str) -> Adapter:
    options = dict(options)
    alphas, ranks = (
        _read_pattern(options.pop(key, None) or {}, key, source)
        for key in ("alpha_pattern", "rank_pattern")
    )
    stated = {"lora_alpha": options.pop("lora_alpha", None)}
    if (rank := options.pop("r", None)) is not None:
        ranks[""] = stated["r"] = rank
    for name, value in (*stated.items(), *alphas.items(), *ranks.items()):
        if type(value) not in (int, float) or not abs(value) <= _LARGEST_ALPHA:
            raise UserError(
                f"{source}: {shown(name, 200)} = {quoted(value, 200)}, expected a number of up to "
                f"{_LARGEST_ALPHA}"
            )
    is_rank_stabilized = options.pop("use_rslora", None) or False
    if not isinstance(is_rank_stabilized, bool):
        raise UserError(f"{source}: use_rslora must be true or false")
    for name, value in options.items():
        if name not in _OF_TRAINING and value and value not in _SUPPORTED.get(name, ()):
            given = f"{shown(name, 200)} = {quoted(value, 200)}"
            raise UserError(f"{source}: a LoRA with {given} is not supported")
    return Adapter(alphas | {"": float(stated["lora_alpha"])}, ranks, is_rank_stabilized)


def _read_pattern(values: Any, key: str, source: Path | str) -> dict[str, Any]:
    """Reads values by the names of modules."""
    if not isinstance(values, dict):
        raise UserError(f"{source}: {key} = {quoted(values, 200)}, expected an object")
    # Names may be regular expressions; only those that are plain names are supported.
    plain = {re.sub(r"\\(.)", r"\1", name.strip("^$")): values[name] for name in values}
    if odd := [name for name in plain if not re.fullmatch(r"[\w.]+", name)]:
        raise UserError(f"{source}: {key} has {listed(odd)}, expected names of modules")
    return plain
