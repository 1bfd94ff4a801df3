"""Merges LoRA files into the weights of a model (Hu et al., arXiv 2106.09685).

    merged = weight of the layer + strength * scale * up @ down

The scale is alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732). A file is refused
unless all of it fits the model, because a part of a LoRA would draw something else.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight       kohya
    lora_unet_input_blocks_1_1_proj_in.lora_down.weight                 kohya, original layout
    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight               diffusers with peft
    base_model.model.down_blocks.0.attentions.0.proj_in.lora_A.weight   peft
    unet.down_blocks.0.attentions.0.proj_in.lora.down.weight            diffusers before peft
    ...attn1.processor.to_q_lora.down.weight                            the first of diffusers

In all spellings, a layer is found by its path with "_" in place of ".". So no name has to be split,
which would be ambiguous.
"""

import collections
import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seediff_jax.checkpoints.original_names import original_unet_name
from seediff_jax.checkpoints.param_loading import Merges
from seediff_jax.checkpoints.parameters import Parameter, checkpoint_axes, parameters
from seediff_jax.checkpoints.peft_config import PEFT, Adapter, read_adapters
from seediff_jax.checkpoints.safetensors_files import (
    DTYPES,
    FLOATS,
    Tensors,
    join_faults,
    open_weights,
)
from seediff_jax.errors import UserError, listed, shown
from seediff_jax.files.paths import expand_path
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.model import ModelConfig

Loras = Sequence[tuple[str | os.PathLike[str], float]]
"""LoRA files, each with the strength that its change is multiplied by."""
DOWN, UP, ALPHA = "down", "up", "alpha"

# The part of a tensor's name after that of its layer.
_FACTOR = (
    r"(.+?)(?:\.lora_{kohya}|\.lora_{peft}(?:\.default)?|(?:\.lora|\.lora_linear_layer|_lora)\."
    r"{kohya})\.weight"
)
_ENDS = {
    DOWN: re.compile(_FACTOR.format(kohya="down", peft="A")),
    UP: re.compile(_FACTOR.format(kohya="up", peft="B")),
    ALPHA: re.compile(r"(.+?)(?:\.lora|_lora)?\.alpha"),
}
_PREFIXES = {
    **{"lora_unet_": "unet", "unet.": "unet", PEFT: "unet"},
    **dict.fromkeys(("lora_te_", "lora_te1_", "text_encoder."), "text_encoder"),
    **dict.fromkeys(("lora_te2_", "text_encoder_2."), "text_encoder_2"),
    "": "unet",
}


Layer = tuple[str, str]
"""A component, and the path of a layer in it, joined by "_"; equal for every spelling."""
_Change = tuple[Path, Tensors, float]
"""A LoRA file, its factors of a layer, and their scale."""


def lora_merges(loras: Loras, config: ModelConfig) -> Merges:
    """Opens LoRA files to merge them into the weights of a model; their changes add up.

    Returns:
        The path of each weight that changes, with a function from the float32 weight to the changed
        one, which raises a UserError if that is not finite.

    Raises:
        UserError: a file is missing, damaged or of an unsupported kind; its tensors match no layer
            of the model, lack their other factor or have another shape or dtype.
    """
    targets = {
        layer: parameter
        for path, parameter in (parameters(config).items() if loras else ())
        if path[-1] == "kernel" and path[0] != "vae"
        for layer in layer_spellings(path[0], parameter.name.removesuffix(".weight"), config.unet)
    }
    changes: dict[Parameter, list[_Change]] = collections.defaultdict(list)
    for given, strength in loras:
        path = require_lora_file(given, strength)
        tensors, metadata = open_weights(path)
        adapters = read_adapters(path, tensors, metadata)
        for layer, factors in _match_layers(path, tensors, adapters, targets).items():
            scale = float(strength) * _scale(factors, adapters)
            changes[targets[layer]].append((path, factors, scale))
    return {p.path: functools.partial(_merge, c, p.stored_shape) for p, c in changes.items()}


def _merge(
    changes: Sequence[_Change], stored_shape: tuple[int, ...], weight: np.ndarray
) -> np.ndarray:
    """Adds scale * up @ down of each change to a float32 weight of a stored shape."""
    axes = np.argsort(checkpoint_axes("kernel", len(stored_shape)))
    for path, factors, scale in changes:
        down, up = factors[DOWN].read(), factors[UP].read()
        with np.errstate(over="ignore", invalid="ignore"):  # reported below, with the name
            change = np.float32(scale) * (up.reshape(len(up), -1) @ down.reshape(len(down), -1))
            weight = weight + change.reshape(stored_shape).transpose(axes)
        if not np.isfinite(weight).all():
            name = shown(factors[DOWN].name)
            raise UserError(f"the LoRA {path}: NaN or infinity in the change by {name}")
    return np.ascontiguousarray(weight)


