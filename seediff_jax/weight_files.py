"""The safetensors files of one component of a checkpoint: which they are, what they hold.

Pickle files are never opened: opening one can run any code.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# Full precision first; a variant is read where there is nothing better.
_VARIANTS = ("", ".fp16", ".bf16")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")
_DTYPES = ("F64", "F32", "F16", "BF16")

CONVERT = (
    "where you trust its origin, convert it in an environment with torch and diffusers: "
    "StableDiffusionPipeline.{loader}({source!r}).save_pretrained('converted')"
)
"""What to do with weights that are not a folder of safetensors."""


def choose_weight_files(component: str, names: Sequence[str]) -> list[str]:
    """The files of a component's folder to read: one file, or an index followed by its shards.

    Args:
        component: one of COMPONENTS, see names.
        names: file names of the folder, without the folder.

    Returns:
        File names; an empty list where the folder holds no weights that can be read.
    """
    stem, present = _STEMS[component], set(names)
    for variant in _VARIANTS:
        if (single := f"{stem}{variant}.safetensors") in present:
            return [single]
        shard = re.compile(rf"{re.escape(stem + variant)}-\d+-of-\d+\.safetensors")
        for index in (
            f"{stem}.safetensors.index{variant}.json",
            f"{stem}{variant}.safetensors.index.json",
        ):
            if index in present:
                return [index, *sorted(filter(shard.fullmatch, present))]
    return []


def find_weight_files(folder: Path, component: str) -> list[Path]:
    """Paths of the safetensors files in `folder / component`.

    Raises:
        ValueError: there are none, only pickles, or shards of the index are missing.
    """
    folder = folder / component
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    chosen = choose_weight_files(component, names)
    if not chosen:
        needed = f"{_STEMS[component]}.safetensors"
        if pickles := [name for name in names if name.endswith(_PICKLES)]:
            how = CONVERT.format(loader="from_pretrained", source=str(folder.parent))
            raise ValueError(
                f"{folder} has no {needed}, only {', '.join(pickles)}, a format that can run code "
                f"when it is opened; {how}"
            )
        raise ValueError(f"{folder / needed} is missing; the folder holds {names or 'nothing'}")
    if not chosen[0].endswith(".json"):
        return [folder / chosen[0]]
    index = read_json(folder / chosen[0])
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{folder / chosen[0]} is damaged: it has no weight_map of file names")
    shards = sorted(set(shards.values()))
    if missing := sorted(set(shards) - set(names)):
        raise ValueError(
            f"{folder / chosen[0]} lists shards that are missing: {', '.join(missing)}"
        )
    return [folder / shard for shard in shards]


class WeightReader:
    """Open safetensors files; a tensor is read when it is asked for.

    Attributes:
        shapes: the shape of every tensor.
        dtypes: the dtype of every tensor, in safetensors' spelling ("F32", "BF16", ...).
    """

    def __init__(self, files: Mapping[str, Any]):
        self._files = files
        slices = {name: file.get_slice(name) for name, file in files.items()}
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.dtypes = {name: part.get_dtype() for name, part in slices.items()}

    def is_number(self, name: str) -> bool:
        """Whether the tensor holds floating-point numbers that can be read."""
        return self.dtypes[name] in _DTYPES

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name in float32."""
        return self._files[name].get_tensor(name).astype(np.float32)


@contextlib.contextmanager
def open_weights(paths: Sequence[Path]) -> Iterator[WeightReader]:
    """Opens safetensors files together.

    Raises:
        ValueError: a file is damaged, or two of them hold a tensor of the same name.
    """
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            try:
                file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} is damaged or cut short ({error}); fetch or write it again"
                ) from error
            if doubles := sorted(files.keys() & set(file.keys())):
                raise ValueError(f"{path} repeats tensors of another shard: {', '.join(doubles)}")
            files.update(dict.fromkeys(file.keys(), file))
        yield WeightReader(files)


def write_weights(folder: Path, component: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the one safetensors file of `folder / component`, which must exist."""
    path = folder / component / f"{_STEMS[component]}.safetensors"
    # transformers asks for this entry before it reads a file.
    save_file(dict(tensors), path, metadata={"format": "pt"})


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: the file is missing, no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; a diffusers folder is needed") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it must hold a JSON object")
    return content
