"""Predicts label maps with a trained segmenter, and measures them."""

import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.segmenter.augment import normalise
from experiments.segmenter.config import SegmenterConfig
from experiments.segmenter.data import Samples
from experiments.segmenter.trainer import Variables, make_network, to_compute_dtype
from seediff_jax.dataset.iou import sum_matrices

_BATCH = 16


@functools.lru_cache(maxsize=2)
def _logits_of(config: SegmenterConfig):
    network = make_network(config)

    def apply(variables, images):
        params, images = to_compute_dtype(config, (variables["params"], images))
        return network.apply({**variables, "params": params}, images)[0]

    return jax.jit(apply)


def predict(
    config: SegmenterConfig,
    variables: Variables,
    images: np.ndarray,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Predicts the labels of images of one size.

    Args:
        config: the recipe.
        variables: averaged weights, from `train`.
        images: uint8 `[b, h, w, 3]`.
        allowed: bool `[b, labels]`; labels that an image may have, None for all.

    Returns:
        uint8 `[b, h, w]`.
    """
    parts = []
    for start in range(0, len(images), _BATCH):
        some = slice(start, start + _BATCH)
        logits = predict_logits(config, variables, images[some])
        if allowed is not None:
            logits = np.where(allowed[some, None, None], logits, -np.inf)
        parts.append(np.argmax(logits, axis=-1).astype(np.uint8))
    return np.concatenate(parts)


def predict_logits(config: SegmenterConfig, variables: Variables, images: np.ndarray) -> np.ndarray:
    """Logits, float32 `[b, h, w, labels]`, at the size of at most 16 images."""
    b, height, width, _ = images.shape
    scale = config.test_side / min(height, width) if config.test_side else 1
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    pixels = normalise(images, config)
    if size != (height, width):
        pixels = np.asarray(jax.image.resize(pixels, (b, *size, 3), "bilinear"))
    multiple = make_network(config).multiple
    # Pads with the mean colour to the next multiple; a batch of one size compiles once.
    padding = [(0, -edge % multiple) for edge in size]
    rest = _BATCH - b if len(images) > 1 else 0
    padded = np.pad(pixels, [(0, rest), *padding, (0, 0)])
    logits = _logits_of(config)(variables, jnp.asarray(padded))[:b, : size[0], : size[1]]
    if size != (height, width):
        logits = jax.image.resize(logits, (b, height, width, logits.shape[-1]), "bilinear")
    return np.asarray(logits)


def evaluate(config: SegmenterConfig, variables: Variables, samples: Samples) -> np.ndarray:
    """The confusion matrix of a whole set, int64 `[labels, labels]`; sizes may differ."""
    pairs = (
        (truths, predict(config, variables, images))
        for _, images, truths in batches_of_one_size(samples, range(len(samples)))
    )
    return sum_matrices(pairs, config.num_labels)


def batches_of_one_size(
    samples: Samples, indices: Iterable[int]
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields indices, images and label maps of neighbours that have the same size."""
    batch: list[tuple[int, np.ndarray, np.ndarray]] = []
    for index in indices:
        image, truth = samples.read(index)
        if batch and (image.shape != batch[0][1].shape or len(batch) == _BATCH):
            yield _stack(batch)
            batch = []
        batch.append((index, image, truth))
    if batch:
        yield _stack(batch)


def _stack(batch: list[tuple[int, np.ndarray, np.ndarray]]):
    indices, images, truths = zip(*batch, strict=True)
    return list(indices), np.stack(images), np.stack(truths)
