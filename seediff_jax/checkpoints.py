"""Checkpoints in and out: diffusers folders (safetensors) and orbax folders.

Both kinds have the JSON files and the tokenizer of a diffusers folder (see model_config). The
weights of the one are safetensors files of diffusers, of the other an orbax tree (orbax_files).
Nothing here needs torch or diffusers.

    tensor of a file -> its canonical name -> its Linen path (models.names) -> Linen layout (leaves)

The walk over the tensors fails loudly in every direction: everything that is missing, unexpected or
mis-shaped is reported at once.
"""

import contextlib
import glob
import os
import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from seediff_jax.leaves import Leaves, Merges, WeightsDigest, in_order, make_leaf, read_ahead
from seediff_jax.model_config import ModelConfig, write_model_config
from seediff_jax.models.names import canonical_name, checkpoint_axes, checkpoint_name
from seediff_jax.models.param_shapes import text_encoder_shapes, unet_shapes, vae_shapes
from seediff_jax.orbax_files import is_orbax, read_arrays, stored_arrays, write_arrays
from seediff_jax.weight_files import WeightReader, find_weight_files, open_weights, write_weights

Params = dict[str, Any]


def expected_shapes(config: ModelConfig) -> Params:
    """The shapes of all weights, as params of float32 `jax.ShapeDtypeStruct`."""
    shapes = {
        "text_encoder": text_encoder_shapes(config.text_encoder),
        "unet": unet_shapes(config.unet),
        "vae": vae_shapes(config.vae),
    }
    if config.is_xl:
        shapes["text_encoder_2"] = text_encoder_shapes(config.text_encoder_2)
    leaves = flatten_dict(shapes).items()
    return unflatten_dict({p: jax.ShapeDtypeStruct(shape, np.float32) for p, shape in leaves})


def read_leaves(
    folder: Path,
    config: ModelConfig,
    dtype: DTypeLike = np.float32,
    merges: Merges = MappingProxyType({}),
) -> Leaves:
    """Reads the weights of a diffusers folder or of an orbax folder one by one.

    All names and shapes are compared with the config before the first weight is read.

    Args:
        folder: the folder.
        config: what `read_model_config` says of it.
        dtype: of the model.
        merges: changes of weights, see `lora.open_merges`.

    Yields:
        The path of a weight in the params (a name of `config.components` first), and its Leaf, in
        the dtype that it has in a model of `dtype`; in order of `/`-joined paths.

    Raises:
        ValueError: files are missing, damaged or pickles; tensors are missing (-), unexpected (+),
            of another shape than the configs say, or hold NaN or infinity.
    """
    if is_orbax(folder):
        yield from _read_orbax(folder, config, dtype, merges)
        return
    with contextlib.ExitStack() as stack:

        def open_component(component, names):
            del names  # all that is in the files is of this component
            return stack.enter_context(open_weights(find_weight_files(folder, component)))

        yield from read_component_leaves(
            open_component, config, lambda name: f"{folder / name}", dtype, merges
        )


def read_component_leaves(
    open_component: Callable[[str, Collection[str]], WeightReader],
    config: ModelConfig,
    source_of: Callable[[str], str],
    dtype: DTypeLike = np.float32,
    merges: Merges = MappingProxyType({}),
) -> Leaves:
    """Reads the weights of a model out of anything that knows them by their diffusers names.

    Args:
        open_component: gives the reader of a component, to which it is told all names that the
            component needs.
        config: the static half of the model.
        source_of: how errors are to name the source of a component.
        dtype: of the model.
        merges: changes of weights.

    Yields:
        As `read_leaves`, and with its errors.
    """
    readers, found = {}, {}
    for component, expected in expected_shapes(config).items():
        paths = {checkpoint_name(component, path): path for path in flatten_dict(expected)}
        readers[component] = open_component(component, paths.keys())
        found[component] = _match_names(
            readers[component], component, expected, source_of(component)
        )
    for component, names in found.items():
        broken, kept = [], config.dtype_of(component, dtype)
        own = {path[1:]: merge for path, merge in merges.items() if path[0] == component}
        for path, leaf in read_ahead(readers[component], names, kept, own):
            if leaf.is_finite:
                yield (component, *path), leaf
            else:
                broken.append(names[path])
        _raise_broken(broken, source_of(component))


def read_params(folder: Path, config: ModelConfig) -> Params:
    """All that `read_leaves` yields, as float32 params."""
    return unflatten_dict({path: leaf.array for path, leaf in read_leaves(folder, config)})


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
    expected = expected_shapes(config)
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
            broken = [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]
            _raise_broken(broken, f"{component} as {np.dtype(dtype)}")
            write_weights(aside, component, tensors)


def write_orbax(folder: Path, config: ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes an orbax folder with the params as they are; `folder` appears when it is complete.

    Raises:
        ValueError: the folder exists, or params do not fit the config.
    """
    _check_params(params, expected_shapes(config), "params")
    with _written_aside(folder, config.components) as aside:
        write_model_config(aside, config)
        write_arrays(aside, params)


def weights_hash(params: Mapping[str, Any]) -> str:
    """The WeightsDigest of all weights of a model."""
    digest = WeightsDigest()
    for path, array in in_order(flatten_dict(dict(params))):
        digest.add(path, make_leaf(path, array, np.float32))
    return digest.hexdigest()


def _match_names(
    reader: WeightReader, component: str, expected: Params, source: str
) -> dict[tuple[str, ...], str]:
    """Maps the paths of a component to names in the files; reports all differences at once."""
    leaves = flatten_dict(expected)
    paths = {checkpoint_name(component, path): path for path in leaves}
    axes = {name: checkpoint_axes(path[-1], leaves[path].ndim) for name, path in paths.items()}
    shapes = {n: tuple(leaves[path].shape[i] for i in axes[n]) for n, path in paths.items()}
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
    return {path: found[name] for name, path in paths.items()}


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


def _raise_broken(names: list[str], source: str) -> None:
    if names:
        raise ValueError(f"{source}: NaN or infinity in {', '.join(names)}")


def _read_orbax(folder: Path, config: ModelConfig, dtype: DTypeLike, merges: Merges) -> Leaves:
    stored = stored_arrays(folder)
    _check_params(stored, expected_shapes(config), f"{folder}")
    restored = read_arrays(folder, stored)
    broken = []
    leaves = flatten_dict(restored)
    del restored  # so that a leaf is freed once the caller has done with it
    for path, leaf in in_order(leaves):
        array = np.asarray(leaf).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            broken.append("/".join(path))
            continue
        array = merges[path](array) if path in merges else array
        yield path, make_leaf(path, array, config.dtype_of(path[0], dtype))
    _raise_broken(broken, f"{folder}")


@contextlib.contextmanager
def _written_aside(folder: Path, components: Iterable[str]) -> Iterator[Path]:
    """Yields a folder beside `folder`, which takes its name when all is written."""
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Ids of processes mean something on one host only; the folder may be shared by several.
    stem = f".{folder.name}.{socket.gethostname()}."
    aside = folder.parent / f"{stem}{os.getpid()}.partial"
    for left in folder.parent.glob(f"{glob.escape(stem)}*.partial"):
        if left == aside or not _is_alive(left.name[len(stem) : -len(".partial")]):
            shutil.rmtree(left, ignore_errors=True)
    aside.mkdir()
    try:
        for component in components:
            (aside / component).mkdir()
        yield aside
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _is_alive(process: str) -> bool:
    """Whether a process of this host has the id `process`."""
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (ValueError, OverflowError, OSError):
        return False
    return True
