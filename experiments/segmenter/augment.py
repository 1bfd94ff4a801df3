"""Augmentation of an image together with its label map; on the host, in NumPy and Pillow.

Resize, crop, flip, photometric distortion: the order and ranges of mmsegmentation's VOC pipeline.
"""

import numpy as np
from PIL import Image

from experiments.segmenter.config import SegmenterConfig
from seediff_jax.masks.config import IGNORE_INDEX

_CROP_TRIES = 10


def augment(
    image: np.ndarray, labels: np.ndarray, config: SegmenterConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one training example from a sample.

    Args:
        image: uint8 `[h, w, 3]`.
        labels: uint8 `[h, w]`.
        config: sizes and ranges.
        rng: everything random follows from it.

    Returns:
        Normalised float32 `[crop, crop, 3]`, 0 (the mean colour) beyond the image, and uint8
        `[crop, crop]`, 255 there.
    """
    short = max(1, round(config.crop * rng.uniform(*config.scales)))
    image, labels = resize_pair(image, labels, short)
    window = _draw_window(labels, config, rng)
    image, labels = image[window], labels[window]
    if rng.uniform() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if config.photometric:
        image = distort(image, rng)
    pixels = normalise(image, config)
    if config.noise:
        deviation = 255 * rng.uniform(0, config.noise) / np.asarray(config.std, np.float32)
        pixels = pixels + deviation * rng.standard_normal(pixels.shape, np.float32)
    missing = [(0, config.crop - edge) for edge in labels.shape]
    pixels = np.pad(pixels, [*missing, (0, 0)])
    return pixels.astype(np.float32), np.pad(labels, missing, constant_values=IGNORE_INDEX)


def normalise(image: np.ndarray, config: SegmenterConfig) -> np.ndarray:
    """uint8 or float colours in 0..255 -> float32 in units of the recipe's deviation."""
    mean, std = (np.asarray(values, np.float32) for values in (config.mean, config.std))
    return (image.astype(np.float32) - mean) / std


def resize_pair(image: np.ndarray, labels: np.ndarray, short: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales the shorter side to `short` pixels: bilinear colours, nearest labels."""
    height, width = labels.shape
    if min(height, width) == short:
        return image, labels
    scale = short / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    ids = Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    return np.asarray(pixels), np.asarray(ids)


def _draw_window(
    labels: np.ndarray, config: SegmenterConfig, rng: np.random.Generator
) -> tuple[slice, slice]:
    """Draws a crop; redraws it a few times if one class covers too much of it."""
    crop = config.crop
    for _ in range(_CROP_TRIES):
        top, left = (int(rng.integers(0, max(0, edge - crop) + 1)) for edge in labels.shape)
        window = np.s_[top : top + crop, left : left + crop]
        if config.max_share >= 1:
            break
        counts = np.bincount(labels[window].ravel(), minlength=256)[:IGNORE_INDEX]
        if np.count_nonzero(counts) > 1 and counts.max() < config.max_share * counts.sum():
            break
    return window


def distort(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast, saturation and hue, each in half of the cases.

    Brightness by up to 32 of 255, contrast and saturation by a factor of 0.5 to 1.5, hue by up to a
    tenth of a turn.
    """
    pixels = image.astype(np.float32)
    late = rng.uniform() < 0.5
    if rng.uniform() < 0.5:
        pixels = pixels + np.float32(rng.uniform(-32, 32))
    contrast = np.float32(rng.uniform(0.5, 1.5) if rng.uniform() < 0.5 else 1)
    if not late:
        pixels = pixels * contrast
    saturation = rng.uniform(0.5, 1.5) if rng.uniform() < 0.5 else 1.0
    hue = rng.uniform(-0.1, 0.1) if rng.uniform() < 0.5 else 0.0
    if saturation != 1 or hue:
        pixels = _shift_hsv(pixels, hue, saturation)
    return np.clip(pixels * contrast if late else pixels, 0, 255)


def _shift_hsv(pixels: np.ndarray, hue: float, saturation: float) -> np.ndarray:
    colours = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert("HSV")
    hsv = np.asarray(colours).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + 256 * hue) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    changed = Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB")
    return np.asarray(changed).astype(np.float32)
