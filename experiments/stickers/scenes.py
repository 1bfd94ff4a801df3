"""Scenes with exact masks and captions, each a function of one integer seed.

    python -m experiments.stickers.scenes --output=/tmp/scenes.png     draws a sheet to look at

A scene shows one large object, or two apart, on a background that the caption may name. The mask of
an object is where its drawing covers at least half of a pixel.
"""

import dataclasses
import functools
import pathlib
from typing import ClassVar

import numpy as np
from absl import flags
from PIL import Image

from experiments.stickers.sprites import (
    CLASSES,
    HELD_OUT_SETS,
    TRAINING_SETS,
    ensure_sprites,
    load_sprites,
)
from experiments.training import program
from experiments.training.scenes import Scene, caption

SIDE = 128
LEADS = ("a photo of", "a picture of", "an image of", "a long shot of")
BACKGROUNDS = {"plain": 0.35, "faded": 0.25, "cloudy": 0.2, "striped": 0.2}
_TWO_OBJECTS = 0.25
# Largest side of an object, as a fraction of the side of the scene.
_ONE_SIZE, _TWO_SIZE = (0.68, 0.88), (0.45, 0.5)
_DEGREES, _BRIGHTNESS = 6.0, 0.08


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A muted colour, float `[3]` in [0, 1]."""
    hue, saturation, value = rng.uniform(0, 6), rng.uniform(0, 0.45), rng.uniform(0.4, 0.97)
    k = (np.array([5.0, 3.0, 1.0]) + hue) % 6
    return value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))


def _background(rng: np.random.Generator, kind: str, side: int) -> np.ndarray:
    """Float `[side, side, 3]` in [0, 1]."""
    first, second = _colour(rng), _colour(rng)
    if kind == "plain":
        return np.broadcast_to(first, (side, side, 3))
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(turn) + y * np.sin(turn)
    if kind == "faded":
        share = along / 1.42 + 0.5
    elif kind == "striped":
        second = first + np.clip(second - first, -0.2, 0.2)
        share = np.clip(0.5 + 3 * np.sin(2 * np.pi * (along * rng.uniform(3, 7) + turn)), 0, 1)
    else:
        cells = Image.fromarray(rng.uniform(-0.2, 1.2, (5, 5)).astype(np.float32))
        share = np.clip(np.asarray(cells.resize((side, side), Image.Resampling.BICUBIC)), 0, 1)
    return first + (second - first) * share[..., None]


def _pose(rng: np.random.Generator, sprite: np.ndarray, size: int) -> np.ndarray:
    """Flips, turns and scales a drawing; float `[h, w, 4]` in [0, 1], alpha not premultiplied."""
    image = Image.fromarray(sprite[:, ::-1] if rng.uniform() < 0.5 else sprite)
    # Pillow premultiplies by alpha in `rotate` and `resize`: no colour leaks in from outside.
    turn = rng.uniform(-_DEGREES, _DEGREES)
    image = image.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a >= 8)).getbbox())
    scale = size / max(image.size)
    shape = tuple(max(1, round(scale * edge)) for edge in image.size)
    return np.asarray(image.resize(shape, Image.Resampling.BOX), np.float64) / 255


def _centres(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres of the objects, `[count, 2]` in units of the side; two of them lie apart."""
    if count == 1:
        return np.full((1, 2), 0.5)
    across = rng.uniform(0.1, 0.9) if rng.uniform() < 0.5 else 0.5
    centres = np.array([[0.26, across], [0.74, 1 - across]])[rng.permutation(2)]
    return centres if rng.uniform() < 0.3 else centres[:, ::-1]


