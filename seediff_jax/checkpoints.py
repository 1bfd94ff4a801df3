"""Checkpoints in and out: diffusers folders (safetensors) and orbax folders.

Both kinds have the JSON files and the tokenizer of a diffusers folder (see model_config). The
weights of the one are safetensors files of diffusers, of the other an orbax tree under `params/`.
Nothing here needs torch or diffusers.

    tensor of a file -> its canonical name -> its Linen path (models.names) -> Linen layout

The walk over the tensors fails loudly in every direction: everything that is missing, unexpected or
mis-shaped is reported at once.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from seediff_jax.model_config import ModelConfig, init_params, write_model_config
from seediff_jax.models.names import canonical_name, checkpoint_axes, checkpoint_name
from seediff_jax.weight_files import WeightReader, find_weight_files, open_weights, write_weights

Params = dict[str, Any]
_ORBAX = "params"


def read_params(folder: Path, config: ModelConfig) -> Params:
    """Reads the weights of a diffusers folder or of an orbax folder.

    Args:
        folder: the folder.
        config: what `read_model_config` says of it.

    Returns:
        float32 NumPy arrays in Linen's layout under the names of `config.components`.

    Raises:
        ValueError: files are missing, damaged or pickles; tensors are missing (-), unexpected (+),
            of another shape than the configs say, or hold NaN or infinity.
    """
    expected = _expected_shapes(config)
    if (folder / _ORBAX).is_dir():
        return _read_orbax(folder / _ORBAX, expected)
    params = {}
    for name in config.components:
        with open_weights(find_weight_files(folder, name)) as reader:
            params[name] = _read_component(reader, name, expected[name], f"{folder / name}")
    return params


def read_components(
    open_component: Callable[[str, Collection[str]], WeightReader],
    config: ModelConfig,
    source: str,
) -> Params:
    """Reads the weights of a model out of anything that knows them by their diffusers names.

    Args:
        open_component: gives the reader of a component, to which it is told all names that the
            component needs.
        config: the static half of the model.
        source: what errors are to name.

    Returns:
        As `read_params`, and with its errors.
    """
    params = {}
    for component, expected in _expected_shapes(config).items():
        reader = open_component(component, _tensor_paths(component, expected).keys())
        params[component] = _read_component(reader, component, expected, f"{source}: {component}")
    return params


def require_free(folder: Path) -> None:
    """Checks that a folder can be written.

    Raises:
        ValueError: it exists and is not empty, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists; name a new folder or remove it first")


def write_folder(
    folder: Path, config: ModelConfig, params: Mapping[str, Any], dtype: DTypeLike = np.float32
) -> None:
    """Writes a diffusers folder; `folder` appears when it is complete.

    Args:
        folder: must not exist, or be empty.
        config: the static half of the model.
        params: the weights, arrays of any float dtype.
        dtype: of the written weights; float16 halves the size.

    Raises:
        ValueError: the folder exists, params do not fit the config, or weights are not finite in
            `dtype`.
    """
    expected = _expected_shapes(config)
    _check_params(params, expected, "params")
    with _written_aside(folder, config.components) as aside:
        write_model_config(aside, config)
        for component in config.components:
            tensors = {}
            for path, leaf in flatten_dict(params[component]).items():
                array = np.asarray(leaf)
                array = array.transpose(checkpoint_axes(path[-1], array.ndim))
                with np.errstate(over="ignore"):  # reported below, with the tensor's name
                    array = np.ascontiguousarray(array, dtype)
                tensors[checkpoint_name(component, path)] = array
            _check_finite(tensors, f"{component} as {np.dtype(dtype)}")
            write_weights(aside, component, tensors)


def write_orbax(folder: Path, config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes an orbax folder with the params as they are; `folder` appears when it is complete.

    Raises:
        ValueError: the folder exists, or params do not fit the config.
    """
    _check_params(params, _expected_shapes(config), "params")
    with _written_aside(folder, config.components) as aside:
        write_model_config(aside, config)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save((aside / _ORBAX).absolute(), dict(params))


def weights_hash(params: Mapping[str, Any]) -> str:
    """SHA-256 of all weights: paths, shapes and float32 values.

    The same values have the same hash whatever the kind of folder, its shards and stored dtype.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten_dict(dict(params), sep="/").items()):
        digest.update(f"{path} {tuple(leaf.shape)}\n".encode())
        digest.update(np.ascontiguousarray(leaf, np.float32))
    return digest.hexdigest()


