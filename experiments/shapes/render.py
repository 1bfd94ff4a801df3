"""Renders scenes with exact masks and captions, to train and measure the embedded model.

A scene is a greyish background with one or two saturated objects. Each class has one shape and one
hue. So the truth of a generated image, which has no exact mask, can be read from its colours
(`read_label_map`). A scene follows from its integer seed alone.

    python -m experiments.shapes.render --output=/tmp/scenes.png     draws a sheet to look at
"""

from collections.abc import Callable

import numpy as np
from absl import app, flags
from PIL import Image

from experiments.training.scenes import Scene
from seediff_jax.prompts.class_lists import SHAPES_CLASSES

SIDE = 128
BACKGROUNDS = ("plain", "faded", "striped", "dotted")
LEADS = ("a photo of", "a picture of", "an image of", "a long shot of")
# Objects have saturation above 0.65 and backgrounds below 0.15; the bar lies between.
SATURATION_BAR = 0.42
_SUPERSAMPLING = 3


def class_hue(class_index: int) -> float:
    """Returns the central hue of a class, in turns [0, 1); neighbours are 1/8 of a turn apart."""
    return class_index / len(SHAPES_CLASSES)


def _polygon(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Applies the even-odd rule: inside, a point has an odd number of edges to its right."""
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        if y0 == y1:
            continue
        crossing = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        inside ^= ((y0 > y) != (y1 > y)) & (x < crossing)
    return inside


def _regular(corners: int, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Places corners on circles of alternating radii, the first one at the top."""
    turns = np.arange(corners) / corners * 2 * np.pi
    return [
        (radii[k % len(radii)] * np.sin(a), -radii[k % len(radii)] * np.cos(a))
        for k, a in enumerate(turns)
    ]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # The sextic heart curve, scaled to fill the unit circle; y points down.
    x, y = 1.2 * x, 0.12 - 1.2 * y
    return (x**2 + y**2 - 1) ** 3 - x**2 * y**3 < 0


# In coordinates where the object fills about the unit circle, y down.
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x**2 + y**2 < 0.92**2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.78,
    "triangle": lambda x, y: _polygon(x, y - 0.2, _regular(3, (1.15,))),
    "star": lambda x, y: _polygon(x, y, _regular(10, (1.1, 0.52))),
    "heart": _heart,
    "ring": lambda x, y: (x**2 + y**2 < 1) & (x**2 + y**2 > 0.5**2),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.36) & (np.maximum(abs(x), abs(y)) < 1),
    "crescent": lambda x, y: (x**2 + y**2 < 1) & ((x - 0.5) ** 2 + y**2 > 0.72**2),
}


def hsv_to_rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Converts hue in turns, saturation and value in [0, 1] to RGB in [0, 1], last axis 3."""
    k = (np.stack([hue * 6 + 5, hue * 6 + 3, hue * 6 + 1], axis=-1)) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


def read_label_map(image: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
    """Reads the truth of an image from its colours: saturated pixels, told apart by hue.

    Args:
        image: uint8 `[h, w, 3]`, rendered or generated.
        classes: names of the objects; a saturated pixel belongs to the one whose hue is nearest.

    Returns:
        uint8 `[h, w]`, 0 background, k + 1 for class k of `SHAPES_CLASSES`.
    """
    hue, saturation = _hue_and_saturation(image)
    ids = np.array([SHAPES_CLASSES.index(name) for name in classes])
    distance = abs(hue[..., None] - ids / len(SHAPES_CLASSES))
    nearest = np.argmin(np.minimum(distance, 1 - distance), axis=-1)
    return np.where(saturation > SATURATION_BAR, ids[nearest] + 1, 0).astype(np.uint8)


def _hue_and_saturation(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    red, green, blue = np.moveaxis(image.astype(np.float64) / 255, -1, 0)
    high, low = image.max(axis=-1) / 255, image.min(axis=-1) / 255
    spread = np.maximum(high - low, 1e-9)
    sixth = np.select(
        [high == red, high == green],
        [((green - blue) / spread) % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    return sixth / 6, (high - low) / np.maximum(high, 1e-9)


def render_scene(seed: int, *, side: int = SIDE, num_objects: int | None = None) -> Scene:
    """Renders the scene of one seed.

    Args:
        seed: determines the scene; different seeds are independent.
        side: edge of the image in pixels; the scene scales with it.
        num_objects: 1 or 2; None draws one of them.
    """
    rng = np.random.default_rng((7, seed))
    count = num_objects or int(rng.integers(1, 3))
    class_ids = rng.choice(len(SHAPES_CLASSES), count, replace=False)
    background = BACKGROUNDS[rng.choice(4, p=(0.4, 0.25, 0.2, 0.15))]
    grid = _pixel_centres(side)
    image = _draw_background(rng, background, grid)
    label_map = np.zeros((side, side), np.uint8)
    for class_id, place in zip(class_ids, _places(rng, count), strict=True):
        coverage = _coverage(rng, SHAPES_CLASSES[class_id], *place, side)
        image += coverage[..., None] * (_object_colour(rng, class_id, grid) - image)
        label_map[coverage >= 0.5] = class_id + 1
    names = tuple(SHAPES_CLASSES[k] for k in class_ids)
    pixels = (image * 255).round().astype(np.uint8)
    return Scene(pixels, label_map, _caption(rng, names, background), names)


def _pixel_centres(side: int) -> np.ndarray:
    """Returns the positions of the pixels along an edge, as fractions of it."""
    return (np.arange(side, dtype=np.float32) + 0.5) / side


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Draws centres and radii, as fractions of the side, of objects that do not touch."""
    if count == 1:
        radius = rng.uniform(0.22, 0.36)
        return [(*rng.uniform(radius + 0.03, 0.97 - radius, 2), radius)]
    while True:
        radii = rng.uniform(0.17, 0.24, 2)
        centres = [rng.uniform(radius + 0.03, 0.97 - radius, 2) for radius in radii]
        if np.linalg.norm(centres[0] - centres[1]) > radii.sum() + 0.04:
            return [(*centre, radius) for centre, radius in zip(centres, radii, strict=True)]


