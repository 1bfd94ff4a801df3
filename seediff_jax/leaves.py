"""Weights one by one: their order, their hash, and how they get from a file to where they stay.

    tensor of a file (mapped) -> float32 -> [ largest, hash ] -> dtype, Linen's layout, fresh memory

A tensor passes in blocks that the caches hold: memory is read once and written once. Several
threads work on a tensor each; nearly all of it is done without Python's lock.
"""

import collections
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike
from xxhash import xxh3_128

from seediff_jax.half_floats import narrow, widen
from seediff_jax.models.names import checkpoint_axes
from seediff_jax.weight_files import WeightReader

LeafPath = tuple[str, ...]
"""Place of a weight in the params, or in those of a component."""
Merges = Mapping[LeafPath, Callable[[np.ndarray], np.ndarray]]
"""Weights that are changed before they are used: functions of the float32 weight."""

_ALIGNMENT = 64  # bytes: a cache line, and what JAX needs to use an array uncopied
_BLOCK = 2**18  # elements; a few blocks fit into a cache
_ROWS = 16  # that are transposed at once; with more, their cache lines evict one another
_THREADS = 4  # that wait for memory more than they compute; a tensor is in memory for each
_HALF_BOUND = 65520  # from here on numbers are rounded to infinity


class Leaf(NamedTuple):
    """A weight on its way into a model.

    Attributes:
        array: Linen's layout, contiguous.
        digest: hash of its float32 values, in the order of a checkpoint.
        largest: largest absolute value before it was cast; NaN or infinity where it holds one.
    """

    array: Any
    digest: bytes
    largest: float

    @property
    def is_finite(self) -> bool:
        """Whether it held neither NaN nor infinity before it was cast."""
        return bool(np.isfinite(self.largest))

    @property
    def overflows(self) -> bool:
        """Whether it is not finite since it was cast to float16."""
        return self.array.dtype == np.float16 and not self.largest < _HALF_BOUND


Leaves = Iterator[tuple[LeafPath, Leaf]]
"""Paths in the params, each with its weight."""


class WeightsDigest:
    """XXH3 (128 bits) of weights that are added one by one: paths, shapes and float32 values.

    The same values have the same hash whatever the kind of folder, its shards and stored dtype. It
    tells weights apart; it is not made to withstand someone who looks for weights of the same hash.
    """

    def __init__(self):
        self._digest = xxh3_128()

    def add(self, path: LeafPath, leaf: Leaf) -> None:
        """Adds a leaf; the paths, joined by `/`, must ascend."""
        self._digest.update(f"{'/'.join(path)} {tuple(leaf.array.shape)}\n".encode())
        self._digest.update(leaf.digest)

    def hexdigest(self) -> str:
        """The hash of what was added so far, 32 hexadecimal digits."""
        return self._digest.hexdigest()


def in_order(leaves: dict[LeafPath, Any]) -> Iterator[tuple[LeafPath, Any]]:
    """Takes the leaves out of a flat dict in the order in which a WeightsDigest needs them."""
    for path in sorted(leaves, key="/".join):
        yield path, leaves.pop(path)


def leaf_dtype(ndim: int, dtype: DTypeLike) -> np.dtype:
    """The dtype of a weight in a model of `dtype`: vectors (norms, biases) stay in float32."""
    return np.dtype(dtype if ndim > 1 else np.float32)


def make_leaf(path: LeafPath, array: Any, dtype: DTypeLike) -> Leaf:
    """The leaf of an array in Linen's layout, which is used uncopied where it has the dtype.

    Args:
        path: ends with the weight's name in its module.
        array: NumPy's or JAX's, of any float dtype.
        dtype: of the model.
    """
    values, summary = np.asarray(array), _Summary()
    for _, block in _blocks(values.transpose(checkpoint_axes(path[-1], values.ndim))):
        summary.add(_widened(block))
    with np.errstate(over="ignore"):  # the caller asks whether it overflows
        cast = array.astype(leaf_dtype(values.ndim, dtype), copy=False)
    return Leaf(cast, summary.digest.digest(), summary.largest)


def read_leaf(path: LeafPath, tensor: np.ndarray, dtype: DTypeLike) -> Leaf:
    """The leaf of a tensor in a checkpoint's layout, in memory of its own.

    Args:
        path: ends with the weight's name in its module.
        tensor: float64, float32, float16 or bfloat16; contiguous and aligned, or not.
        dtype: of the model.
    """
    axes, summary = checkpoint_axes(path[-1], tensor.ndim), _Summary()
    dtype = leaf_dtype(tensor.ndim, dtype)
    array = _aligned_empty([tensor.shape[i] for i in np.argsort(axes)], dtype)
    target = array.transpose(axes)  # the checkpoint's layout again
    for start, block in _blocks(tensor):
        wide = _widened(block)
        summary.add(wide)
        cast = block if block.dtype == dtype else _cast(wide, dtype)
        for row in range(0, len(cast), _ROWS):
            part = cast[row : row + _ROWS]
            target[start + row : start + row + len(part)] = part
    return Leaf(array, summary.digest.digest(), summary.largest)


def read_ahead(
    reader: WeightReader, names: Mapping[LeafPath, str], dtype: DTypeLike, merges: Merges
) -> Leaves:
    """Yields leaves in order of their paths, in memory of their own.

    Threads read the next ones while the caller works on the last; few are in memory beside those
    of the caller.

    Args:
        reader: has the tensors.
        names: path of a weight -> name of its tensor.
        dtype: of the model.
        merges: changes of these weights.
    """

    def read(path):
        merge = merges.get(path)
        with reader.borrow(names[path]) as tensor:
            leaf = read_leaf(path, tensor, dtype if merge is None else np.float32)
        if merge is None or not leaf.is_finite:
            return leaf
        return make_leaf(path, merge(leaf.array), dtype)

    threads = min(_THREADS, os.cpu_count() or 1)
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with contextlib.ExitStack() as stack:
        pool = concurrent.futures.ThreadPoolExecutor(threads)
        stack.callback(pool.shutdown, cancel_futures=True)
        for path in sorted(names, key="/".join):
            waiting.append((path, pool.submit(read, path)))
            if len(waiting) > threads:
                path, future = waiting.popleft()
                yield path, future.result()
        while waiting:
            path, future = waiting.popleft()
            yield path, future.result()


class _Summary:
    """Hash and largest absolute value of a tensor that comes in blocks of float32."""

    def __init__(self):
        self.digest, self.largest = xxh3_128(), 0.0

    def add(self, block: np.ndarray) -> None:
        """Adds a block; `largest` becomes NaN where there is one."""
        self.digest.update(np.ascontiguousarray(block))
        least, most = block.min(initial=0), block.max(initial=0)
        self.largest = float(np.maximum(self.largest, np.maximum(most, -least)))


def _blocks(tensor: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Runs of rows, and where they start; their sizes do not depend on the dtype."""
    rows = max(1, _BLOCK // max(1, tensor[:1].size) // _ROWS) * _ROWS
    for start in range(0, len(tensor), rows):
        yield start, tensor[start : start + rows]


def _widened(block: np.ndarray) -> np.ndarray:
    """The block in float32; infinity where float64 is beyond it."""
    if block.dtype == np.float16:
        return widen(block)
    with np.errstate(over="ignore"):
        return block.astype(np.float32, copy=False)


def _cast(wide: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A float32 block in the dtype; infinity beyond float16, see `Leaf.overflows`."""
    return narrow(wide) if dtype == np.float16 else wide.astype(dtype, copy=False)


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
