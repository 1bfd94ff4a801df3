"""Small networks that judge generated images: which class is shown, and where.

Both are trained on rendered scenes, whose truth is exact, and both come with their own score on
rendered scenes of other seeds.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.segmenter.config import LAPTOP
from experiments.segmenter.data import ArraySamples
from experiments.segmenter.predict import predict
from experiments.segmenter.trainer import train
from experiments.training.scenes import Renderer, Scene, stack_images

_TRAINING_SEED, _HELD_OUT_SEED = 50_000_000, 60_000_000
# Scenes without changes except noise: generated images are less clean than rendered ones.
_JUDGE = dataclasses.replace(LAPTOP, scales=(1.0, 1.0), photometric=False, noise=0.08)


class Classifier(nn.Module):
    """Five convolutions, four of them strided, and a mean over the image; for 64 x 64 pixels."""

    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """`[b, h, w, 3]` in [-1, 1] -> logits `[b, classes]`."""
        x = images
        for width in (24, 48, 96, 128):
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), strides=2)(x)))
        x = nn.relu(nn.GroupNorm(8)(nn.Conv(128, (3, 3))(x)))
        return nn.Dense(self.num_classes)(x.mean(axis=(1, 2)))


def _train(model, inputs: np.ndarray, labels: np.ndarray, steps: int, batch_size: int):
    """Minimises the cross-entropy with AdamW; returns the weights."""
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    params = model.init(jax.random.key(0), jnp.asarray(inputs[:1]))

    def loss(params, inputs, labels):
        logits = model.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, moments, inputs, labels):
        updates, moments = optimizer.update(jax.grad(loss)(params, inputs, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    moments = optimizer.init(params)
    for step in range(steps):
        rng = np.random.default_rng((6, step))
        chosen = rng.integers(0, len(inputs), batch_size)
        # Generated images are less clean than rendered ones.
        noise = rng.normal(0, rng.uniform(0, 0.15), inputs[chosen].shape).astype(np.float32)
        params, moments = train_step(params, moments, inputs[chosen] + noise, labels[chosen])
    return params


def _halve(images: np.ndarray) -> np.ndarray:
    b, h, w, _ = images.shape
    return images.reshape(b, h // 2, 2, w // 2, 2, 3).mean(axis=(2, 4), dtype=np.float32)


def _in_batches(function, inputs: Sequence) -> np.ndarray:
    parts = [inputs[i : i + 32] for i in range(0, len(inputs), 32)]
    return np.concatenate([np.asarray(function(part)) for part in parts])


def _scenes(render: Renderer, first_seed: int, count: int, num_objects: int | None, side: int):
    return [render(first_seed + i, side=side, num_objects=num_objects) for i in range(count)]


def train_classifier(
    render: Renderer,
    classes: tuple[str, ...],
    *,
    steps: int = 1500,
    count: int = 8000,
    side: int = 128,
) -> Callable[[np.ndarray], np.ndarray]:
    """Trains on rendered scenes of one object.

    Half of the scenes are turned grey and tinted, so that colour alone does not tell the class.

    Returns:
        A function from uint8 images `[b, side, side, 3]` to class indices `[b]`.
    """
    scenes = _scenes(render, _TRAINING_SEED, count, 1, side)
    rng = np.random.default_rng(5)
    images = _in_batches(lambda some: _halve(stack_images(some)), scenes)
    tinted = images.mean(axis=-1, keepdims=True) * rng.uniform(0.5, 1, (count, 1, 1, 3))
    images = np.where(rng.uniform(size=(count, 1, 1, 1)) < 0.5, tinted, images).astype(np.float32)
    labels = np.array([classes.index(scene.classes[0]) for scene in scenes])
    model = Classifier(len(classes))
    params = _train(model, images, labels, steps, 32)
    apply = jax.jit(lambda x: jnp.argmax(model.apply(params, x), axis=-1))
    return lambda pixels: _in_batches(apply, _halve(pixels.astype(np.float32) / 127.5 - 1))


def classifier_accuracy(
    classify, render: Renderer, classes: tuple[str, ...], count: int, side: int = 128
) -> float:
    """Share of rendered scenes of one object, of other seeds, that are classified correctly."""
    scenes = _scenes(render, _HELD_OUT_SEED, count, 1, side)
    found = classify(np.stack([scene.image for scene in scenes]))
    return float(np.mean(found == [classes.index(scene.classes[0]) for scene in scenes]))


def train_segmenter(
    render: Renderer,
    classes: tuple[str, ...],
    *,
    steps: int = 1500,
    count: int = 4000,
    side: int = 128,
    path: pathlib.Path | None = None,
) -> Callable[[np.ndarray, Sequence[tuple[str, ...]]], np.ndarray]:
    """Trains on rendered scenes; resumes from the checkpoint at `path`, if there is one.

    Returns:
        A function from uint8 images `[b, h, w, 3]` and the classes in each of them to uint8 label
        maps `[b, h, w]`: every pixel is given to the background or to one of its image's classes.
    """
    scenes = _scenes(render, _TRAINING_SEED, count, None, side)
    images = np.stack([scene.image for scene in scenes])
    samples = ArraySamples(images, np.stack([scene.label_map for scene in scenes]))
    config = dataclasses.replace(_JUDGE, num_labels=len(classes) + 1, crop=side, steps=steps)
    variables = train(config, samples, path)

    def segment(images: np.ndarray, names: Sequence[tuple[str, ...]]) -> np.ndarray:
        allowed = np.zeros((len(images), config.num_labels), bool)
        allowed[:, 0] = True
        for row, of_image in zip(allowed, names, strict=True):
            row[[classes.index(name) + 1 for name in of_image]] = True
        return predict(config, variables, images, allowed)

    return segment


def held_out_scenes(render: Renderer, count: int, side: int = 128) -> list[Scene]:
    """Scenes that no judge was trained on."""
    return _scenes(render, _HELD_OUT_SEED + 1_000_000, count, None, side)