def _coverage(rng, name: str, cx: float, cy: float, radius: float, side: int) -> np.ndarray:
    """Computes how much of each pixel the object covers, in [0, 1]: float32 `[side, side]`."""
    angle = rng.uniform(-0.35, 0.35)
    grid = _pixel_centres(side * _SUPERSAMPLING)
    dx, dy = (grid[None, :] - cx) / radius, (grid[:, None] - cy) / radius
    x, y = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    blocks = _SHAPES[name](x, y).reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def _object_colour(rng, class_id: int, grid: np.ndarray) -> np.ndarray:
    """Draws a colour of the class, slightly shaded across the image: `[side, side, 3]`."""
    hue = (class_hue(class_id) + rng.uniform(-0.025, 0.025)) % 1
    saturation, value = rng.uniform(0.75, 0.95), rng.uniform(0.72, 0.9)
    shade = value + 0.2 * _ramp(rng, grid)
    return hsv_to_rgb(np.full_like(shade, hue), np.full_like(shade, saturation), shade)


def _ramp(rng, grid: np.ndarray) -> np.ndarray:
    """Makes a ramp from about -0.5 to 0.5 across the image, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * (grid[None, :] - 0.5) + np.sin(angle) * (grid[:, None] - 0.5)


def _draw_background(rng, kind: str, grid: np.ndarray) -> np.ndarray:
    value = np.full((grid.size, grid.size), rng.uniform(0.3, 0.85), np.float32)
    if kind == "faded":
        value += 0.35 * _ramp(rng, grid)
    elif kind == "striped":
        period, phase = rng.uniform(0.1, 0.18), rng.uniform(0, 1)
        wave = np.sin(2 * np.pi * (_ramp(rng, grid) / period + phase))
        value += 0.09 * np.clip(3 * wave, -1, 1)
    elif kind == "dotted":
        period = rng.uniform(0.11, 0.16)
        phase_x, phase_y = rng.uniform(0, 1, 2)
        x = (grid[None, :] / period + phase_x) % 1 - 0.5
        y = (grid[:, None] / period + phase_y) % 1 - 0.5
        value += 0.04 - 0.2 * np.clip((0.34 - np.hypot(x, y)) / 0.12, 0, 1)
    hue, saturation = rng.uniform(0, 1), rng.uniform(0, 0.12)
    value = np.clip(value, 0.1, 1)
    return hsv_to_rgb(np.full_like(value, hue), np.full_like(value, saturation), value)


def _caption(rng, names: tuple[str, ...], background: str) -> str:
    """Writes a caption; it always names stripes and dots, other backgrounds half of the time."""
    lead = LEADS[rng.integers(len(LEADS))]
    objects = " and ".join(f"a {name}" for name in names)
    named = background in ("striped", "dotted") or rng.uniform() < 0.5
    return f"{lead} {objects}" + (f" on a {background} background" if named else "")


def main(_) -> None:
    """Writes a sheet of scenes with their masks."""
    from seediff_jax.dataset.pictures import contact_sheet

    scenes = [render_scene(seed) for seed in range(24)]
    rows = [(scene.image, scene.label_map, scene.caption) for scene in scenes]
    sheet: Image.Image = contact_sheet(rows, title="rendered scenes", columns=4)
    sheet.save(flags.FLAGS.output)


if __name__ == "__main__":
    flags.DEFINE_string("output", "scenes.png", "Where to write the sheet (PNG).")
    app.run(main)
