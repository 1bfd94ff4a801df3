"""Images of any size for networks of one size: cuts images into crops, joins the masks of crops.

    image -> the whole image, and tiles where it is large -> crops of the networks' size
    soft masks of the crops -> soft masks of the image -> label map

Uses only NumPy and Pillow, because compiling a program for each image size would take longer.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from seediff_jax.array_typing import Float, UInt8, typechecked
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX, MaskConfig
from seediff_jax.sampling.segment_config import SegmentConfig


class Box(NamedTuple):
    """Part of an image, from `top`, `left` up to before `bottom`, `right`."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Indices of its rows and of its columns."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def make_boxes(size: tuple[int, int], config: SegmentConfig) -> list[Box]:
    """Lists the crops of an image of this height and width: first all of it, then its tiles.

    An image of which no edge is above `config.tile_side` has no tiles.
    """
    boxes = [Box(0, 0, *size)]
    if config.tile_side is None or max(size) <= config.tile_side:
        return boxes
    rows, columns = (_intervals(edge, config.tile_side, config.tile_overlap) for edge in size)
    for (top, bottom), (left, right) in itertools.product(rows, columns):
        boxes.append(Box(top, left, bottom, right))
    return boxes


def _intervals(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    """Intervals of `side` that cover a length evenly; the length itself if it is not longer."""
    if length <= side:
        return [(0, length)]
    count = 1 + math.ceil((length - side) / (side * (1 - overlap)))
    starts = np.rint(np.linspace(0, length - side, count)).astype(int).tolist()
    return [(start, start + side) for start in starts]


@typechecked
def cut(
    image: UInt8[np.ndarray, "H W 3"], box: Box, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Cuts a box out of an image and resizes it to a height and width, smoothed when it shrinks."""
    crop = image[box.slices]
    if crop.shape[:2] == size:
        return crop
    picture = Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))


@typechecked
def join(
    soft_masks: Float[np.ndarray, "t c h w"], boxes: Sequence[Box]
) -> Float[np.ndarray, "c H W"]:
    """Joins soft masks of an image and its tiles: the image sets the range, the tiles the shape.

    A soft mask is stretched to [0, 1], also in a tile without the object. So a tile's mask is
    stretched to the range that the mask of the whole image has there. Where tiles overlap, the mean
    is weighted by the distance to the edges of the tiles.

    Args:
        soft_masks: in [0, 1], of the crops, of c classes.
        boxes: where they lie, from `make_boxes`; `[t]`.
    """
    whole = _resize(soft_masks[0], boxes[0])
    if len(boxes) == 1:
        return whole
    total, weights = np.zeros_like(whole), np.zeros(whole.shape[1:], np.float32)
    for tile, box in zip(soft_masks[1:], boxes[1:], strict=True):
        inside = (..., *box.slices)
        low = whole[inside].min(axis=(1, 2), keepdims=True)
        high = whole[inside].max(axis=(1, 2), keepdims=True)
        weight = np.outer(*(_ramp(s.stop - s.start) for s in box.slices))
        total[inside] += weight * (low + (high - low) * _resize(tile, box))
        weights[inside] += weight
    return total / weights


def _resize(fields: np.ndarray, box: Box) -> np.ndarray:
    """Resizes float32 `[c, h, w]` to the size of a box by interpolation."""
    size = (box.right - box.left, box.bottom - box.top)
    if fields.shape[1:] == size[::-1]:
        return fields
    resized = [Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in fields]
    return np.stack([np.asarray(field) for field in resized])


def _ramp(length: int) -> np.ndarray:
    """Distance of each pixel to the nearer end, float32 `[length]`."""
    places = np.arange(length, dtype=np.float32) + 0.5
    return np.minimum(places, length - places)


@typechecked
def label_pixels(
    soft_masks: Float[np.ndarray, "c H W"], config: MaskConfig
) -> UInt8[np.ndarray, "H W"]:
    """`label_map` with the thresholds of a config, in NumPy."""
    threshold, uncertain, refined, _ = config.thresholds
    last = np.float32(refined if config.refine_iterations else threshold)
    largest = soft_masks.max(axis=0)
    labels = np.where(largest > last, soft_masks.argmax(axis=0) + 1, BACKGROUND)
    is_ignored = (largest >= np.float32(uncertain)) & (largest < last)
    return np.where(is_ignored, IGNORE_INDEX, labels).astype(np.uint8)


@typechecked
def mean_scores(
    soft_masks: Float[np.ndarray, "c H W"], labels: UInt8[np.ndarray, "H W"]
) -> Float[np.ndarray, " c"]:
    """`class_scores` of one image, in NumPy."""
    own = labels == np.arange(1, len(soft_masks) + 1)[:, None, None]
    count = np.maximum(own.sum(axis=(1, 2)), 1)
    return (np.where(own, soft_masks, 0).sum(axis=(1, 2)) / count).astype(np.float32)
