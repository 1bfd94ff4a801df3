"""Trains a segmenter on any samples.

Batches, augmentations and dropout follow from the seed and the step alone, so that a run that was
stopped, or killed, continues from its last checkpoint with the same result. All devices share each
batch; statistics of a batch norm are those of the whole batch.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.segmenter.checkpoints import Checkpoints
from experiments.segmenter.config import SegmenterConfig
from experiments.segmenter.data import Samples
from experiments.segmenter.deeplab import DeepLabV3
from experiments.segmenter.loading import load_batches
from experiments.segmenter.resnet import DEPTHS, ResNet
from experiments.segmenter.unet import SmallUNet
from experiments.training.state import Params, Schedule, init_state, make_train_step
from seediff_jax.errors import UserError
from seediff_jax.masks.config import IGNORE_INDEX

Variables = dict[str, Params]
""""params", and "batch_stats" where the network has a batch norm."""

_LOGGED_STEPS = 50


def make_network(config: SegmenterConfig) -> SmallUNet | DeepLabV3:
    """The network of a recipe."""
    if config.network == "unet":
        return SmallUNet(config.num_labels)
    backbone = ResNet(DEPTHS[config.network], deep_stem=config.deep_stem, name="backbone")
    return DeepLabV3(config.num_labels, backbone)


@functools.lru_cache(maxsize=2)
def make_optimizer(config: SegmenterConfig) -> optax.GradientTransformation:
    """The optimiser of a recipe: clipping, AdamW or SGD, polynomial decay, a slower backbone."""

    def rate(factor: float) -> optax.GradientTransformation:
        first, last = factor * config.learning_rate, factor * config.final_rate
        schedule = optax.polynomial_schedule(first, last, config.power, config.steps)
        if config.optimizer == "adamw":
            return optax.adamw(schedule, b1=config.momentum, weight_decay=config.weight_decay)
        # As in torch, the decay joins the gradient and so the momentum.
        decay = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(decay, optax.sgd(schedule, momentum=config.momentum))

    def parts(params: Params) -> Params:
        return {key: "backbone" if key == "backbone" else "head" for key in params}

    both = {"backbone": rate(config.backbone_factor), "head": rate(1.0)}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.multi_transform(both, parts))


def segmentation_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over the pixels whose label is not 255; 0 if there is none.

    Args:
        logits: float `[b, h, w, n]`.
        labels: integers `[b, h, w]`.
    """
    counted = labels != IGNORE_INDEX
    ids = jnp.where(counted, labels, 0).astype(jnp.int32)
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
    return jnp.sum(jnp.where(counted, errors, 0)) / jnp.maximum(
        1.0, jnp.sum(counted, dtype=jnp.float32)
    )


@functools.lru_cache(maxsize=2)
def make_loss(config: SegmenterConfig) -> Callable[..., tuple[jax.Array, Any]]:
    """`(params, stats, rng, images, labels) -> loss, stats` of the recipe's network.

    The same recipe gives the same function, so that it is compiled once for several sets of data.
    """
    network, weights = make_network(config), (1.0, config.auxiliary_weight)

    def loss(params, stats, rng, images, labels):
        params, images = to_compute_dtype(config, (params, images))
        heads, stats = network.apply(
            {"params": params, **stats}, images, train=True, mutable=list(stats),
            rngs={"dropout": rng},
        )  # fmt: skip
        losses = [segmentation_loss(logits, labels) for logits in heads]
        return sum(w * x for w, x in zip(weights, losses, strict=False)), stats

    return loss


def to_compute_dtype(config: SegmenterConfig, tree: Any) -> Any:
    """Weights and images in the dtype of the recipe.

    The optimiser's weights, statistics of batch norms, logits and losses remain float32.
    """
    return jax.tree.map(lambda leaf: leaf.astype(config.dtype), tree)


def train(
    config: SegmenterConfig,
    samples: Samples,
    path: pathlib.Path | None = None,
    *,
    rng_seed: int = 0,
    variables: Variables | None = None,
    checkpoint_minutes: float = 4,
    devices: Sequence[jax.Device] | None = None,
) -> Variables:
    """Trains, or resumes from the last checkpoint; returns the averaged weights.

    Args:
        config: the recipe.
        samples: what to train on.
        path: folder of the checkpoints; None keeps none.
        rng_seed: first weights, batches and augmentations follow from it.
        variables: what to start from; random weights if None.
        checkpoint_minutes: time between checkpoints.
        devices: that share each batch; by default all of this machine.

    Raises:
        UserError: the batch cannot be shared evenly by the devices, or the checkpoint is one of
            another network.
    """
    devices = devices or jax.devices()
    if config.batch_size % len(devices):
        raise UserError(
            f"batch_size={config.batch_size} is not a multiple of the {len(devices)} devices"
        )
    mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    optimizer = make_optimizer(config)
    schedule = Schedule(
        learning_rate=config.learning_rate, ema_decay=config.ema_decay, steps=config.steps
    )
    train_step = make_train_step(make_loss(config), schedule, optimizer)
    stats = dict(variables or init_variables(config, rng_seed))
    params = stats.pop("params")
    batches = load_batches(config, samples, rng_seed)
    with Checkpoints(path, checkpoint_minutes) as checkpoints:
        state = init_state(params, schedule, optimizer, stats)
        # A copy: the first step gives the state's memory to its result, not that of `variables`.
        state = jax.device_put(state, whole, may_alias=False)
        state = checkpoints.restore(state, batches)
        step = first = int(state.step)
        begun = time.time()
        while step < config.steps:
            state, loss = train_step(state, *jax.device_put(next(batches), split))
            step += 1
            if step % _LOGGED_STEPS == 0:
                rate = (step - first) * config.batch_size / (time.time() - begun)
                logging.info("step %d loss %.5f %.1f images/s", step, float(loss), rate)
            if step == config.steps or checkpoints.is_due():
                checkpoints.save(step, state, batches)
    return jax.device_get({"params": state.ema, **state.stats})


def init_variables(config: SegmenterConfig, rng_seed: int) -> Variables:
    """Draws the weights of the recipe's network."""
    return dict(_initialiser(config)(jax.random.key(rng_seed)))


def variable_shapes(config: SegmenterConfig) -> Variables:
    """Shapes of the weights of the recipe's network."""
    return jax.eval_shape(_initialiser(config), jax.random.key(0))


@functools.lru_cache(maxsize=2)
def _initialiser(config: SegmenterConfig):
    image = jnp.zeros((1, config.crop, config.crop, 3))
    return jax.jit(lambda rng: make_network(config).init(rng, image))
