"""safetensors files: which ones belong to a component of a checkpoint, and their tensors.

The safetensors library reads and checks the header: every tensor lies inside the file, and tensors
neither overlap nor leave gaps. The tensors are read here, a few rows at a time into a buffer that
fits into a processor's cache. A mapped file would hold a second copy of each tensor in memory, and
would end the process with SIGBUS if the file shrinks while it is read; here that is an error.

Pickle files are never opened: opening one can run any code.
"""

import dataclasses
import math
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from seediff_jax.errors import UserError, listed, shown
from seediff_jax.files.strict_json import read_json
from seediff_jax.files.text import open_regular

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
"""The dtypes that are read, by safetensors' names; tensors of others are only listed."""
FLOATS = tuple(name for name in DTYPES if not name.startswith("I"))
"""The dtypes that weights can have."""

_STEMS = {
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
}
# Full precision first; a variant is read where there is nothing better.
_VARIANTS = ("", ".fp16", ".bf16")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")
_PREFIX = 8  # bytes before the header: its length
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors library reads no longer ones
_BLOCK = 2**18  # elements; a few blocks fit into a cache
ROWS = 16
"""Rows that are transposed at once; with more, their cache lines evict one another."""
_LFS = b"version "  # how a pointer of Git LFS begins

CONVERT = (
    "where you trust its origin, convert it in an environment with torch and diffusers: "
    "StableDiffusionPipeline.{loader}({source!r}).save_pretrained('converted')"
)
"""What to do with weights that are not a folder of safetensors."""


def choose_weight_files(component: str, names: Sequence[str]) -> list[str]:
    """Picks the weights among the files of a component: one file, or an index and its shards."""
    stem, present = _STEMS[component], set(names)
    for variant in _VARIANTS:
        if (single := f"{stem}{variant}.safetensors") in present:
            return [single]
        # Releases of diffusers put the variant in different places.
        number, kind = r"-\d+-of-\d+", re.escape(variant)
        shard = re.compile(rf"{stem}({kind}{number}|{number}{kind})\.safetensors")
        for index in (
            f"{stem}{variant}.safetensors.index.json",
            f"{stem}.safetensors.index{variant}.json",
            f"{stem}.safetensors{variant}.index.json",
        ):
            if index in present:
                return [index, *sorted(filter(shard.fullmatch, present))]
    return []


def missing_weight_files(folder: Path, component: str) -> list[str]:
    """Lists the safetensors files that the folder of a component lacks."""
    names = _file_names(folder)
    chosen = choose_weight_files(component, names)
    if not chosen:
        return [f"{_STEMS[component]}.safetensors"]
    shards = _read_index(folder / chosen[0]).values() if chosen[0].endswith(".json") else ()
    return sorted({*shards} - {*names})


class _OpenFile:
    """An open file; it is closed when the last of its tensors is gone."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self.descriptor = path, descriptor
        weakref.finalize(self, os.close, descriptor)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of an open safetensors file; any thread may read it.

    Reading raises a UserError if the file has become shorter since, or cannot be read.

    Attributes:
        name: its name in the file.
        file: the file.
        start: its first byte.
        shape: its shape as it is read.
        dtype: in safetensors' spelling ("F32", "BF16", ...).
        transposed: whether the file holds a matrix as the transpose of what is read.
    """

    name: str
    file: _OpenFile
    start: int
    shape: tuple[int, ...]
    dtype: str
    transposed: bool = False

    @property
    def size(self) -> int:
        """Bytes in the file."""
        bits = 8 if self.dtype == "BOOL" else int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.shape) * bits // 8

    def read_blocks(self) -> Iterator[np.ndarray]:
        """Yields the tensor a few rows at a time; each block overwrites the one before."""
        if self.transposed:
            yield self.read()
            return
        rows, row_size = rows_per_block(self.shape), self.size // max(1, self.shape[0])
        buffer = np.empty(min(rows, self.shape[0]) * row_size, np.uint8)
        for row in range(0, self.shape[0], rows):
            length = min(rows, self.shape[0] - row)
            content = buffer[: length * row_size]
            self._read_into(content, row * row_size)
            yield content.view(DTYPES[self.dtype]).reshape(length, *self.shape[1:])

    def read(self) -> np.ndarray:
        """Reads the whole tensor in float32."""
        content = np.empty(self.size, np.uint8)
        self._read_into(content, 0)
        array = to_float32(content.view(DTYPES[self.dtype]))
        return array.reshape(self.shape[::-1]).T if self.transposed else array.reshape(self.shape)

    def _read_into(self, content: np.ndarray, offset: int) -> None:
        path, descriptor, done = self.file.path, self.file.descriptor, 0
        while done < len(content):  # the system reads at most 2 GiB at a time
            try:
                count = os.preadv(descriptor, [content[done:]], self.start + offset + done)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}") from error
            if not count:
                lost = self.start + self.size - os.fstat(descriptor).st_size
                raise _damage(path, f"it ends {lost} bytes before the end of a tensor")
            done += count


Tensors = dict[str, StoredTensor]
"""Tensors by name."""


