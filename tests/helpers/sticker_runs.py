"""Drawings and models for tests of the embedded model "stickers": small, and made here."""

import colorsys
import dataclasses

import jax.numpy as jnp
import numpy as np

from experiments.stickers.recipe import STUDY
from experiments.stickers.sprites import CLASSES, CODE_POINTS, SETS
from experiments.training.networks import unet_json, vae_json
from experiments.training.study import make_config
from seediff_jax import AttentionMaps, Pairs
from seediff_jax.checkpoints.load import make_model
from tests.helpers.random_models import random_params

SIDE = 32


def class_colour(name):
    """The colour of all drawings of a class."""
    hue = CLASSES.index(name) / len(CLASSES)
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 1, 0.9))


def write_sprites(path):
    """Writes one square drawing per code point and set, in the colour of its class."""
    drawings = {}
    for name, codes in CODE_POINTS.items():
        drawing = np.full((40, 40, 4), (*class_colour(name), 255), np.uint8)
        drawings |= {f"{s}/{name}/{code}": drawing for s in SETS for code in codes.split()}
    np.savez(path, **drawings)
    return path


def make_small_model(folder):
    """Makes a model of the recipe with random weights, few channels and images of SIDE pixels."""
    widths = {"block_out_channels": [8, 8, 8], "attention_head_dim": 1, "sample_size": 8}
    study = dataclasses.replace(
        STUDY,
        unet_json=unet_json(4, (32, 64, 32)) | widths,
        vae_json=vae_json(4) | {"block_out_channels": [8, 8, 8], "sample_size": SIDE},
    )
    config = make_config(study, folder)
    return make_model(config, random_params(config), model_id="small")


def draw_pairs(render, prompts, names):
    """What a perfect model of two levels would return: scenes, and attention on their objects.

    Args:
        render: `(index of the prompt, its classes)` -> Scene of SIDE pixels.
        prompts: texts.
        names: the classes of each prompt.
    """
    scenes = [render(index, tuple(of_image)) for index, of_image in enumerate(names)]
    most = max(map(len, names))
    cross, self_attention = [], {4: [], 8: []}
    for scene, of_image in zip(scenes, names, strict=True):
        ids = [CLASSES.index(name) + 1 for name in of_image]
        columns = [_shrink(scene.label_map == k, 4).ravel() for k in ids]
        columns += [np.zeros(16, np.float32)] * (most - len(ids))
        cross.append(np.stack(columns, axis=-1)[None])
        for side, maps in self_attention.items():
            parts = np.stack([_shrink(scene.label_map == k, side).ravel() for k in (0, *ids)])
            alike = parts.T @ parts + 1e-3
            maps.append((alike / alike.sum(axis=1, keepdims=True)).astype(np.float32))
    maps = AttentionMaps(
        jnp.asarray(np.stack(cross), jnp.float32),
        {side: jnp.asarray(np.stack(values)) for side, values in self_attention.items()},
        evidence=jnp.ones((len(cross), 8, 8, most, 2), jnp.float32),
    )
    images = jnp.asarray(np.stack([scene.image for scene in scenes]))
    return Pairs(images, None, None, maps, None, None)


def _shrink(inside, side):
    blocks = inside.reshape(side, SIDE // side, side, SIDE // side)
    return blocks.mean(axis=(1, 3), dtype=np.float32)
