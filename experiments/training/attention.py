"""Attention of one noised UNet call on scenes whose masks are exact."""

import dataclasses

import numpy as np

from experiments.training.scenes import Scene
from seediff_jax import SegmentConfig
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.models.capture import PRESETS
from seediff_jax.models.model import Model
from seediff_jax.pipeline.segment_images import attend_images


def capture_attention(
    model: Model, scenes: list[Scene], timestep: int, first_index: int = 0
) -> AttentionMaps:
    """Captures the attention of one UNet call on noised scenes; their captions are the prompts.

    Args:
        model: its capture config says which layers are captured.
        scenes: of one size.
        timestep: noise level.
        first_index: index of the first scene; the noise follows from the indices.
    """
    samples = attend_images(
        model,
        np.stack([scene.image for scene in scenes]),
        [scene.caption for scene in scenes],
        [scene.classes for scene in scenes],
        range(first_index, first_index + len(scenes)),
        config=SegmentConfig(timesteps=(timestep,), presence_draws=0),
    )
    return samples.attention_maps


def with_seeds(model: Model, preset: str | None) -> Model:
    """The model with seeds of another choice of layers, and its own layers of self-attention.

    Args:
        model: to change.
        preset: the choice, of `capture.PRESETS`, whose cross-attention makes the seeds; None for
            the model's own.
    """
    if preset is None:
        return model
    layers = PRESETS[preset](model.unet_config).cross_layers
    return model.with_config(capture=dataclasses.replace(model.capture, cross_layers=layers))


def attention_inside_and_outside(maps: AttentionMaps, scenes: list[Scene]) -> np.ndarray:
    """Mean attention of the first class, inside and outside of all objects.

    Returns:
        float `[scenes, layers, 2]`, head sums.
    """
    attention = np.asarray(maps.cross_attention)[..., 0]
    side = round(attention.shape[-1] ** 0.5)
    found = []
    for scene, layers in zip(scenes, attention, strict=True):
        blocks = (scene.label_map > 0).reshape(side, scene.label_map.shape[0] // side, side, -1)
        inside = blocks.mean(axis=(1, 3)).reshape(-1) > 0.5
        found.append(np.stack([layers[:, inside].mean(-1), layers[:, ~inside].mean(-1)], axis=-1))
    return np.stack(found)
