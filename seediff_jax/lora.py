"""LoRA files, merged into the weights of a model (Hu et al., arXiv 2106.09685).

    merged = weight of the layer + strength * alpha / rank * up @ down

A file that does not fit the model in whole is refused: a part of it would draw something else.
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from seediff_jax.json_files import parse_json
from seediff_jax.leaves import LeafPath, Merges
from seediff_jax.lora_names import ALPHA, DOWN, UP, Layer, layer_spellings, parse_name
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.names import checkpoint_axes, checkpoint_name
from seediff_jax.tensor_files import DTYPES, FLOATS, damage
from seediff_jax.weight_files import WeightReader, open_weights

_LISTED = 20
_LARGEST_ALPHA = 10**6
_METADATA = "lora_adapter_metadata"


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file that was looked into, not read yet.

    Attributes:
        path: the file.
        strength: what its change of the weights is multiplied by.
        layers: the tensors of each layer: DOWN, UP, ALPHA -> name and shape.
        faults: what no LoRA has, a line for each tensor.
        alphas: alpha of a component, where the file states it for all its layers.
    """

    path: Path
    strength: float
    layers: Mapping[Layer, Mapping[str, tuple[str, tuple[int, ...]]]]
    faults: tuple[str, ...]
    alphas: Mapping[str, float]


def find_lora(path: str | os.PathLike[str], strength: float) -> Lora:
    """Opens a LoRA file and looks at its names.

    Raises:
        ValueError: it is missing, damaged, a pickle, or of a kind that is not supported; the
            strength is no finite number.
    """
    path = Path(os.path.expanduser(path))
    if not math.isfinite(strength):
        raise ValueError(f"the weight of the LoRA {path} is {strength}, no finite number")
    if not path.is_file() or path.suffix != ".safetensors":
        what = "is no .safetensors file" if path.exists() else "does not exist"
        raise ValueError(f"the LoRA {path} {what}; a .safetensors file is needed")
    layers: dict[Layer, dict[str, tuple[str, tuple[int, ...]]]] = {}
    faults = []
    with open_weights([path]) as reader:
        for name in sorted(reader.shapes):
            parsed = parse_name(name)
            if parsed is None or parsed[1] in layers.get(parsed[0], {}):
                faults.append(f"+ {name}: no tensor of a LoRA of this kind")
                continue
            layer, role = parsed
            layers.setdefault(layer, {})[role] = (name, reader.shapes[name])
            needed = tuple(DTYPES) if role == ALPHA else FLOATS
            if (dtype := reader.dtypes[name]) not in needed:
                faults.append(f"! {name}: dtype {dtype}, needed {', '.join(needed)}")
        alphas = _stated_alphas(path, reader.metadata)
    return Lora(path, float(strength), layers, tuple(faults), alphas)


@contextlib.contextmanager
def open_merges(
    loras: Sequence[Lora], shapes: Mapping[LeafPath, tuple[int, ...]], config: UNetConfig
) -> Iterator[Merges]:
    """Opens LoRA files to merge them into the weights of a model, one weight at a time.

    Args:
        loras: of `find_lora`; their changes add up.
        shapes: of all weights, by their paths in the params.
        config: of the UNet.

    Yields:
        For the path of each weight that changes a function of the float32 weight, which returns
        the weight with all changes.

    Raises:
        ValueError: tensors of a file match no layer of the model, lack their other half or have
            another shape or dtype, all of them listed; later, a changed weight is not finite.
    """
    targets = _targets(shapes, config)
    needed = {path: _checkpoint_shape(shapes[path]) for path in targets.values()}
    changes: dict[LeafPath, list[tuple[Lora, WeightReader, Layer]]] = {}
    with contextlib.ExitStack() as stack:
        for lora in loras:
            _require_fit(lora, targets, needed)
            reader = stack.enter_context(open_weights([lora.path]))
            for layer in lora.layers:
                changes.setdefault(targets[layer], []).append((lora, reader, layer))

        def merged(path: LeafPath, weight: np.ndarray) -> np.ndarray:
            for lora, reader, layer in changes[path]:
                change = _read_change(lora, reader, layer).reshape(needed[path])
                axes = np.argsort(checkpoint_axes("kernel", change.ndim))
                with np.errstate(over="ignore", invalid="ignore"):  # reported with the name
                    weight = np.ascontiguousarray(weight + change.transpose(axes))
                if not np.isfinite(weight).all():
                    name, _ = lora.layers[layer][DOWN]
                    raise ValueError(
                        f"the LoRA {lora.path}: NaN or infinity in what {name} is part of"
                    )
            return weight

        yield {path: functools.partial(merged, path) for path in changes}


