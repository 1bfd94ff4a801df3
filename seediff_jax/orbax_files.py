"""The orbax tree under `params/` of a model's folder: what it holds, read and written.

Orbax reads all arrays at once and gives up at the first that is damaged, while tensorstore still
reads the others, whose ends then find a closed event loop: hundreds of tracebacks, beside the
error. So the handlers here end every read before they report one.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

_FOLDER = "params"
_KINDS = (np.ndarray, jax.Array)


def is_orbax(folder: Path) -> bool:
    """Whether the weights of a model's folder are an orbax tree.

    An empty `params/` is one that has lost its files, unless there are safetensors beside it.
    """
    tree = folder / _FOLDER
    return tree.is_dir() and (any(tree.iterdir()) or not any(folder.glob("*/*.safetensors")))


def stored_arrays(folder: Path) -> dict[str, Any]:
    """The tree of a model's folder, with the `shape` and `dtype` of every array.

    Raises:
        ValueError: it is damaged.
    """
    with _open_tree(folder) as (handler, tree):
        return dict(handler.metadata(tree).tree)


def read_arrays(folder: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with its arrays, on the host, whatever devices wrote them.

    Args:
        folder: of the model.
        stored: of `stored_arrays`.

    Raises:
        ValueError: it is damaged.
    """
    wanted = jax.tree.map(
        lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), dict(stored)
    )
    with _open_tree(folder) as (handler, tree):
        return handler.restore(tree, args=ocp.args.PyTreeRestore(restore_args=wanted))


def write_arrays(folder: Path, params: Mapping[str, Any]) -> None:
    """Writes params as they are into a model's folder, which has no tree yet."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / _FOLDER).absolute(), dict(params))


@contextlib.contextmanager
def _open_tree(folder: Path) -> Iterator[tuple[ocp.PyTreeCheckpointHandler, Path]]:
    """Yields what reads a tree, and the tree's place; tells what is damaged."""
    types = [(kind, _Handler(ocp.type_handlers.get_type_handler(kind))) for kind in _KINDS]
    registry = ocp.type_handlers.create_type_handler_registry(*types)
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    try:
        yield handler, (folder / _FOLDER).absolute()
    # What orbax, tensorstore and the readers of its JSON make of files that are not as written.
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).split(" [tensorstore_spec=")[0]  # 1 kB of settings follow
        raise ValueError(
            f"{folder / _FOLDER} is no orbax checkpoint, or damaged ({reason}); convert the "
            "original model again with python -m seediff_jax.convert"
        ) from error
    finally:
        handler.close()


class _Handler:
    """A handler of orbax that ends all its reads before it reports one that failed."""

    def __init__(self, handler: ocp.type_handlers.TypeHandler):
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    async def metadata(self, infos: Sequence[Any]) -> list[Any]:
        """The metadata of arrays."""
        return await _all_of([self._handler.metadata([info]) for info in infos])

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The arrays."""
        pairs = zip(infos, args, strict=True)
        return await _all_of([self._handler.deserialize([info], [arg]) for info, arg in pairs])


async def _all_of(reads: Sequence[Coroutine[Any, Any, Sequence[Any]]]) -> list[Any]:
    results = await asyncio.gather(*reads, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [item for (item,) in results]
