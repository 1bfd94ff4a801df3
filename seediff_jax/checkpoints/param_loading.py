"""Converts weights one by one, in a fixed order, and hashes them.

    rows of a tensor -> float32 -> [ largest, hash ] -> dtype, Linen's layout, new memory

A tensor is processed in blocks that fit into the caches, so memory is read once and written once.
Several threads work on one tensor each; nearly all of the work runs without Python's lock.
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from xxhash import xxh3_128

from seediff_jax.checkpoints.parameters import (
    ParamPath,
    canonical_name,
    checkpoint_axes,
    component_parameters,
    is_unused,
    parameters,
)
from seediff_jax.checkpoints.safetensors_files import (
    FLOATS,
    ROWS,
    StoredTensor,
    Tensors,
    join_faults,
    rows_per_block,
    to_float32,
)
from seediff_jax.errors import UserError, listed
from seediff_jax.models.model import ModelConfig

Merges = Mapping[ParamPath, Callable[[np.ndarray], np.ndarray]]
"""Weights that are changed before they are used: functions of the float32 weight."""

_ALIGNMENT = 64  # bytes: a cache line, and what JAX needs to use an array without a copy
_THREADS = 4  # that wait for memory more than they compute; each has one tensor in memory
_FLOAT16_BOUND = 65520  # from here on numbers are rounded to infinity


class Weight:
    """A weight on its way into a model.

    Attributes:
        array: in Linen's layout, contiguous, in the model's dtype.
        largest: largest absolute value of what was added; NaN if that holds one.
    """

    def __init__(self, array: Any):
        self.array, self.largest, self._hash = array, 0.0, xxh3_128()

    def add(self, block: np.ndarray) -> None:
        """Adds some float32 values, before the cast and in the order of a checkpoint."""
        self._hash.update(np.ascontiguousarray(block))
        least, most = block.min(initial=0), block.max(initial=0)
        self.largest = float(np.maximum(self.largest, np.maximum(most, -least)))

    @property
    def digest(self) -> bytes:
        """XXH3 (128 bits) of the added values."""
        return self._hash.digest()

    @property
    def is_finite(self) -> bool:
        """Whether it held neither NaN nor infinity before the cast."""
        return bool(np.isfinite(self.largest))

    @property
    def overflows(self) -> bool:
        """Whether the cast to float16 made it infinite."""
        return self.array.dtype == np.float16 and not self.largest < _FLOAT16_BOUND


Weights = Iterator[tuple[ParamPath, Weight]]
"""Paths in the params, each with its weight."""


def add_to_hash(weights_hash: xxh3_128, path: ParamPath, weight: Weight) -> None:
    """Adds path, shape and float32 values of a weight to the hash of a model's weights.

    The paths, joined by `/`, must ascend. The hash does not depend on the kind of folder, its
    shards and stored dtype. It tells weights apart; it is not cryptographic.
    """
    weights_hash.update(f"{'/'.join(path)} {tuple(weight.array.shape)}\n".encode() + weight.digest)


def pop_in_order(params: dict[ParamPath, Any]) -> Iterator[tuple[ParamPath, Any]]:
    """Removes arrays from a flat dict in the order that `add_to_hash` needs."""
    for path in sorted(params, key="/".join):
        yield path, params.pop(path)


def weight_dtype(ndim: int, dtype: DTypeLike) -> np.dtype:
    """The dtype of a weight in a model of `dtype`: vectors (norms, biases) stay in float32."""
    return np.dtype(dtype if ndim > 1 else np.float32)


def convert_array(path: ParamPath, array: Any, dtype: DTypeLike) -> Weight:
    """Makes a Weight of an array in Linen's layout, without a copy if it has the dtype."""
    values = np.asarray(array)
    with np.errstate(over="ignore"):  # infinity beyond float16, see `Weight.overflows`
        weight = Weight(array.astype(weight_dtype(values.ndim, dtype), copy=False))
    stored = values.transpose(checkpoint_axes(path[-1], values.ndim))
    rows = rows_per_block(stored.shape)
    for start in range(0, len(stored), rows):
        weight.add(to_float32(stored[start : start + rows]))
    return weight


def convert_tensor(
    path: ParamPath, shape: Sequence[int], blocks: Iterable[np.ndarray], dtype: DTypeLike
) -> Weight:
    """Makes a Weight, in memory of its own, of the rows of a tensor in a checkpoint's layout."""
    axes, dtype = checkpoint_axes(path[-1], len(shape)), weight_dtype(len(shape), dtype)
    weight = Weight(_aligned_empty([shape[i] for i in np.argsort(axes)], dtype))
    target, row = weight.array.transpose(axes), 0  # the checkpoint's layout again
    for block in blocks:
        wide = to_float32(block)
        weight.add(wide)
        with np.errstate(over="ignore"):  # infinity beyond float16, see `Weight.overflows`
            cast = block if block.dtype == dtype else wide.astype(dtype, copy=False)
        for start in range(0, len(cast), ROWS):
            part = cast[start : start + ROWS]
            target[row : row + len(part)] = part
            row += len(part)
    return weight