def _expected_shapes(config: ModelConfig) -> Params:
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def _tensor_paths(component: str, expected: Params) -> dict[str, tuple[str, ...]]:
    """The checkpoint's name of every leaf of a component -> the leaf's path."""
    return {checkpoint_name(component, path): path for path in flatten_dict(expected)}


def _read_component(reader: WeightReader, component: str, expected: Params, source: str) -> Params:
    leaves, paths = flatten_dict(expected), _tensor_paths(component, expected)
    axes = {name: checkpoint_axes(path[-1], leaves[path].ndim) for name, path in paths.items()}
    shapes = {n: tuple(leaves[path].shape[i] for i in axes[n]) for n, path in paths.items()}
    found = _match_names(reader, component, shapes, source)
    tensors = {name: reader.read(found[name]) for name in paths}
    _check_finite(tensors, source)
    params = {}
    for name, path in paths.items():
        tensor = tensors.pop(name).transpose(np.argsort(axes[name]))
        params[path] = np.ascontiguousarray(tensor)
    return unflatten_dict(params)


def _match_names(
    reader: WeightReader, component: str, shapes: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, str]:
    """Maps the expected names to those in the files; reports all differences at once."""
    found: dict[str, str] = {}
    faults = []
    for raw in sorted(reader.shapes):
        name = canonical_name(component, raw)
        if name is None:
            continue
        if name in found:
            faults.append(f"+ {raw}: the same tensor as {found[name]}")
        elif name not in shapes:
            faults.append(f"+ {raw} {reader.shapes[raw]}: unexpected")
        elif reader.shapes[raw] != shapes[name]:
            faults.append(f"! {raw} {reader.shapes[raw]}: the config says {shapes[name]}")
        elif not reader.is_number(raw):
            faults.append(f"! {raw}: dtype {reader.dtypes[raw]}, needed F32, F16, BF16 or F64")
        found.setdefault(name, raw)
    faults += [f"- {name} {shapes[name]}: missing" for name in shapes if name not in found]
    _raise_faults(faults, source)
    return found


def _check_params(params: Mapping[str, Any], expected: Params, source: str) -> None:
    given = {k: tuple(v.shape) for k, v in flatten_dict(dict(params), sep="/").items()}
    shapes = {k: tuple(v.shape) for k, v in flatten_dict(expected, sep="/").items()}
    faults = [f"+ {name} {given[name]}: unexpected" for name in sorted(given.keys() - shapes)]
    faults += [f"- {name} {shapes[name]}: missing" for name in sorted(shapes.keys() - given)]
    faults += [
        f"! {name} {given[name]}: the config says {shapes[name]}"
        for name in sorted(shapes.keys() & given)
        if given[name] != shapes[name]
    ]
    _raise_faults(faults, source)


def _raise_faults(faults: list[str], source: str) -> None:
    if faults:
        lines = "\n  ".join(faults)
        raise ValueError(f"{source}: {len(faults)} weights do not fit the config:\n  {lines}")


def _check_finite(tensors: Mapping[str, np.ndarray], source: str) -> None:
    broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{source}: NaN or infinity in {', '.join(broken)}")


def _read_orbax(folder: Path, expected: Params) -> Params:
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(folder.absolute()).item_metadata.tree
            _check_params(stored, expected, f"{folder}")
            # NumPy leaves are restored on the host, whatever devices wrote them.
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), dict(stored))
            restored = checkpointer.restore(folder.absolute(), target)
        except (OSError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder} is no orbax checkpoint, or damaged: {error}") from error
    params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), restored)
    _check_finite(flatten_dict(params, sep="/"), f"{folder}")
    return params


@contextlib.contextmanager
def _written_aside(folder: Path, components: Iterable[str]) -> Iterator[Path]:
    """Yields a folder beside `folder`, which takes its name when all is written."""
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        for component in components:
            (aside / component).mkdir()
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
