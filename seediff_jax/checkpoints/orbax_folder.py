"""Reads and writes weights of orbax folders: an orbax tree under `params/` of a model's folder.

Orbax reads all arrays at once and stops at the first damaged one, while tensorstore still reads the
others into a closed event loop: hundreds of tracebacks in addition to the error. So the handlers
here finish every read before they report an error.
"""

import asyncio
import copy
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from seediff_jax.checkpoints.diffusers_folder import new_model_folder
from seediff_jax.checkpoints.param_loading import (
    Merges,
    Weights,
    convert_array,
    pop_in_order,
    require_finite,
    require_params,
)
from seediff_jax.checkpoints.parameters import ParamPath
from seediff_jax.errors import UserError, shown
from seediff_jax.models.model import Model, ModelConfig

_FOLDER = "params"


def is_orbax(folder: Path) -> bool:
    """Whether the weights of a model's folder are an orbax tree.

    An empty `params/` is a damaged one, unless the folder has safetensors too.
    """
    tree = folder / _FOLDER
    return tree.is_dir() and (any(tree.iterdir()) or not any(folder.glob("*/*.safetensors")))


def read_orbax(folder: Path, config: ModelConfig, dtype: DTypeLike, merges: Merges) -> Weights:
    """Reads the weights of an orbax folder one by one, like `read_components`."""
    broken = []
    for path, array in pop_in_order(_read_arrays(folder, config)):
        array = np.asarray(array).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            broken.append("/".join(path))
            continue
        array = merges[path](array) if path in merges else array
        yield path, convert_array(path, array, config.dtype_of(path[0], dtype))
    require_finite(broken, f"{folder}")


def save_orbax(model: Model, folder: str | os.PathLike[str]) -> None:
    """Writes an orbax folder, which `load_model` can load; each weight keeps its dtype.

    It appears when it is complete.

    Raises:
        UserError: the folder exists or is a URL.
    """
    with new_model_folder(folder, model) as (aside, _), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((aside / _FOLDER).absolute(), dict(model.params))


def _read_arrays(folder: Path, config: ModelConfig) -> dict[ParamPath, np.ndarray]:
    """Reads all arrays in their stored dtypes; turns every error into a UserError."""
    tree = (folder / _FOLDER).absolute()
    if odd := [path for path in tree.rglob("*") if not (path.is_file() or path.is_dir())]:
        raise UserError(f"{odd[0]} is not a regular file; remove it from the orbax checkpoint")
    handlers = {kind: ocp.type_handlers.get_type_handler(kind) for kind in (np.ndarray, jax.Array)}
    registry = ocp.type_handlers.create_type_handler_registry(
        *((kind, _finish_reads(handler)) for kind, handler in handlers.items())
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    try:
        stored = dict(handler.metadata(tree).tree)
        require_params(flatten_dict(stored), config, f"{folder}")
        wanted = jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), stored
        )
        args = ocp.args.PyTreeRestore(restore_args=wanted)
        return flatten_dict(handler.restore(tree, args=args))
    except UserError:
        raise
    # For damaged files orbax, tensorstore and their JSON readers raise exceptions of any type.
    except Exception as error:
        reason = str(error).split(" [tensorstore_spec=")[0]  # 1 kB of settings follow
        reason = shown(f"{type(error).__name__}: {reason}", 300)
        raise UserError(
            f"{folder / _FOLDER} is not an orbax checkpoint, or damaged ({reason}); convert the "
            "original model again with python -m seediff_jax.convert"
        ) from error
    finally:
        handler.close()


def _finish_reads(handler: ocp.type_handlers.TypeHandler) -> ocp.type_handlers.TypeHandler:
    """A copy of a handler that finishes all its reads before it reports one that failed."""
    copied = copy.copy(handler)
    copied.metadata = functools.partial(_read_each, handler.metadata)
    copied.deserialize = functools.partial(_read_each, handler.deserialize)
    return copied


async def _read_each(read: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
    reads = (read(*([item] for item in items)) for items in zip(*arguments, strict=True))
    results = await asyncio.gather(*reads, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [item for (item,) in results]