def read_components(
    found: Mapping[str, tuple[str, Tensors]], config: ModelConfig, dtype: DTypeLike, merges: Merges
) -> Weights:
    """Reads the weights of components one by one, in order of `/`-joined paths.

    `found` gives the name in errors and the tensors of each component to read. All names and shapes
    are compared with the config before the first weight is read.

    Raises:
        UserError: tensors are missing (-), unexpected (+), of another shape than the configs say
            (!), damaged, or hold NaN or infinity.
    """
    matched = {
        component: (source, _match_names(tensors, component, config, source))
        for component, (source, tensors) in found.items()
    }
    for component, (source, tensors) in sorted(matched.items()):
        broken = []
        for path, weight in load_tensors(tensors, config.dtype_of(component, dtype), merges):
            if weight.is_finite:
                yield path, weight
            else:
                broken.append(tensors[path].name)
        require_finite(broken, source)


def _match_names(
    tensors: Tensors, component: str, config: ModelConfig, source: str
) -> dict[ParamPath, StoredTensor]:
    """Finds the tensor of each parameter of a component; reports all differences at once."""
    expected = component_parameters(config, component)
    names: dict[str, str] = {}  # of the file, by those of diffusers
    faults = []
    for name in sorted(tensors):
        canonical = canonical_name(component, name)
        if canonical in names:
            faults.append(f"+ {name}: the same tensor as {names[canonical]}")
        elif canonical in expected or not is_unused(component, canonical):
            names[canonical] = name
            if canonical in expected and tensors[name].dtype not in FLOATS:
                dtype = tensors[name].dtype
                faults.append(f"! {name}: dtype {dtype}, expected one of {listed(FLOATS)}")
    found = {name: tensors[name].shape for name in names.values()}
    shapes = {names.get(name, name): p.stored_shape for name, p in expected.items()}
    require_shapes(found, shapes, source, faults)
    return {p.path: tensors[names[name]] for name, p in expected.items()}


def load_tensors(
    tensors: Mapping[ParamPath, StoredTensor], dtype: DTypeLike, merges: Merges
) -> Weights:
    """Yields weights in order of their paths.

    Threads read the next few while the caller works on the last one.
    """

    def load(path: ParamPath) -> Weight:
        tensor, merge = tensors[path], merges.get(path)
        kept = dtype if merge is None else np.float32
        weight = convert_tensor(path, tensor.shape, tensor.read_blocks(), kept)
        if merge is None or not weight.is_finite:
            return weight
        return convert_array(path, merge(weight.array), dtype)

    paths, ahead = sorted(tensors, key="/".join), min(_THREADS, os.cpu_count() or 1)
    pool = concurrent.futures.ThreadPoolExecutor(ahead)
    try:
        loading = collections.deque(pool.submit(load, path) for path in paths[:ahead])
        for i, path in enumerate(paths, ahead):
            loading.extend(pool.submit(load, later) for later in paths[i : i + 1])
            yield path, loading.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def require_shapes(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    faults: Sequence[str] = (),
) -> None:
    """Raises a UserError unless weights have the shapes, by name, of a model's parameters.

    `faults` are others of the same weights, to be reported too.
    """
    faults = [
        *faults,
        *(f"+ {name} {found[name]}: unexpected" for name in sorted(found.keys() - expected)),
        *(f"- {name} {expected[name]}: missing" for name in sorted(expected.keys() - found)),
        *(
            f"! {name} {found[name]}: the config says {expected[name]}"
            for name in sorted(expected.keys() & found)
            if found[name] != expected[name]
        ),
    ]
    if faults:
        raise UserError(
            f"{source}: {len(faults)} weights do not fit the config: {join_faults(faults)}"
        )


def require_params(given: Mapping[ParamPath, Any], config: ModelConfig, source: str) -> None:
    """Raises a UserError unless arrays have the paths and shapes of a model's parameters."""
    found = {"/".join(path): tuple(array.shape) for path, array in given.items()}
    expected = {"/".join(path): item.shape for path, item in parameters(config).items()}
    require_shapes(found, expected, source)


def require_finite(broken: Sequence[str], source: str) -> None:
    """Raises a UserError with the names of weights that are not finite, if there are any."""
    if broken:
        raise UserError(f"{source}: NaN or infinity in {listed(broken)}")


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
