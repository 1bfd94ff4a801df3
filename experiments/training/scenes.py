"""Scenes: images with exact masks and captions, rendered once and kept in one file."""

import dataclasses
import multiprocessing
import os
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
        image: uint8 `[side, side, 3]`.
        label_map: uint8 `[side, side]`, 0 background, k + 1 for class k of the study.
        caption: names the objects and, mostly, the background.
        classes: names of the objects, in the order of the caption.
    """

    image: np.ndarray
    label_map: np.ndarray
    caption: str
    classes: tuple[str, ...]


def caption(lead: str, classes: Sequence[str], background: str | None = None) -> str:
    """Returns e.g. "a photo of a horse and an aeroplane on a cloudy background"."""
    objects = " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in classes)
    return f"{lead} {objects}" + (f" on a {background} background" if background else "")


class Renderer(Protocol):
    """Renders the scene of a seed. Can be pickled, so that several processes share the work."""

    def __call__(self, seed: int, *, side: int = 128, num_objects: int | None = None) -> Scene:
        """Everything follows from the seed; `num_objects` (1 or 2) is drawn if it is None."""


def stack_images(scenes: list[Scene]) -> np.ndarray:
    """float32 `[b, side, side, 3]` in [-1, 1]."""
    return np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1


def load_scenes(path: pathlib.Path, count: int, render: Renderer) -> tuple[np.ndarray, list[str]]:
    """Returns the scenes of seeds 0 .. count - 1; renders them where the file has fewer.

    Returns:
        uint8 `[count, side, side, 3]` images and their captions. Evaluation uses seeds far above.
    """
    images, captions = None, []
    if path.exists():
        with np.load(path) as file:
            images, captions = file["images"], file["captions"].tolist()
    if len(captions) < count:
        images, captions = _render(render, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part.npz")
        np.savez(aside, images=images, captions=np.array(captions))
        os.replace(aside, path)
    return images[:count], captions[:count]


def _render(render: Renderer, count: int) -> tuple[np.ndarray, list[str]]:
    images, captions = np.zeros((count, *render(0).image.shape), np.uint8), []
    # Spawned, not forked: the parent may already run the threads of JAX.
    with multiprocessing.get_context("spawn").Pool() as pool:
        for i, scene in enumerate(pool.imap(render, range(count), chunksize=64)):
            images[i] = scene.image
            captions.append(scene.caption)
    return images, captions
