"""Pictures for people: class colours, overlays and contact sheets.

Drawn with NumPy and Pillow alone, from finished uint8 images and label maps; nothing here feeds
back into a mask.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seediff_jax.array_typing import Bool, Float, UInt8, typechecked
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX

MARGIN, LINE = 12, 20
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)
LIGHT, DARK = (255, 255, 255), (0, 0, 0)
"""The two lines around a class."""
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
def contour(
    label_map: UInt8[np.ndarray, "h w"],
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Finds both sides of the lines between classes, to draw in two tones.

    A light and a dark line side by side can be seen on a picture of any colour.

    Returns:
        The pixels with a neighbour of a smaller id, for the light line; and those that only have
        neighbours of larger ids, for the dark one.
    """
    framed = np.pad(label_map, 1, mode="edge")
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    light = np.any([other < label_map for other in neighbours], axis=0)
    dark = np.any([other > label_map for other in neighbours], axis=0) & ~light
    return light, dark


@typechecked
def contrast_palette(
    pixels: UInt8[np.ndarray, "n 3"], ids: UInt8[np.ndarray, " n"]
) -> UInt8[np.ndarray, "256 3"]:
    """Chooses the shade of each class's colour that differs most from the pixels that it covers.

    The shades are the colour of PALETTE, and its mixtures with white and with black half and half,
    so that a class keeps its hue. 255 (ignore) keeps its colour.

    Args:
        pixels: colours of the covered pixels.
        ids: class of each of them.
    """
    sums = np.stack([np.bincount(ids, pixels[:, c], 256) for c in range(3)], axis=1)
    means = sums / np.maximum(np.bincount(ids, minlength=256), 1)[:, None]
    own = PALETTE.astype(np.int64)
    shades = np.stack([own, (own + LIGHT) // 2, own // 2])
    best = np.argmax(((shades - means) ** 2).sum(axis=-1), axis=0)
    chosen = shades[best, np.arange(256)].astype(np.uint8)
    chosen[IGNORE_INDEX] = PALETTE[IGNORE_INDEX]
    return chosen


@typechecked
def overlay(image: UInt8[np.ndarray, "h w 3"], label_map: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Lays the class colours half transparent over the image, with a light and a dark line around.

    The shade of each colour is chosen for contrast, see `contrast_palette`.

    Args:
        image: colours in 0..255.
        label_map: class ids; 0 leaves the image as it is, 255 (ignore) is drawn pale.

    Returns:
        uint8 `[h, w, 3]`.
    """
    pixels = image.reshape(-1, 3).copy()
    labels = label_map.ravel()
    labelled = np.flatnonzero(labels)  # usually the smaller part of a picture
    old, ids = pixels.take(labelled, 0), labels.take(labelled)
    colour = contrast_palette(old, ids).take(ids, 0)
    pixels[labelled] = (old & colour) + ((old ^ colour) >> 1)  # their mean, rounded down
    light, dark = contour(label_map)
    pixels[np.flatnonzero(light)], pixels[np.flatnonzero(dark)] = LIGHT, DARK
    return pixels.reshape(image.shape)


def contact_sheet(
    rows: Sequence[tuple[Any, ...]],
    *,
    title: str = "",
    class_names: Mapping[int, str] | None = None,
    headings: Sequence[str] = (),
    columns: int = 3,
    tile: int = 160,
) -> Image.Image:
    """Draws samples in a grid: image, mask in colour and overlay side by side, caption below.

    Args:
        rows: `(image uint8 [h, w, 3], label_map uint8 [h, w], caption)` per sample; a caption may
            have several lines, and a line that is too long is broken. A fourth element is a
            list of more label maps, whose overlays follow.
        title: line above the grid; no line when empty.
        class_names: id -> name; each class in a mask is then named next to its colour, and
            255 as "ignore".
        headings: names of the pictures of a sample, which are then above each of them.
        columns: samples per row of the grid.
        tile: longer edge of a picture in pixels.

    Raises:
        ValueError: without a sample there is nothing to draw.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one sample, got none")
    options = {"class_names": class_names or {}, "headings": headings, "tile": tile}
    cells = [_sample_cell(*row, **options) for row in rows]
    columns = min(columns, len(cells))
    width = max(cell.width for cell in cells)
    lines = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in line) for line in lines]
    font = ImageFont.load_default(22)
    wide = MARGIN + columns * (width + MARGIN)
    titles = _wrap(title, font, wide - 2 * MARGIN)
    top = MARGIN + (28 * len(titles) + MARGIN if titles else 0)
    size = (wide, top + sum(heights) + MARGIN * len(lines))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(titles):
        draw.text((MARGIN, MARGIN + 28 * k), text, INK, font)
    for line, height in zip(lines, heights, strict=True):
        for column, cell in enumerate(line):
            sheet.paste(cell, (MARGIN + column * (width + MARGIN), top))
        top += height + MARGIN
    return sheet


def heat(values: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values in [0, 1] as colours, uint8 `[h, w, 3]`; values beyond get the end colours."""
    stops = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, stops, HEAT[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def fit(picture: np.ndarray, tile: int) -> Image.Image:
    """Scales so that the longer edge is `tile`; enlarges without blur, so pixels stay visible."""
    height, width = picture.shape[:2]
    factor = tile / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return Image.fromarray(picture).resize(size, method)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks a text into lines of at most a width in pixels, at blanks where there are any."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width:
                line = longer
                continue
            lines += [line] * bool(line)
            while font.getlength(word) > width and len(word) > 1:
                end = _fitting(word, font, width)
                lines.append(word[:end])
                word = word[end:]
            line = word
        lines.append(line)
    return lines


def _fitting(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Number of the first characters of a word that fit into a width, at least one."""
    end = 1
    while end < len(word) and font.getlength(word[: end + 1]) <= width:
        end += 1
    return end


def _legend(
    label_map: np.ndarray, class_names: Mapping[int, str], font: ImageFont.FreeTypeFont, width: int
) -> list[list[tuple[int, int, str]]]:
    """The classes that a mask shows, in lines: left edge, class id and name."""
    names = {**class_names, IGNORE_INDEX: "ignore"} if class_names else {}
    lines: list[list[tuple[int, int, str]]] = []
    left = width
    for class_id in np.unique(label_map).tolist():
        if class_id == BACKGROUND or class_id not in names:
            continue
        needed = 18 + int(font.getlength(names[class_id])) + MARGIN
        if left + needed > width + MARGIN:
            lines.append([])
            left = 0
        lines[-1].append((left, class_id, names[class_id]))
        left += needed
    return lines


def _sample_cell(
    image: np.ndarray,
    label_map: np.ndarray,
    caption: str,
    others: Sequence[np.ndarray] = (),
    *,
    class_names: Mapping[int, str],
    headings: Sequence[str],
    tile: int,
) -> Image.Image:
    """One sample of the contact sheet: three pictures or more, caption, colour key."""
    overlays = [overlay(image, each) for each in (label_map, *others)]
    pictures = (image, PALETTE[label_map], *overlays)
    tiles = [fit(picture, tile) for picture in pictures]
    font = ImageFont.load_default(15)
    step = tiles[0].width + 4
    width, top = len(tiles) * step - 4, LINE * bool(headings)
    first, *notes = caption.splitlines() or [""]
    captions = [(text, INK) for text in _wrap(first, font, width)]
    captions += [(text, GREY) for note in notes for text in _wrap(note, font, width)]
    legend = _legend(label_map, class_names, font, width)
    below = top + tiles[0].height + 4
    cell = Image.new("RGB", (width, below + LINE * (len(captions) + len(legend))), PAPER)
    draw = ImageDraw.Draw(cell)
    for k, heading in enumerate(headings):
        draw.text((k * step, 0), heading[: _fitting(heading, font, tiles[0].width)], GREY, font)
    for k, picture in enumerate(tiles):
        cell.paste(picture, (k * step, top))
    top = below
    for text, colour in captions:
        draw.text((0, top), text, colour, font)
        top += LINE
    _draw_legend(draw, legend, top, PALETTE, font)
    return cell


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    legend: list[list[tuple[int, int, str]]],
    top: int,
    palette: np.ndarray,
    font: ImageFont.FreeTypeFont,
) -> None:
    for k, entries in enumerate(legend):
        for left, class_id, name in entries:
            y, colour = top + k * LINE, tuple(palette[class_id].tolist())
            draw.rectangle((left, y + 2, left + 13, y + 15), colour)
            draw.text((left + 18, y), name, INK, font)


def labelled_overlay(
    image: np.ndarray, label_map: np.ndarray, class_names: Mapping[int, str], tile: int
) -> Image.Image:
    """Draws an overlay with the names of its classes below, next to the shades that it uses.

    Args:
        image: uint8 `[h, w, 3]`.
        label_map: uint8 `[h, w]`.
        class_names: id -> name.
        tile: longer edge of the overlay in pixels.
    """
    picture = fit(overlay(image, label_map), tile)
    font = ImageFont.load_default(15)
    legend = _legend(label_map, class_names, font, picture.width)
    size = (picture.width, picture.height + bool(legend) * 4 + LINE * len(legend))
    drawn = Image.new("RGB", size, PAPER)
    drawn.paste(picture, (0, 0))
    shades = contrast_palette(image.reshape(-1, 3), label_map.ravel())
    _draw_legend(ImageDraw.Draw(drawn), legend, picture.height + 4, shades, font)
    return drawn
