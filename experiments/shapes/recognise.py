"""A small classifier of rendered scenes: is the class that was asked for in the image?"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shapes.render import render_scene
from seediff_jax.prompts import SHAPES_CLASSES


class Classifier(nn.Module):
    """Four strided convolutions and a mean over the image, on 64 x 64 pixels."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """`[b, 64, 64, 3]` in [-1, 1] -> logits `[b, classes]`."""
        x = images
        for width in (16, 32, 64, 64):
            x = nn.relu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), strides=2)(x)))
        return nn.Dense(len(SHAPES_CLASSES))(x.mean(axis=(1, 2)))


def _single_objects(first_seed: int, count: int, rng: np.random.Generator | None):
    """Scenes of one object at 64 pixels; with `rng`, turned grey and re-tinted half of the time.

    Every class has its own hue; without the re-tinting the classifier would only learn the hues.
    """
    scenes = [render_scene(first_seed + i, side=64, num_objects=1) for i in range(count)]
    images = np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1
    if rng is not None:
        grey = images.mean(axis=-1, keepdims=True) * rng.uniform(0.5, 1, (count, 1, 1, 3))
        images = np.where(rng.uniform(size=(count, 1, 1, 1)) < 0.5, grey, images)
    labels = [SHAPES_CLASSES.index(scene.classes[0]) for scene in scenes]
    return images.astype(np.float32), np.array(labels)


def train_classifier(*, steps: int = 600, batch_size: int = 32):
    """Trains on rendered scenes of their own seeds.

    Returns:
        A function from uint8 images `[b, 128, 128, 3]` to class indices `[b]`, and its accuracy on
        256 rendered scenes that it was not trained on.
    """
    images, labels = _single_objects(50_000_000, 6000, np.random.default_rng(5))
    model, optimizer = Classifier(), optax.adamw(optax.cosine_decay_schedule(2e-3, steps))
    params = model.init(jax.random.key(0), jnp.asarray(images[:1]))

    def loss(params, images, labels):
        logits = model.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, moments, images, labels):
        updates, moments = optimizer.update(jax.grad(loss)(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    moments = optimizer.init(params)
    for step in range(steps):
        chosen = np.random.default_rng((6, step)).integers(0, len(images), batch_size)
        params, moments = train_step(params, moments, images[chosen], labels[chosen])
    apply = jax.jit(model.apply)

    def recognise(pixels: np.ndarray) -> np.ndarray:
        small = pixels.reshape(len(pixels), 64, 2, 64, 2, 3).mean(axis=(2, 4), dtype=np.float32)
        return np.argmax(np.asarray(apply(params, small / 127.5 - 1)), axis=-1)

    held_out, truth = _single_objects(60_000_000, 256, None)
    found = np.argmax(np.asarray(apply(params, held_out)), axis=-1)
    return recognise, float(np.mean(found == truth))
