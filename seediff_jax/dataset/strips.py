"""Strips: a row of captioned pictures with the stages of the mask of a class."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seediff_jax.array_typing import UInt8, typechecked
from seediff_jax.dataset.pictures import GREY, INK, MARGIN, PAPER, contour, fit, heat, overlay
from seediff_jax.masks.config import BACKGROUND
from seediff_jax.masks.image_ops import grid_size


@dataclasses.dataclass(frozen=True, eq=False)
class ClassStages:
    """How the mask of one class came about.

    Attributes:
        name: of the class.
        label: of the class in the label map.
        seed_map: float32 `[n0]` in [0, 1], row by row.
        seeds: bool `[n0]`.
        levels: soft masks in [0, 1], coarse to fine: float32 `[h, w]` each, of any size.

    Raises:
        ValueError: when pictures are made, if the seeds do not fill a grid of the image's
            proportions.
    """

    name: str
    label: int
    seed_map: np.ndarray
    seeds: np.ndarray
    levels: Sequence[np.ndarray]


def stage_pictures(
    image: UInt8[np.ndarray, "h w 3"], label_map: UInt8[np.ndarray, "h w"], stages: ClassStages
) -> list[tuple[str, np.ndarray]]:
    """Draws the stages of one class in the size of the image.

    Returns:
        Caption and uint8 `[h, w, 3]` of: the image, the seed map with a line around the seeds, the
        soft mask of each level, and the mask of the class over the image.
    """
    size = image.shape[1::-1]
    height, width = grid_size(stages.seeds.size, image.shape[:2])
    nearest = Image.Resampling.NEAREST
    marks = Image.fromarray(stages.seeds.reshape(height, width)).resize(size, nearest)
    seeded = np.array(_scaled(stages.seed_map.reshape(height, width), size, nearest))
    light, dark = contour(np.asarray(marks).astype(np.uint8))
    seeded[light], seeded[dark] = (255, 255, 255), (0, 0, 0)
    count = int(stages.seeds.sum())
    pictures = [("image", image), (f"seeds: {count} of {stages.seeds.size}", seeded)]
    for level in stages.levels:
        rows, columns = level.shape
        caption = "soft mask" if (columns, rows) == size else f"level {columns} x {rows}"
        pictures.append((caption, _scaled(level, size, Image.Resampling.BICUBIC)))
    own = np.where(label_map == stages.label, label_map, np.uint8(BACKGROUND))
    return [*pictures, ("mask", overlay(image, own))]


def class_strips(
    image: np.ndarray, label_map: np.ndarray, stages: Sequence[ClassStages]
) -> Image.Image:
    """Draws the strips of several classes of an image, one below the other; see `method_strip`."""
    strips = [method_strip(image, label_map, each) for each in stages]
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


@typechecked
def method_strip(
    image: UInt8[np.ndarray, "h w 3"],
    label_map: UInt8[np.ndarray, "h w"],
    stages: ClassStages,
    *,
    tile: int = 256,
) -> Image.Image:
    """Draws the pictures of `stage_pictures` in a row, with the class's name and a colour bar.

    Args:
        image: colours in 0..255.
        label_map: class ids of the finished mask.
        stages: of the class.
        tile: longer edge of a picture in pixels.
    """
    named = stage_pictures(image, label_map, stages)
    tiles = [fit(picture, tile) for _, picture in named]
    font = ImageFont.load_default(max(14, tile // 14))
    line = 2 * int(font.size)
    width, height = tiles[0].size
    bar = MARGIN + int(font.getlength("0.5")) + MARGIN
    total = len(tiles) * (width + MARGIN) + MARGIN + bar
    strip = Image.new("RGB", (total, line + height + line), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((0, line // 2), stages.name, INK, font, anchor="lm")
    for k, ((caption, _), picture) in enumerate(zip(named, tiles, strict=True)):
        left = k * (width + MARGIN)
        strip.paste(picture, (left, line))
        middle = (left + width // 2, line + height + line // 2)
        draw.text(middle, caption, INK, font, anchor="mm")
    left = len(tiles) * (width + MARGIN)
    ramp = heat(np.linspace(1, 0, height)[:, None].repeat(MARGIN, axis=1))
    strip.paste(Image.fromarray(ramp), (left, line))
    for text, place, anchor in (("1", 0, "la"), ("0.5", 0.5, "lm"), ("0", 1, "ld")):
        draw.text((left + MARGIN + 4, line + place * height), text, GREY, font, anchor=anchor)
    return strip


def _scaled(
    values: np.ndarray, size: tuple[int, int], method: Image.Resampling
) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1] as heat in the size of an image (width, height)."""
    field = Image.fromarray(values.astype(np.float32))
    return heat(np.asarray(field.resize(size, method)))
