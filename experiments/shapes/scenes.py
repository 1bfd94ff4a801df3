"""The training scenes, rendered once and kept in one file."""

import functools
import multiprocessing
import os
import pathlib

import numpy as np

from experiments.shapes.render import SIDE, render_scene


def load_scenes(path: pathlib.Path, count: int) -> tuple[np.ndarray, list[str]]:
    """Returns the scenes of seeds 0 .. count - 1; renders them where the file lacks some.

    Returns:
        uint8 `[count, 128, 128, 3]` images and their captions. Evaluation uses seeds far above.
    """
    images, captions = np.zeros((0, SIDE, SIDE, 3), np.uint8), []
    if path.exists():
        with np.load(path) as file:
            images, captions = file["images"], file["captions"].tolist()
    if len(captions) < count:
        images, captions = _render(count)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part.npz")
        np.savez(aside, images=images, captions=np.array(captions))
        os.replace(aside, path)
    return images[:count], captions[:count]


def _render(count: int) -> tuple[np.ndarray, list[str]]:
    images, captions = np.zeros((count, SIDE, SIDE, 3), np.uint8), []
    # Spawned, not forked: the parent may already run the threads of JAX.
    with multiprocessing.get_context("spawn").Pool() as pool:
        scenes = pool.imap(functools.partial(render_scene, side=SIDE), range(count), chunksize=64)
        for i, scene in enumerate(scenes):
            images[i] = scene.image
            captions.append(scene.caption)
    return images, captions
