"""Generated pairs of the benchmark: each image is sampled once, with the masks of every method.

Prompts have the form of training captions; the classes come in turn. Attention is reduced to masks
at once, so that thousands of images take little disk space. A chunk of images is one file: a run
that was stopped continues with the next chunk, and chunks that lack a method are made again.
"""

import dataclasses
import os
import pathlib
import time
import zipfile
from collections.abc import Mapping

import numpy as np
from absl import logging

from experiments.stickers.scenes import BACKGROUNDS, LEADS
from experiments.stickers.sprites import CLASSES
from experiments.training.evaluation import classes_in_turn
from experiments.training.mask_scores import masks_of
from experiments.training.scenes import caption
from seediff_jax import ClassLists, SamplingConfig, generate
from seediff_jax.masks.config import IGNORE_INDEX, MaskConfig
from seediff_jax.masks.label_maps import class_scores
from seediff_jax.models.model import Model

_RNG_SEED, _TWO_OBJECTS, _NAMED_BACKGROUND = 20_270, 0.25, 0.7


@dataclasses.dataclass(frozen=True)
class PairSet:
    """Images with label maps of several methods.

    Attributes:
        images: uint8 `[n, h, w, 3]`.
        labels: method -> uint8 `[n, h, w]`, 0 background, k + 1 for class k of CLASSES, 255 ignore.
        scores: method -> float32 `[n]`, the lowest score of an image's classes, in [0, 1].
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]


def prompt_of(index: int) -> tuple[str, tuple[str, ...]]:
    """The prompt of image `index` and its classes; mostly one, the background often named."""
    rng = np.random.default_rng((13, index))
    names = classes_in_turn(CLASSES, index, 2 if rng.uniform() < _TWO_OBJECTS else 1)
    kind = str(rng.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values())))
    lead = str(rng.choice(LEADS))
    return caption(lead, names, kind if rng.uniform() < _NAMED_BACKGROUND else None), names


def class_ids(label_map: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Labels k + 1 of an image's k-th class -> labels of CLASSES; 0 and 255 stay."""
    table = np.zeros(256, np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[1 : len(names) + 1] = [CLASSES.index(name) + 1 for name in names]
    return table[label_map]


def load_pairs(
    model: Model,
    folder: pathlib.Path,
    count: int,
    methods: Mapping[str, MaskConfig],
    sampling: SamplingConfig,
    batch_size: int,
) -> PairSet:
    """Returns the first `count` pairs; generates those that the folder lacks.

    Args:
        model: the model.
        folder: of the chunks, for this model and these settings alone.
        count: number of pairs.
        methods: name -> how to make masks.
        sampling: settings of the images.
        batch_size: images per chunk.
    """
    chunks, begun = [], time.time()
    for start in range(0, count, batch_size):
        path = folder / f"{start:06d}.npz"
        chunk = _read_chunk(path, methods)
        if chunk is None:
            chunk = _make_chunk(model, range(start, start + batch_size), methods, sampling)
            folder.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(path.name + ".part.npz")
            np.savez_compressed(aside, **chunk)
            os.replace(aside, path)
            logging.info("%d of %d pairs, %.0f s", start + batch_size, count, time.time() - begun)
        chunks.append(chunk)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([chunk[name] for chunk in chunks])[:count]

    return PairSet(
        joined("images"),
        {name: joined(f"labels/{name}") for name in methods},
        {name: joined(f"scores/{name}") for name in methods},
    )


def _read_chunk(path: pathlib.Path, methods: Mapping[str, MaskConfig]):
    names = [f"{part}/{name}" for name in methods for part in ("labels", "scores")]
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            return {name: file[name] for name in ("images", *names)}
    except (FileNotFoundError, KeyError, zipfile.BadZipFile):
        return None


def _make_chunk(
    model: Model, indices: range, methods: Mapping[str, MaskConfig], sampling: SamplingConfig
) -> dict[str, np.ndarray]:
    prompts, names = zip(*map(prompt_of, indices), strict=True)
    # Always two columns of classes, so that all chunks are one program.
    lists = ClassLists([list(of_image) for of_image in names], num_classes=2)
    options = {"rng_seed": _RNG_SEED, "first_index": indices.start, "sampling": sampling}
    pairs = generate(model, prompts, lists, **options)
    chunk = {"images": np.asarray(pairs.images)}
    for method, config in methods.items():
        soft, labels = masks_of(pairs.images, pairs.attention_maps, config)
        scores = np.asarray(class_scores(soft, labels))
        chunk[f"labels/{method}"] = np.stack(
            [class_ids(label, of_image) for label, of_image in zip(labels, names, strict=True)]
        )
        lowest = [row[: len(of_image)].min() for row, of_image in zip(scores, names, strict=True)]
        chunk[f"scores/{method}"] = np.array(lowest, np.float32)
    return chunk