def parse_name(name: str) -> tuple[Layer, str, str] | None:
    """Parses the name of a tensor; returns None if it is not one of a LoRA.

    Returns:
        The layer, DOWN, UP or ALPHA, and the path as the name spells it.
    """
    for role, pattern in _ENDS.items():
        if hit := pattern.fullmatch(name):
            prefix = next(filter(hit[1].startswith, _PREFIXES))
            module, component = hit[1].removeprefix(prefix), _PREFIXES[prefix]
            if prefix == PEFT and module.startswith("text_model."):
                component = "text_encoder"
            path = module.replace(".processor.", ".").replace(".", "_")
            return (component, path), role, module
    return None


def layer_spellings(component: str, module: str, config: UNetConfig) -> set[Layer]:
    """Returns all results of `parse_name` for a layer, given its component and diffusers name."""
    if component == "unet":
        names = {module, original_unet_name(module, config)}
        if module.endswith(".to_out.0"):
            names.add(module.removesuffix(".0"))
    else:
        old = re.sub(r"\.([qkv]|out)_proj$", r".to_\1", module)
        names = {module, old} | {name.removeprefix("text_model.") for name in (module, old)}
    return {(component, name.replace(".", "_")) for name in names}


def require_lora_file(path: str | os.PathLike[str], strength: float) -> Path:
    """Returns the path of a LoRA file; raises a UserError for no such file, or no finite weight."""
    path = Path(expand_path(path))
    if not math.isfinite(strength):
        raise UserError(f"the weight of the LoRA {path} is {strength}, not a finite number")
    if not path.is_file() or path.suffix != ".safetensors":
        what = "is not a .safetensors file" if path.exists() else "does not exist"
        raise UserError(f"the LoRA {path} {what}; a .safetensors file is needed")
    return path


def _scale(factors: Tensors, adapters: Mapping[str, Adapter]) -> float:
    """The factor of up @ down."""
    rank = factors[DOWN].shape[0]
    if ALPHA in factors:
        return factors[ALPHA].read().item() / rank
    (component, _), _, module = parse_name(next(iter(factors.values())).name)
    return adapters[component].scale(module, rank) if component in adapters else 1.0


def _match_layers(
    path: Path,
    tensors: Tensors,
    adapters: Mapping[str, Adapter],
    targets: Mapping[Layer, Parameter],
) -> dict[Layer, Tensors]:
    """Finds DOWN, UP and ALPHA of each layer; reports everything that does not fit at once."""
    layers: dict[Layer, Tensors] = {}
    faults = []
    for name, tensor in sorted(tensors.items()):
        parsed = parse_name(name)
        if parsed is None or parsed[1] in layers.get(parsed[0], {}):
            faults.append(f"+ {name}: not a tensor of a LoRA of this kind")
            continue
        layer, role, _ = parsed
        layers.setdefault(layer, {})[role] = tensor
        needed = tuple(DTYPES) if role == ALPHA else FLOATS
        if tensor.dtype not in needed:
            faults.append(f"! {name}: dtype {tensor.dtype}, expected one of {listed(needed)}")
    if not layers:
        faults.append("- it changes no layer")
    used: dict[Parameter | None, str] = {}
    for layer, factors in layers.items():
        name = next(iter(factors.values())).name
        target = targets.get(layer)
        if target is None:
            faults.append(f"+ {name}: the model has no such layer")
        elif target in used:
            faults.append(f"+ {name}: the same layer as {used[target]}")
        elif missing := {DOWN, UP} - factors.keys():
            faults.append(f"- {name}: the layer has no {' and no '.join(sorted(missing))} factor")
        elif not _fits(factors, target.stored_shape):
            given = ", ".join(f"{role} {tensor.shape}" for role, tensor in factors.items())
            shape = target.stored_shape
            faults.append(f"! {name}: {given} cannot change a weight of shape {shape}")
        elif ALPHA not in factors and layer[0] in adapters:
            rank, stated = factors[DOWN].shape[0], adapters[layer[0]].rank_of(parse_name(name)[2])
            if stated not in (None, rank):
                faults.append(f"! {name}: has rank {rank}, but the config of the adapter {stated}")
        used.setdefault(target, name)
    if faults:
        known = sorted(map(": ".join, targets))
        raise UserError(
            f"the LoRA {path} does not fit the model, {len(faults)} faults: "
            f"{join_faults(faults)}; expected down and up factors of layers of this model: "
            f"{known[0]} ... {known[-1]}"
        )
    return layers


def _fits(factors: Tensors, shape: tuple[int, ...]) -> bool:
    """Whether factors change a weight of a shape."""
    down, up = factors[DOWN].shape, factors[UP].shape
    if len(down) < 2 or len(up) < 2 or down[0] == 0 or math.prod(up[1:]) != down[0]:
        return False
    if ALPHA in factors and math.prod(factors[ALPHA].shape) != 1:
        return False
    # A 1 x 1 convolution and a matrix are the same.
    kernel, needed = (() if set(sides) == {1} else sides for sides in (down[2:], shape[2:]))
    return kernel == needed and (up[0], down[1]) == shape[:2]
