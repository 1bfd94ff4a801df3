"""Weights one by one, so that there never is a second copy of them all: order, hash, reading ahead.

tensor of a file -> float32, finite -> Linen's layout -> [ hash, dtype, device: see model ]
"""

import concurrent.futures
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seediff_jax.models.names import checkpoint_axes
from seediff_jax.weight_files import WeightReader

Leaves = Iterator[tuple[tuple[str, ...], Any]]
"""Paths in the params, each with its weight."""

_ALIGNMENT = 64  # bytes
_ROWS, _COLUMNS = 64, 16  # a tile; 16 float32 are a cache line


def in_order(leaves: dict[tuple[str, ...], Any]) -> Leaves:
    """Takes the leaves out of a flat dict in the order in which a WeightsDigest needs them."""
    for path in sorted(leaves, key="/".join):
        yield path, leaves.pop(path)


class WeightsDigest:
    """SHA-256 of weights that are added one by one: paths, shapes and float32 values.

    The same values have the same hash whatever the kind of folder, its shards and stored dtype.
    """

    def __init__(self):
        self._digest = hashlib.sha256()

    def add(self, path: tuple[str, ...], leaf: Any) -> None:
        """Adds a leaf; the paths, joined by `/`, must ascend."""
        self._digest.update(f"{'/'.join(path)} {tuple(leaf.shape)}\n".encode())
        self._digest.update(np.ascontiguousarray(leaf, np.float32))

    def hexdigest(self) -> str:
        """The hash of what was added so far."""
        return self._digest.hexdigest()


def read_ahead(reader: WeightReader, names: Mapping[tuple[str, ...], str]) -> Leaves:
    """Yields leaves in order of their paths, None for one that is not finite.

    A thread reads the next one while the caller works on the last; most of both is done without
    Python's lock. At most two leaves are in memory beside the caller's.
    """

    def read(path):
        tensor = reader.read(names[path])
        if not np.isfinite(tensor).all():
            return None
        return _transposed(tensor, np.argsort(checkpoint_axes(path[-1], tensor.ndim)))

    paths = sorted(names, key="/".join)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        following = thread.submit(read, paths[0])
        for path, after in itertools.zip_longest(paths, paths[1:]):
            leaf = following.result()
            following = None if after is None else thread.submit(read, after)
            yield path, leaf


def _transposed(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """The array with its axes in that order, contiguous, and where JAX can use it uncopied."""
    view = array.transpose(axes)
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    result = memory[start : start + array.nbytes].view(array.dtype).reshape(view.shape)
    if view.ndim < 2:
        result[...] = view
        return result
    # In tiles that the caches hold: more than twice as fast as all at once.
    rows, columns = view.shape[-2:]
    for row, column in itertools.product(range(0, rows, _ROWS), range(0, columns, _COLUMNS)):
        tile = (..., slice(row, row + _ROWS), slice(column, column + _COLUMNS))
        result[tile] = view[tile]
    return result
