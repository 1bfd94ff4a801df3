"""The safetensors files of one component of a checkpoint: which they are, what they hold.

Pickle files are never opened: opening one can run any code.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from seediff_jax.json_files import read_json
from seediff_jax.tensor_files import FLOATS, MappedFile, StoredTensor, damage

_STEMS = {
    "text_encoder": "model",
    "text_encoder_2": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
# Full precision first; a variant is read where there is nothing better.
_VARIANTS = ("", ".fp16", ".bf16")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")

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
        ValueError: there are none, only pickles, or the shards are not those of the index.
    """
    folder = folder / component
    names = _names(folder)
    chosen = choose_weight_files(component, names)
    if not chosen:
        needed = f"{_STEMS[component]}.safetensors"
        if pickles := [name for name in names if name.endswith(_PICKLES)]:
            how = CONVERT.format(loader="from_pretrained", source=str(folder.parent))
            raise ValueError(
                f"{folder} has no {needed}, only {', '.join(pickles)}, a format that can run code "
                f"when it is opened; {how}"
            )
        raise ValueError(
            f"{folder / needed} is missing; the folder holds {names or 'nothing'}. Fetch it; "
            f"in its place variants are read too, {_STEMS[component]}.fp16 and .bf16.safetensors"
        )
    if not chosen[0].endswith(".json"):
        return [folder / chosen[0]]
    return _find_shards(folder / chosen[0], names)


def missing_weight_files(folder: Path, component: str) -> list[str]:
    """Names of the safetensors files that are not in `folder / component`.

    Raises:
        ValueError: there is an index of shards, and it is damaged.
    """
    folder = folder / component
    names = _names(folder)
    chosen = choose_weight_files(component, names)
    if not chosen:
        return [f"{_STEMS[component]}.safetensors"]
    if not chosen[0].endswith(".json"):
        return []
    return sorted(set(_read_index(folder / chosen[0]).values()) - set(names))


class WeightReader:
    """Open safetensors files; a tensor is read when it is asked for, by any thread.

    Attributes:
        shapes: the shape of every tensor.
        dtypes: the dtype of every tensor, in safetensors' spelling ("F32", "BF16", ...).
        metadata: texts that the headers carry beside the tensors.
    """

    def __init__(
        self,
        tensors: Mapping[str, tuple[MappedFile, StoredTensor]],
        metadata: Mapping[str, str],
    ):
        self._tensors = dict(tensors)
        self.metadata = dict(metadata)
        self.shapes = {name: stored.shape for name, (_, stored) in tensors.items()}
        self.dtypes = {name: stored.dtype for name, (_, stored) in tensors.items()}

    def is_number(self, name: str) -> bool:
        """Whether the tensor holds floating-point numbers that can be read."""
        return self.dtypes[name] in FLOATS

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[np.ndarray]:
        """Yields the tensor of this name as it is stored: a view of the file, read-only.

        Raises:
            ValueError: the file has become shorter since it was opened.
        """
        file, stored = self._tensors[name]
        yield file.view(stored)
        file.give_back(stored)

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name in float32, in an array of its own.

        Raises:
            ValueError: the file has become shorter since it was opened.
        """
        # float64 beyond float32 becomes infinity, which is reported with the tensor's name.
        with self.borrow(name) as tensor, np.errstate(over="ignore"):
            return tensor.astype(np.float32)


@contextlib.contextmanager
def open_weights(paths: Sequence[Path]) -> Iterator[WeightReader]:
    """Opens safetensors files together.

    Raises:
        ValueError: a file is damaged, or two of them hold a tensor of the same name.
    """
    tensors: dict[str, tuple[MappedFile, StoredTensor]] = {}
    metadata: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for path in paths:
            try:
                file = stack.enter_context(open(path, "rb"))
            except OSError as error:
                raise damage(path, error) from error
            mapped = MappedFile(file, path)
            metadata |= mapped.metadata
            if doubles := sorted(tensors.keys() & mapped.tensors.keys()):
                raise ValueError(f"{path} repeats tensors of another shard: {', '.join(doubles)}")
            tensors.update({name: (mapped, stored) for name, stored in mapped.tensors.items()})
        yield WeightReader(tensors, metadata)


def write_weights(folder: Path, component: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the one safetensors file of `folder / component`, which must exist."""
    path = folder / component / f"{_STEMS[component]}.safetensors"
    # transformers asks for this entry before it reads a file.
    save_file(dict(tensors), path, metadata={"format": "pt"})


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _read_index(index: Path) -> dict[str, str]:
    """The shard of every tensor."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} is damaged: it has no weight_map of file names")
    if not shards:
        raise ValueError(f"{index} is damaged: its weight_map lists no shards; fetch it again")
    return shards


def _find_shards(index: Path, names: Sequence[str]) -> list[Path]:
    """The shards of an index; `names` are those of the files beside it."""
    shards = _read_index(index)
    files = sorted(set(shards.values()))
    if missing := sorted(set(files) - set(names)):
        raise ValueError(f"{index} lists shards that are missing: {', '.join(missing)}")
    held: set[tuple[str, str]] = set()
    for name in files:
        with open_weights([index.parent / name]) as reader:
            held |= {(tensor, name) for tensor in reader.shapes}
    _require_listed(index, set(shards.items()), held)
    return [index.parent / name for name in files]


def _require_listed(index: Path, listed: Set[tuple[str, str]], held: Set[tuple[str, str]]) -> None:
    """Checks that the shards hold what their index lists, pairs (tensor, shard), and no more."""
    faults = [f"- {tensor}: not in {shard}" for tensor, shard in sorted(listed - held)]
    faults += [f"+ {tensor}: in {shard}, not listed so" for tensor, shard in sorted(held - listed)]
    if faults:
        lines = "\n  ".join(faults)
        raise ValueError(
            f"{index} is not of the shards beside it, which may be of several checkpoints; fetch "
            f"the whole folder again:\n  {lines}"
        )
