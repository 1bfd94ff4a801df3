"""Pictures for people: class colours, overlays, contact sheets and the strip that shows the method.

Drawn with NumPy and Pillow alone, from finished uint8 images and label maps; nothing here feeds
back into a mask.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seediff_jax.arrays import Bool, Float, UInt8, typechecked
from seediff_jax.image_ops import grid_size

MARGIN = 12
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)
# Black, violet, red, orange, pale yellow: darker always means smaller, also when printed grey.
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])


def make_palette() -> np.ndarray:
    """Builds the colour map of the PASCAL VOC label files: uint8 `[256, 3]`, read-only.

    The bits of the class id are dealt to red, green and blue in turn, each colour filling from its
    highest bit: 0 is black, 1 dark red, 255 (ignore) is (224, 224, 192).
    """
    ids = np.arange(256)
    bits = [(ids >> k) & 1 for k in range(8)]
    channels = [
        sum(bits[3 * k + c] << (7 - k) for k in range(3) if 3 * k + c < 8) for c in range(3)
    ]
    palette = np.stack(channels, axis=-1).astype(np.uint8)
    palette.setflags(write=False)
    return palette


PALETTE = make_palette()
"""uint8 `[256, 3]`: the colour of every class id in masks, overlays and sheets."""


@typechecked
def overlay(image: UInt8[np.ndarray, "h w 3"], label_map: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Lays the class colours half transparent over the image; their rims are opaque.

    Args:
        image: colours in 0..255.
        label_map: class ids; 0 leaves the image as it is, 255 (ignore) is drawn pale.

    Returns:
        uint8 `[h, w, 3]`.
    """
    framed = np.pad(label_map, 1, mode="edge")
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    rim = np.any([other != label_map for other in neighbours], axis=0)
    pixels = image.reshape(-1, 3).copy()
    labelled = np.flatnonzero(label_map)  # of a picture the smaller part, in general
    colour = PALETTE[label_map.ravel()[labelled]]
    blend = ((pixels[labelled].astype(np.uint16) + colour) // 2).astype(np.uint8)
    pixels[labelled] = np.where(rim.ravel()[labelled, None], colour, blend)
    return pixels.reshape(image.shape)


def contact_sheet(
    rows: Sequence[tuple[np.ndarray, np.ndarray, str]],
    *,
    title: str = "",
    class_names: Mapping[int, str] | None = None,
    columns: int = 3,
    tile: int = 160,
) -> Image.Image:
    """Draws samples in a grid: image, mask in colour and overlay side by side, caption below.

    Args:
        rows: `(image uint8 [h, w, 3], label_map uint8 [h, w], caption)` a sample; a caption may
            have several lines, a line that is too long is cut with an ellipsis.
        title: line above the grid; no line when empty.
        class_names: id -> name; each class seen in a mask is then named beside its colour.
        columns: samples a row of the grid.
        tile: longer edge of a picture in pixels.

    Raises:
        ValueError: without a sample there is nothing to draw.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one sample, got none")
    cells = [_sample_cell(*row, class_names=class_names or {}, tile=tile) for row in rows]
    columns = min(columns, len(cells))
    width = max(cell.width for cell in cells)
    lines = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    font = ImageFont.load_default(22)
    top = MARGIN + (22 + MARGIN if title else 0)
    size = (MARGIN + columns * (width + MARGIN), top + sum(heights) + MARGIN * len(lines))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN, MARGIN), _cut(title, font, size[0] - 2 * MARGIN), INK, font)
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (MARGIN + column * (width + MARGIN), top))
        top += height + MARGIN
    return sheet


@typechecked
def method_strip(
    image: UInt8[np.ndarray, "h w 3"],
    seeds: Bool[np.ndarray, " n"],
    expansion: Float[np.ndarray, "level_h level_w"],
    label_map: UInt8[np.ndarray, "h w"],
    *,
    tile: int = 256,
) -> Image.Image:
    """Draws the method on one class in four named pictures: image, seeds, expansion, mask.

    Args:
        image: colours in 0..255.
        seeds: locations of the seed level (row major), shown on the dimmed image.
        expansion: soft mask in [0, 1] at any level's size, or of the image's; shown as heat.
        label_map: class ids of the finished mask, shown as overlay.
        tile: longer edge of a picture in pixels.

    Raises:
        ValueError: the seeds do not fill a grid of the image's proportions.
    """
    grid = seeds.reshape(grid_size(seeds.size, image.shape[:2]))
    image_size = image.shape[1::-1]
    marks = Image.fromarray(grid).resize(image_size, Image.Resampling.NEAREST)
    dimmed = (image // 3).astype(np.uint8)
    seeded = np.where(np.asarray(marks)[..., None], np.array([255, 210, 0], np.uint8), dimmed)
    field = Image.fromarray(expansion.astype(np.float32))
    heat = _heat(np.asarray(field.resize(image_size, Image.Resampling.BICUBIC)))
    named = {
        "image": image,
        "seeds": seeded,
        "expansion": heat,
        "mask": overlay(image, label_map),
    }
    tiles = [_fit(picture, tile) for picture in named.values()]
    font = ImageFont.load_default(max(14, tile // 14))
    width, height = tiles[0].size
    strip = Image.new("RGB", (4 * width + 3 * MARGIN, height + 2 * int(font.size)), PAPER)
    draw = ImageDraw.Draw(strip)
    for k, (name, picture) in enumerate(zip(named, tiles, strict=True)):
        left = k * (width + MARGIN)
        strip.paste(picture, (left, 0))
        draw.text((left + width // 2, height + int(font.size)), name, INK, font, anchor="mm")
    return strip


def _heat(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] as colours, uint8 `[h, w, 3]`; values beyond take the end colours."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, stops, HEAT[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _fit(picture: np.ndarray, tile: int) -> Image.Image:
    """Scales so that the longer edge is `tile`; enlarges without blur, so pixels stay honest."""
    height, width = picture.shape[:2]
    factor = tile / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size, method)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shortens a line of text to a width in pixels, ending it with an ellipsis where cut."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _sample_cell(
    image: np.ndarray,
    label_map: np.ndarray,
    caption: str,
    *,
    class_names: Mapping[int, str],
    tile: int,
) -> Image.Image:
    """One sample of the contact sheet: three pictures, caption, colour key."""
    pictures = (image, PALETTE[label_map], overlay(image, label_map))
    tiles = [_fit(picture, tile) for picture in pictures]
    font = ImageFont.load_default(15)
    width, height = 3 * tiles[0].width + 2 * 4, tiles[0].height
    captions = caption.splitlines()
    seen = [k for k in np.unique(label_map).tolist() if k in class_names and k != 0]
    line = 20
    cell = Image.new("RGB", (width, height + 4 + line * (len(captions) + bool(seen))), PAPER)
    draw = ImageDraw.Draw(cell)
    for k, picture in enumerate(tiles):
        cell.paste(picture, (k * (picture.width + 4), 0))
    top = height + 4
    for k, text in enumerate(captions):
        draw.text((0, top), _cut(text, font, width), INK if k == 0 else GREY, font)
        top += line
    left = 0
    for class_id in seen:
        draw.rectangle((left, top + 2, left + 13, top + 15), tuple(PALETTE[class_id].tolist()))
        draw.text((left + 18, top), class_names[class_id], INK, font)
        left += 18 + int(font.getlength(class_names[class_id])) + MARGIN
    return cell
