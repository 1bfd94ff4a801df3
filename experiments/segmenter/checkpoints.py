"""Checkpoints of a segmenter: orbax folders while it trains, and one file of final weights."""

import os
import pathlib
import time
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from experiments.training.state import TrainState
from seediff_jax.checkpoints.safetensors_files import open_weights
from seediff_jax.errors import UserError, listed

_KEPT = 2


class Checkpoints:
    """The checkpoints of one training run, by step; a kill leaves those that are complete.

    Args:
        folder: of the run; None keeps no checkpoint.
        minutes: time between two of them.
    """

    def __init__(self, folder: pathlib.Path | None, minutes: float):
        self._folder, self._minutes, self._saved = folder, minutes, time.time()
        self._manager = None
        if folder is not None:
            # A write takes seconds; it is synchronous, so that no writer thread outlives an error.
            options = ocp.CheckpointManagerOptions(
                max_to_keep=_KEPT, enable_async_checkpointing=False, cleanup_tmp_directories=True
            )
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "batches": grain.checkpoint.CheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                folder.absolute(), options=options, item_handlers=handlers
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._manager is not None:
            self._manager.close()

    def restore(self, state: TrainState, batches: grain.DatasetIterator) -> TrainState:
        """Returns the state of the last checkpoint and sets the batches to its place.

        Without a checkpoint, both stay as they are.

        Args:
            state: of step 0; the restored one has its structure, shapes and shardings.
            batches: of `load_batches`.

        Raises:
            UserError: the checkpoint is that of another network or optimiser.
        """
        step = self._manager.latest_step() if self._manager is not None else None
        if step is None:
            return state
        self._require_same_tree(step, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(state),
            batches=grain.checkpoint.CheckpointRestore(batches),
        )
        restored = self._manager.restore(step, args=args)
        logging.info("resumed %s at step %d", self._folder, step)
        return restored.state

    def _require_same_tree(self, step: int, state: TrainState) -> None:
        stored = self._manager.item_metadata(step).state
        differing = different_shapes(_shapes(stored.tree), _shapes(state))
        # Moments of the optimiser differ where weights do.
        weights = [fault for fault in differing if fault.startswith("params/")]
        if differing:
            raise UserError(
                f"{self._folder} is a checkpoint of another network: {listed(weights or differing)}"
            )

    def save(self, step: int, state: TrainState, batches: grain.DatasetIterator) -> None:
        """Writes a checkpoint, unless that step has one."""
        if self._manager is None or self._manager.latest_step() == step:
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), batches=grain.checkpoint.CheckpointSave(batches)
        )
        self._manager.save(step, args=args)
        self._saved = time.time()

    def is_due(self) -> bool:
        """Tells whether it is time for another checkpoint."""
        return time.time() - self._saved >= 60 * self._minutes


def read_last_step(folder: pathlib.Path) -> int:
    """Step of the last complete checkpoint; 0 without one."""
    if not folder.is_dir():
        return 0
    with ocp.CheckpointManager(folder.absolute()) as manager:
        return manager.latest_step() or 0


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays by name; orbax keeps records and tuples as dicts and lists."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path):
        tuple(leaf.shape)
        for path, leaf in leaves
    }  # fmt: skip


def different_shapes(
    stored: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> list[str]:
    """Says how the arrays of a checkpoint differ from those that are needed, by name."""
    return [
        f"{name} is {list(stored[name]) if name in stored else 'missing'}, expected "
        f"{list(expected[name]) if name in expected else 'none'}"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]


def write_weights(path: pathlib.Path, variables: dict[str, Any]) -> None:
    """Writes weights as safetensors, names joined by "/"; a kill leaves the file of before."""
    arrays = {"/".join(key): np.asarray(leaf) for key, leaf in flatten_dict(variables).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    save_file(arrays, aside)
    os.replace(aside, path)


def read_weights(path: pathlib.Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Reads what `write_weights` wrote.

    Args:
        path: the file.
        expected: arrays or shapes of the network.

    Raises:
        UserError: the file is missing or damaged, or holds weights of another network.
    """
    names = {"/".join(key): tuple(leaf.shape) for key, leaf in flatten_dict(expected).items()}
    if not path.is_file():
        raise UserError(f"{path} is missing; a training run writes it when it is complete")
    tensors, _ = open_weights(path)
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if differing := different_shapes(stored, names):
        raise UserError(f"{path} has the weights of another network: {listed(differing)}")
    return unflatten_dict({tuple(name.split("/")): tensors[name].read() for name in names})