def _targets(
    shapes: Mapping[LeafPath, tuple[int, ...]], config: UNetConfig
) -> dict[Layer, LeafPath]:
    """The weights that a LoRA can change, by all names of their layers."""
    targets = {}
    for path in shapes:
        component, *inside = path
        if inside[-1] == "kernel" and component != "vae":
            module = checkpoint_name(component, tuple(inside)).removesuffix(".weight")
            targets |= dict.fromkeys(layer_spellings(component, module, config), path)
    return targets


def _read_change(lora: Lora, reader: WeightReader, layer: Layer) -> np.ndarray:
    """strength * alpha / rank * up @ down of a layer, as a matrix."""
    values = {role: reader.read(name) for role, (name, _) in lora.layers[layer].items()}
    down, up = values[DOWN], values[UP]
    rank = len(down)
    alpha = values[ALPHA].item() if ALPHA in values else lora.alphas.get(layer.component, rank)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the merged weight
        scale = np.float32(lora.strength * alpha / rank)
        return scale * (up.reshape(len(up), rank) @ down.reshape(rank, -1))


def _checkpoint_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in checkpoint_axes("kernel", len(shape)))


def _require_fit(
    lora: Lora, targets: Mapping[Layer, LeafPath], shapes: Mapping[LeafPath, tuple[int, ...]]
) -> None:
    """Reports everything in the file that does not fit the model at once."""
    faults = list(lora.faults)
    if not lora.layers:
        faults.append("- it changes no layer")
    used: dict[LeafPath, str] = {}
    for layer, tensors in lora.layers.items():
        name = next(iter(tensors.values()))[0]
        path = targets.get(layer)
        if path is None:
            faults.append(f"+ {name}: the model has no such layer")
        elif path in used:
            faults.append(f"+ {name}: the same layer as {used[path]}")
        elif missing := {DOWN, UP} - tensors.keys():
            faults.append(f"- {name}: without the layer's {' and '.join(sorted(missing))} factor")
        elif not _fits(tensors, shapes[path]):
            given = ", ".join(f"{role} {shape}" for role, (_, shape) in tensors.items())
            faults.append(f"! {name}: {given} cannot change a weight of shape {shapes[path]}")
        used.setdefault(path, name)
    if faults:
        listed = faults[:_LISTED] + [f"and {len(faults) - _LISTED} more"] * (len(faults) > _LISTED)
        known = sorted(f"{layer.component}: {layer.path}" for layer in targets)
        raise ValueError(
            f"the LoRA {lora.path} does not fit the model, {len(faults)} faults:"
            + "".join(f"\n  {line}" for line in listed)
            + "\nneeded are down and up factors of layers of this model, which are "
            f"{known[0]} ... {known[-1]}"
        )


def _fits(tensors: Mapping[str, tuple[str, tuple[int, ...]]], shape: tuple[int, ...]) -> bool:
    (_, down), (_, up) = tensors[DOWN], tensors[UP]
    if len(down) < 2 or len(up) < 2 or down[0] == 0 or math.prod(up[1:]) != down[0]:
        return False
    if ALPHA in tensors and math.prod(tensors[ALPHA][1]) != 1:
        return False
    # A convolution of one point and a matrix are the same.
    kernel, needed = (() if set(sides) == {1} else sides for sides in (down[2:], shape[2:]))
    return kernel == needed and (up[0], down[1]) == shape[:2]


def _stated_alphas(path: Path, metadata: Mapping[str, str]) -> dict[str, float]:
    """What diffusers writes into the header of a file: `{"unet.lora_alpha": 8, ...}`."""
    try:
        stated = parse_json(metadata.get(_METADATA, "{}").encode())
    except ValueError as error:
        raise damage(path, f"its {_METADATA} is not JSON: {error}") from error
    if not isinstance(stated, dict):
        raise damage(path, f"its {_METADATA} is no JSON object")
    alphas = {}
    for key, value in stated.items():
        component, _, option = key.partition(".")
        if option == "lora_alpha":
            if type(value) not in (int, float) or not abs(value) <= _LARGEST_ALPHA:
                raise ValueError(
                    f"{path}: {key} = {value!r}, needed a number of up to {_LARGEST_ALPHA}"
                )
            alphas[component] = float(value)
        elif option in ("alpha_pattern", "use_rslora") and value:
            raise ValueError(f"{path}: a LoRA with {option} = {value} is not supported")
    return alphas