def to_float32(array: np.ndarray) -> np.ndarray:
    """Returns the array in float32; infinity where float64 is beyond it."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def rows_per_block(shape: Sequence[int]) -> int:
    """How many rows of a tensor are processed at once: they fit into a processor's cache."""
    return max(1, _BLOCK // max(1, math.prod(shape[1:])) // ROWS) * ROWS


def open_weights(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Opens a safetensors file and reads its header.

    Returns:
        The tensors, and the texts that the header holds in addition to them.

    Raises:
        UserError: the file is missing, damaged or not a regular file.
    """
    try:
        with open_regular(path) as opened:
            file, prefix = _OpenFile(path, os.dup(opened.fileno())), opened.read(_PREFIX)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    size, start = os.fstat(file.descriptor).st_size, _PREFIX + int.from_bytes(prefix, "little")
    if prefix == _LFS:
        raise _damage(path, "it is a pointer of Git LFS, `git lfs pull` fetches the file itself")
    if len(prefix) < _PREFIX or start > size:
        raise _damage(path, f"it has {size} bytes, too few for its header")
    if start > _PREFIX + _LONGEST_HEADER:
        raise UserError(
            f"{path}: its header has {start - _PREFIX} bytes, safetensors reads up to "
            f"{_LONGEST_HEADER}; remove metadata from it"
        )
    tensors, header = {}, _open_header(file, start, size)
    for name in header.offset_keys():
        part = header.get_slice(name)
        stored = StoredTensor(name, file, start, tuple(part.get_shape()), part.get_dtype())
        tensors[name] = stored
        start += stored.size
    return tensors, header.metadata() or {}


def open_component(folder: Path, component: str) -> Tensors:
    """Opens the safetensors files of a component in its own folder.

    Raises:
        UserError: there are none, only pickles, they are damaged, or the shards do not hold the
            tensors that their index lists.
    """
    names, stem = _file_names(folder), _STEMS[component]
    chosen = choose_weight_files(component, names)
    if not chosen and (pickles := [name for name in names if name.endswith(PICKLES)]):
        how = CONVERT.format(loader="from_pretrained", source=str(folder.parent))
        raise UserError(
            f"{folder} has no {stem}.safetensors, only {listed(pickles)}, a format that can run "
            f"code when it is opened; {how}"
        )
    if not chosen:
        raise UserError(
            f"{folder / stem}.safetensors is missing; the folder holds {listed(names) or 'nothing'}"
            f". Fetch it; its variants {stem}.fp16.safetensors and .bf16.safetensors are also read"
        )
    index = folder / chosen[0]
    if index.suffix != ".json":
        return open_weights(index)[0]
    shard_of = _read_index(index)
    if missing := sorted({*shard_of.values()} - {*names}):
        raise UserError(f"{index} lists shards that are missing: {listed(missing)}")
    shards = {shard: open_weights(folder / shard)[0] for shard in sorted({*shard_of.values()})}
    expected = {*shard_of.items()}
    held = {(name, shard) for shard, tensors in shards.items() for name in tensors}
    faults = [f"- {name}: not in {shard}" for name, shard in sorted(expected - held)]
    faults += [f"+ {name}: in {shard}, not listed" for name, shard in sorted(held - expected)]
    if faults:
        raise UserError(
            f"{index} does not fit the shards, which may be of several checkpoints; fetch the "
            f"whole folder again: {join_faults(faults)}"
        )
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def join_faults(faults: Sequence[str]) -> str:
    """Joins some faults of each kind, by their first characters: - + !."""
    kinds = ([fault for fault in faults if fault.startswith(sign)] for sign in "-+!")
    return "; ".join(listed(kind, separator="; ") for kind in kinds if kind)


def write_weights(folder: Path, component: str, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes the one safetensors file of `folder / component`, which must exist."""
    path = folder / component / f"{_STEMS[component]}.safetensors"
    # transformers asks for this entry before it reads a file.
    save_file(dict(tensors), path, metadata={"format": "pt"})
    # The library lets nobody but the owner read it; whoever may read the folder needs the weights.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _damage(path: Path, reason: object) -> UserError:
    """The error for a file that is not as it was written."""
    return UserError(
        f"{path} is damaged or cut short ({shown(str(reason))}); fetch or write it again"
    )


def _open_header(file: _OpenFile, length: int, size: int) -> safe_open:
    """Opens a file with the safetensors library, which checks its header."""
    try:
        try:
            return safe_open(file.path, "np")
        except OSError:  # the library maps the file, which not every filesystem can do
            with tempfile.NamedTemporaryFile() as copy:  # with the header and no bytes behind it
                copy.write(os.pread(file.descriptor, length, 0))
                copy.truncate(size)
                copy.flush()
                return safe_open(copy.name, "np")
    except SafetensorError as error:
        raise _damage(file.path, error) from error


def _file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _read_index(index: Path) -> dict[str, str]:
    """Reads the shard of every tensor."""
    shards = read_json(index).get("weight_map")
    is_map = isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())
    if not is_map or not shards:
        raise UserError(f"{index} is damaged: it has no weight_map of file names; fetch it again")
    return shards
