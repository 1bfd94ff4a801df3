"""State of a training stage, its steps and its checkpoints."""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import struct
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Params = dict[str, Any]


@struct.dataclass
class TrainState:
    """All that a checkpoint holds.

    Attributes:
        step: steps so far, int32 `[]`.
        params: what is trained.
        ema: a moving average of `params`.
        optimizer: the optimiser's moments.
        stats: what the loss itself keeps, such as running means of a batch norm; None if nothing.
    """

    step: jax.Array
    params: Params
    ema: Params
    optimizer: optax.OptState
    stats: Params | None = None


@struct.dataclass
class Schedule:
    """Learning rate and length of a stage.

    Attributes:
        learning_rate: after 100 steps of warm-up.
        ema_decay: of the averaged weights that are exported.
        decay_from: step at which the learning rate starts to fall.
        decay_steps: it falls linearly to 2 % of itself in this number of steps.
        steps: stop at this step.
        minutes: stop after this time.
        checkpoint_minutes: time between checkpoints.
    """

    learning_rate: float
    ema_decay: float = 0.999
    decay_from: int = 10**9
    decay_steps: int = 1
    steps: int = 10**9
    minutes: float = 60.0
    checkpoint_minutes: float = 4.0

    def rate(self, step: jax.Array) -> jax.Array:
        """Learning rate at a step."""
        warm = jnp.minimum(1.0, (step + 1) / 100)
        fallen = jnp.clip((step - self.decay_from) / self.decay_steps, 0.0, 1.0)
        return self.learning_rate * warm * (1 - 0.98 * fallen)


def make_optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW with clipped gradients."""
    adamw = optax.adamw(schedule.rate, b2=0.99, weight_decay=0.01)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def init_state(
    params: Params,
    schedule: Schedule,
    optimizer: optax.GradientTransformation | None = None,
    stats: Params | None = None,
) -> TrainState:
    """A state at step 0 with the average equal to the params; see `run_steps`."""
    average = jax.tree.map(jnp.copy, params)
    moments = (optimizer or make_optimizer(schedule)).init(params)
    return TrainState(jnp.zeros((), jnp.int32), params, average, moments, stats)


@functools.lru_cache(maxsize=2)
def make_train_step(
    loss: Callable[..., Any],
    schedule: Schedule,
    optimizer: optax.GradientTransformation | None = None,
    mesh: Mesh | None = None,
):
    """Returns `(state, *batch) -> (state, loss)`, see `run_steps`.

    The same arguments give the same function, which is compiled once. On a mesh with several
    devices each of them differentiates its share of the batch with its own random numbers, and
    the results are averaged; the compiler could not split attention, see `attention_choice`.
    """
    optimizer = optimizer or make_optimizer(schedule)

    def differentiate(params, stats, rng, *batch):
        def loss_and_stats(params):
            if stats is None:
                return loss(params, rng, *batch), None
            return loss(params, stats, rng, *batch)

        return jax.value_and_grad(loss_and_stats, has_aux=True)(params)

    def differentiate_share(params, stats, rng, *batch):
        rng = jax.random.fold_in(rng, jax.lax.axis_index("data"))
        return jax.lax.pmean(differentiate(params, stats, rng, *batch), "data")

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, *batch):
        rng = jax.random.fold_in(jax.random.key(1), state.step)
        gradient_of = differentiate
        if mesh is not None and mesh.size > 1:
            replicated, split = PartitionSpec(), PartitionSpec("data")
            gradient_of = jax.shard_map(
                differentiate_share,
                mesh=mesh,
                in_specs=(replicated, replicated, replicated, *[split] * len(batch)),
                out_specs=replicated,
                check_vma=False,
            )
        (value, stats), gradient = gradient_of(state.params, state.stats, rng, *batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, so that the average does not keep random weights.
        decay = jnp.minimum(schedule.ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        return TrainState(state.step + 1, params, ema, moments, stats), value

    return train_step


def _leaves_by_name(tree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def save_state(path: pathlib.Path, state: TrainState) -> None:
    """Writes the state into one file; a kill leaves the file of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part.npz")
    np.savez(aside, **{name: np.asarray(leaf) for name, leaf in _leaves_by_name(state).items()})
    os.replace(aside, path)


def restore_state(path: pathlib.Path, state: TrainState) -> TrainState:
    """Reads a state of the same structure and shapes."""
    with np.load(path) as file:
        stored = {name: file[name] for name in file.files}
    expected = _leaves_by_name(state)
    wrong = {
        name for name in expected.keys() & stored if stored[name].shape != expected[name].shape
    }
    wrong |= expected.keys() ^ stored.keys()
    if wrong:
        raise ValueError(f"{path} does not fit the recipe: {sorted(wrong)[:5]}")
    treedef = jax.tree.structure(state)
    return jax.tree.unflatten(treedef, [jnp.asarray(stored[name]) for name in expected])


def read_step(path: pathlib.Path) -> int:
    """Steps of a checkpoint; 0 without one."""
    if not path.exists():
        return 0
    with np.load(path) as file:
        return int(file[".step"])


def read_average(path: pathlib.Path, params: Params) -> Params:
    """The averaged weights of a checkpoint, or `params` if there is no checkpoint."""
    if not path.exists():
        return params
    with np.load(path) as file:
        names = jax.tree_util.tree_flatten_with_path(params)[0]
        leaves = [jnp.asarray(file[".ema" + jax.tree_util.keystr(key)]) for key, _ in names]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def run_steps(
    state: TrainState,
    loss: Callable[..., jax.Array],
    make_batch: Callable[[int], tuple[np.ndarray, ...]],
    path: pathlib.Path | None,
    schedule: Schedule,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """Trains until the schedule's steps or minutes are reached.

    Resumes from the checkpoint at `path` if there is one, and writes it. Batches follow from the
    step, and noise from the step and the number of devices, so an interrupted run ends in the same
    state if it is resumed on as many devices.

    Args:
        state: from `init_state`, with the same optimiser.
        loss: `(params, rng, *batch) -> loss`; with `state.stats`
            `(params, stats, rng, *batch) -> loss, stats`.
        make_batch: the batch of a step, in arrays whose first axis the devices share.
        path: the checkpoint; None keeps none.
        schedule: length of the stage, and decay of the average.
        optimizer: what follows its own learning rate; None is AdamW with the schedule's.
    """
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    if path and path.exists():
        state = restore_state(path, state)
        logging.info("resumed %s at step %d", path, int(state.step))
    state = jax.device_put(state, whole)
    train_step = make_train_step(loss, schedule, optimizer, mesh)
    step = first = int(state.step)
    start, saved, shown, losses = time.time(), time.time(), 0, []
    while step < schedule.steps and time.time() - start < 60 * schedule.minutes:
        batch = jax.device_put(make_batch(step), split)
        state, value = train_step(state, *batch)
        losses.append(value)
        step, shown = step + 1, shown + len(batch[0])
        if step % 50 == 0:
            seconds, mean = time.time() - start, float(jnp.mean(jnp.stack(losses)))
            logging.info("step %d loss %.5f %.1f images/s", step, mean, shown / seconds)
            losses.clear()
        if path and time.time() - saved > 60 * schedule.checkpoint_minutes:
            save_state(path, state)
            saved = time.time()
    if path and step > first:
        save_state(path, state)
    return state


def count_params(params: Params) -> int:
    """Number of weights."""
    return sum(leaf.size for leaf in flatten_dict(params).values())
