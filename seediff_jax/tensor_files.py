"""One safetensors file: its header, checked against its size, and its tensors one by one.

    8 bytes     length n of the header, little endian
    n bytes     JSON: {"conv.bias": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, ...}
    the rest    the bytes of the tensors, one after another without a gap

Nothing that a header says is believed: every tensor must lie in the file, so no header makes a
reader allocate more than the file's size.

The file is mapped into memory: its bytes are copied once, from the system's cache to where they are
needed. Pages that were read can be given back, lest they count as memory of this process. A file
that became shorter is an error when the next tensor is asked for; one that is cut in the very
moment in which a tensor is copied ends the process with SIGBUS, as with every mapped file.
"""

import dataclasses
import math
import mmap
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from seediff_jax.json_files import LONGEST, parse_json

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
}
"""Those that are read, by safetensors' names; tensors of others are listed, but cannot be read."""
FLOATS = ("F32", "F16", "BF16", "F64")
"""Those that weights can have."""

_BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_PREFIX = 8
_MOST_AXES = 8
_LFS = b"version https://git-lfs"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        dtype: in safetensors' spelling.
        shape: its shape.
        start: position of its first byte in the file.
        size: number of its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(file: BinaryIO, path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads what an open safetensors file holds.

    Args:
        file: at its start.
        path: names the file in errors.

    Returns:
        The tensors by name, and the texts that the header carries beside them.

    Raises:
        ValueError: the file is no safetensors file, or cut short, or damaged.
    """
    try:
        return _parse_header(file)
    except (ValueError, OSError) as error:
        raise damage(path, error) from error


class MappedFile:
    """An open safetensors file in memory.

    Attributes:
        tensors: by name, where they lie.
        metadata: texts that the header carries beside them.
    """

    def __init__(self, file: BinaryIO, path: Path):
        """Reads the header.

        Args:
            file: at its start; must stay open while tensors are viewed.
            path: names the file in errors.

        Raises:
            ValueError: as `read_header`.
        """
        self._file, self._path = file, path
        self.tensors, self.metadata = read_header(file, path)
        try:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as error:
            raise damage(path, error) from error

    def view(self, tensor: StoredTensor) -> np.ndarray:
        """A tensor of one of DTYPES, as it is stored: a read-only view, perhaps not aligned.

        Raises:
            ValueError: the file has become shorter.
        """
        end = tensor.start + tensor.size
        size = min(os.fstat(self._file.fileno()).st_size, len(self._memory))
        if size < end:
            raise damage(self._path, f"it ends {end - size} bytes before the end of a tensor")
        content = np.frombuffer(self._memory, np.uint8)[tensor.start : end]
        return content.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def give_back(self, tensor: StoredTensor) -> None:
        """Takes a tensor out of this process's memory; a view reads it from the file again."""
        if tensor.size and hasattr(mmap, "MADV_DONTNEED"):
            start = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_DONTNEED, start, tensor.start + tensor.size - start)


def damage(path: Path, reason: Any) -> ValueError:
    """The error for a file that is not as it was written."""
    return ValueError(f"{path} is damaged or cut short ({reason}); fetch or write it again")


def _parse_header(file: BinaryIO) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(_PREFIX)
    if _LFS.startswith(prefix) and len(prefix) == _PREFIX:
        raise ValueError("it is a pointer of Git LFS, `git lfs pull` fetches the file itself")
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _PREFIX or length > size - _PREFIX:
        raise ValueError(f"it has {size} bytes, too few for its header")
    if length > LONGEST:
        raise ValueError(f"its header has {length} bytes; headers are read up to {LONGEST}")
    entries = parse_json(file.read(length))
    if not isinstance(entries, dict):
        raise ValueError("its header is no JSON object")
    metadata = entries.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its __metadata__ is no object of texts")
    base = _PREFIX + length
    tensors = {name: _parse_entry(name, entry, base) for name, entry in entries.items()}
    _require_gapless(tensors, base, size)
    return tensors, metadata


def _parse_entry(name: str, entry: Any, base: int) -> StoredTensor:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} has dtype {dtype!r}, which safetensors does not have")
    if not _is_counts(shape) or len(shape) > _MOST_AXES:
        raise ValueError(
            f"{name!r} has shape {reprlib.repr(shape)}, needed up to {_MOST_AXES} counts"
        )
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(
            f"{name!r} has data_offsets {reprlib.repr(offsets)}, needed its start and its end"
        )
    size = offsets[1] - offsets[0]
    if math.prod(shape) * _BITS[dtype] != 8 * size:
        raise ValueError(f"{name!r} of shape {tuple(shape)} and dtype {dtype} has {size} bytes")
    return StoredTensor(dtype, tuple(shape), base + offsets[0], size)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _require_gapless(tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
    """Checks that the tensors fill the file, none over another."""
    end = base
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != end:
            raise ValueError(f"{name!r} starts at byte {tensor.start}, its neighbour ends at {end}")
        end += tensor.size
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