def render_scene(
    seed: int,
    sprites: dict[str, list[np.ndarray]],
    *,
    side: int = SIDE,
    num_objects: int | None = None,
    classes: tuple[str, ...] | None = None,
) -> Scene:
    """Renders the scene of a seed.

    Args:
        seed: everything that is not given follows from it.
        sprites: class -> its drawings, as `load_sprites` returns them.
        side: height and width, pixels.
        num_objects: 1 or 2; None draws it.
        classes: names of the objects; None draws them.
    """
    rng = np.random.default_rng((11, seed))
    drawn = 2 if rng.uniform() < _TWO_OBJECTS else 1
    count = len(classes) if classes else num_objects or drawn
    chosen = tuple(CLASSES[k] for k in rng.permutation(len(CLASSES))[:count])
    classes = classes or chosen
    kind = str(rng.choice(list(BACKGROUNDS), p=list(BACKGROUNDS.values())))
    image = _background(rng, kind, side).copy()
    label_map = np.zeros((side, side), np.uint8)
    low, high = _ONE_SIZE if count == 1 else _TWO_SIZE
    for name, (cy, cx) in zip(classes, _centres(rng, count), strict=True):
        drawing = sprites[name][rng.integers(len(sprites[name]))]
        posed = _pose(rng, drawing, round(side * rng.uniform(low, high)))
        h, w = posed.shape[:2]
        jitter = rng.uniform(-0.05, 0.05, 2)
        top = int(np.clip(round((cy + jitter[0]) * side - h / 2), 0, side - h))
        left = int(np.clip(round((cx + jitter[1]) * side - w / 2), 0, side - w))
        window = np.s_[top : top + h, left : left + w]
        colour = np.clip(posed[..., :3] * rng.uniform(1 - _BRIGHTNESS, 1 + _BRIGHTNESS), 0, 1)
        alpha = posed[..., 3:]
        image[window] = alpha * colour + (1 - alpha) * image[window]
        label_map[window] = np.where(
            alpha[..., 0] >= 0.5, CLASSES.index(name) + 1, label_map[window]
        )
    text = caption(str(rng.choice(LEADS)), classes, kind if rng.uniform() < 0.7 else None)
    return Scene((image * 255 + 0.5).astype(np.uint8), label_map, text, classes)


def shrink_sprites(sprites: dict[str, list[np.ndarray]], side: int = 192):
    """The drawings with the longer side at most `side`: enough for a scene, and faster to pose."""
    small = {}
    for name, drawings in sprites.items():
        images = [Image.fromarray(drawing) for drawing in drawings]
        for image in images:
            image.thumbnail((side, side), Image.Resampling.BOX)
        small[name] = [np.asarray(image) for image in images]
    return small


@functools.cache
def read_sprites(path: pathlib.Path, sets: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """The drawings of some sets in a sprites file, at the size that scenes need."""
    return shrink_sprites(load_sprites(path, sets))


@dataclasses.dataclass(frozen=True)
class TrainingRenderer:
    """Renders scenes of the drawings of a sprites file that training may show."""

    path: pathlib.Path
    sets: ClassVar[tuple[str, ...]] = TRAINING_SETS

    def __call__(self, seed: int, *, side: int = SIDE, num_objects: int | None = None) -> Scene:
        """The scene of a seed."""
        sprites = read_sprites(self.path, self.sets)
        return render_scene(seed, sprites, side=side, num_objects=num_objects)


class UnseenRenderer(TrainingRenderer):
    """Renders scenes of the held-out drawings, for evaluation alone."""

    sets: ClassVar[tuple[str, ...]] = HELD_OUT_SETS


def main(_) -> None:
    """Draws a sheet of scenes, and their masks below."""
    render = TrainingRenderer(ensure_sprites(pathlib.Path(_SPRITES.value)))
    scenes = [render(seed) for seed in range(48)]
    rows = [scenes[i : i + 12] for i in range(0, 48, 12)]
    sheet = [np.concatenate([s.image for s in row], axis=1) for row in rows]
    masks = [np.concatenate([s.label_map for s in row], axis=1) for row in rows]
    grey = [np.repeat(np.uint8(255) * (m[..., None] > 0), 3, axis=-1) for m in masks]
    Image.fromarray(np.concatenate([*sheet, *grey])).save(_OUTPUT.value)
    for scene in scenes[:12]:
        print(scene.caption)


if __name__ == "__main__":
    _SPRITES = flags.DEFINE_string("sprites", "runs/stickers/sprites.npz", "The drawings.")
    _OUTPUT = flags.DEFINE_string("output", "/tmp/scenes.png", "Sheet to look at.")
    program.run(main)
