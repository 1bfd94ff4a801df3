"""Looks for classes in scenes and in generated images: those that an image shows, and others.

Scenes have exact truth, and their attention is that of one noised UNet call. Classes are looked for
in four ways:

    named     its caption names the object; three absent classes are looked for without being named
    half      its caption names one of two objects; the other and two absent ones are not named
    listed    a caption that lists the object and one absent class, in random order
    wrong     its caption names one absent class instead of the object

A generated image has the attention of its own sampling run, and need not show what its prompt
names. Its truth is read by a judge:

    generated its prompt names two classes; two others are looked for without being named
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.stickers.sprites import CLASSES
from experiments.training.evaluation import classes_in_turn
from experiments.training.scenes import Renderer, caption
from seediff_jax import AttentionMaps, SamplingConfig, SegmentConfig, generate
from seediff_jax.models.model import Model
from seediff_jax.pipeline.segment_images import attend_images
from seediff_jax.sampling.config import PRESENCE_DRAWS
from seediff_jax.sampling.inputs import ClassLists, image_prompts

FIRST_SCENE = 98_000_000
SETS = ("named", "half", "listed", "wrong")
GENERATED = "generated"
SMALLEST = 0.01
"""Part of an image that a judge must give to a class, for the image to show it."""

_NUM_CLASSES, _RNG_SEED = 4, 20_263
_CALLS = SegmentConfig(timesteps=(200,), presence_draws=PRESENCE_DRAWS)
_LISTED_CALLS = SegmentConfig(presence_draws=PRESENCE_DRAWS)

Judge = Callable[[np.ndarray], np.ndarray]
"""uint8 images `[b, h, w, 3]` -> label maps uint8 `[b, h, w]`, k + 1 for class k of CLASSES."""


class Looked(NamedTuple):
    """A class that was looked for in an image.

    Attributes:
        of: the set of the image.
        image: uint8 `[H, W, 3]`.
        cross_attention: float32 `[layers, n0]` of the class.
        self_attention: of the image, side -> float32 `[n, n]`.
        evidence: float32 `[h, w, 2]` of the class, see `class_evidence`.
        truth: bool `[H, W]`, where the image shows the class.
        is_named: whether the prompt names it.
    """

    of: str
    image: np.ndarray
    cross_attention: np.ndarray
    self_attention: dict[int, np.ndarray]
    evidence: np.ndarray
    truth: np.ndarray
    is_named: bool


def look(
    model: Model, render: Renderer, of: str, seeds: Sequence[int], rng: np.random.Generator
) -> list[Looked]:
    """Looks for classes in a batch of scenes of one set."""
    objects = 2 if of == "half" else 1
    side = model.config.image_side
    scenes = [render(seed, side=side, num_objects=objects) for seed in seeds]
    shown, unnamed, config = [scene.classes for scene in scenes], [()] * len(scenes), _CALLS
    if of == "named":
        named, prompts = shown, [scene.caption for scene in scenes]
        unnamed = [_absent(names, 3, rng) for names in shown]
    elif of == "half":
        named = [names[:1] for names in shown]
        unnamed = [(*names[1:], *_absent(names, 2, rng)) for names in shown]
        prompts = [caption("a photo of", names) for names in named]
    elif of == "listed":
        both = [(*names, *_absent(names, 1, rng)) for names in shown]
        named = [tuple(names[k] for k in rng.permutation(2)) for names in both]
        config, prompts = _LISTED_CALLS, image_prompts(named, _LISTED_CALLS.template)
    else:
        named = [_absent(names, 1, rng) for names in shown]
        prompts = [caption("a photo of", names) for names in named]
    lists = ClassLists(named, unnamed if any(unnamed) else None, num_classes=_NUM_CLASSES)
    images = np.stack([scene.image for scene in scenes])
    indices = [seed - FIRST_SCENE for seed in seeds]
    maps = attend_images(model, images, prompts, lists, indices, config=config).attention_maps
    return _each_class(of, images, maps, [scene.label_map for scene in scenes], named, unnamed)


def look_generated(
    model: Model, indices: range, rng: np.random.Generator, judge: Judge, sampling: SamplingConfig
) -> list[Looked]:
    """Generates a batch of images and looks for classes in them."""
    named = [classes_in_turn(CLASSES, index, 2) for index in indices]
    unnamed = [_absent(names, 2, rng) for names in named]
    pairs = generate(
        model,
        [caption("a photo of", names) for names in named],
        ClassLists(named, unnamed, num_classes=_NUM_CLASSES),
        rng_seed=_RNG_SEED,
        first_index=indices.start,
        sampling=sampling,
    )
    images = np.asarray(pairs.images)
    truths = without_specks(judge(images))
    return _each_class(GENERATED, images, pairs.attention_maps, truths, named, unnamed)


def without_specks(label_maps: np.ndarray) -> np.ndarray:
    """Label maps `[b, h, w]` without the classes that have less than SMALLEST of an image."""
    found = np.zeros_like(label_maps)
    for label_map, kept in zip(label_maps, found, strict=True):
        labels, counts = np.unique(label_map, return_counts=True)
        shown = np.isin(label_map, labels[counts >= SMALLEST * label_map.size])
        kept[shown] = label_map[shown]
    return found


def _each_class(
    of: str,
    images: np.ndarray,
    maps: AttentionMaps,
    truths: Sequence[np.ndarray],
    named: Sequence[tuple[str, ...]],
    unnamed: Sequence[tuple[str, ...]],
) -> list[Looked]:
    maps = jax.tree.map(np.asarray, maps)
    return [
        Looked(
            of,
            image,
            maps.cross_attention[i, ..., k],
            {level: maps.self_attention[level][i] for level in maps.sides},
            maps.evidence[i, :, :, k],
            truth == CLASSES.index(name) + 1,
            k < len(named[i]),
        )
        for i, (image, truth) in enumerate(zip(images, truths, strict=True))
        for k, name in enumerate((*named[i], *unnamed[i]))
    ]


def _absent(shown: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    others = [name for name in CLASSES if name not in shown]
    return tuple(others[k] for k in rng.permutation(len(others))[:count])
