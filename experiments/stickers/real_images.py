"""Segmentation of given images: mask methods against noise levels, on scenes of an unseen style.

    python -m experiments.stickers.real_images --run_dir=runs/real_images

The images are rendered scenes of a style that the model was not trained on, with exact truth. Each
is noised, read by one or a few UNet calls with a prompt that names its classes, and masked by every
method from the same attention. The metric is the mean IoU of one confusion matrix over all scenes,
background included. A second table has the same metric where unlikely classes are left out.

Writes real_images.json and real_images.md. A run that was stopped goes on with the next kind of
calls; rows and calls that were added are measured when the command is given again.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments.stickers.scenes import UnseenRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.attention import with_seeds
from experiments.training.mask_scores import METHODS, masks_of
from experiments.training.program import make_main
from experiments.training.run_folder import require_settings, write_json, write_results
from experiments.training.scenes import Renderer
from seediff_jax import MaskConfig, SegmentConfig, load_model
from seediff_jax.dataset.iou import confusion_matrix, mean_iou, name_ious
from seediff_jax.driver.stdio import run_program
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.models.model import Model
from seediff_jax.pipeline.segment_images import attend_images
from seediff_jax.sampling.config import PRESENCE_DRAWS
from seediff_jax.sampling.inputs import image_prompts
from seediff_jax.settings import check_settings, setting

_FIRST_SCENE = 96_000_000

ROWS: Mapping[str, MaskConfig] = METHODS | {
    "SeeDiff, transition": MaskConfig(affinity="transition"),
    "SeeDiff, transition, power 4": MaskConfig(affinity="transition", power=4),
    "SeeDiff, sinkhorn": MaskConfig(affinity="sinkhorn"),
    "SeeDiff, threshold 0.4": MaskConfig(threshold=0.4),
    "SeeDiff, threshold 0.6": MaskConfig(threshold=0.6),
    "SeeDiff, PAMR, 10": MaskConfig(refine_iterations=10, dilations=(1, 2, 4)),
}
"""The rows of the table; adding one is one line."""


_with_draws = functools.partial(SegmentConfig, presence_draws=PRESENCE_DRAWS)
_without_draws = functools.partial(SegmentConfig, presence_draws=0)


class Calls(NamedTuple):
    """What attention is read from.

    Attributes:
        config: the UNet calls.
        seeds: the choice of layers whose cross-attention makes the seeds, see `with_seeds`.
        absent: number of classes that are looked for besides those of the scene.
    """

    config: SegmentConfig
    seeds: str | None = None
    absent: int = 0


CALLS: Mapping[str, Calls] = {
    "50": Calls(_without_draws(timesteps=(50,))),
    "100": Calls(_without_draws(timesteps=(100,))),
    "200": Calls(_without_draws(timesteps=(200,))),
    "300": Calls(_without_draws(timesteps=(300,))),
    "400": Calls(_without_draws(timesteps=(400,))),
    "50, 100, 200": Calls(_without_draws(timesteps=(50, 100, 200))),
    "100, 200, 300, 400": Calls(_without_draws(timesteps=(100, 200, 300, 400))),
    "100, mirrored": Calls(_without_draws(timesteps=(100,), mirror=True)),
    "50, 100, 200, mirrored": Calls(_without_draws(timesteps=(50, 100, 200), mirror=True)),
    "100, seeds of two levels": Calls(_without_draws(timesteps=(100,)), "two_levels"),
}
"""The columns of the table: timesteps of the UNet calls; adding one is one line."""

PRESENCE_ROWS: Mapping[str, MaskConfig] = {
    f"{least:g}": MaskConfig(min_presence=least) for least in (0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8)
}
"""The rows of a second table: classes below a presence are left out."""

PRESENCE_CALLS: Mapping[str, Calls] = {
    f"{way}, {classes}": Calls(config(timesteps=(100,), template="{classes}"), absent=absent)
    for way, config in (("by denoising", _with_draws), ("by attention", _without_draws))
    for classes, absent in (("classes of the scene", 0), ("and two absent classes", 2))
}
"""The columns of the second table. Four names and "a photo of" would be more than 14 tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure on."""

    model: str = setting("stickers", "Model to measure.", path=True)
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    run_dir: str = setting("runs/real_images", "Folder of the results.", path=True)
    num_images: int = setting(200, "Number of scenes.", least=1)
    batch_size: int = setting(8, "Scenes at a time.", least=1)

    def __post_init__(self):
        check_settings(self)

    def pins(self, model: Model) -> dict[str, Any]:
        """What results depend on."""
        return {"num_images": self.num_images, "weights_hash": model.weights_hash}


def measure(
    model: Model,
    render: Renderer,
    calls: Calls,
    rows: Mapping[str, MaskConfig],
    settings: Settings,
) -> dict[str, np.ndarray]:
    """Row -> confusion matrix over all scenes, int64 `[20, 20]`."""
    config = calls.config
    size = len(CLASSES) + 1
    totals = {name: np.zeros((size, size), np.int64) for name in rows}
    for start in range(0, settings.num_images, settings.batch_size):
        indices = range(start, min(settings.num_images, start + settings.batch_size))
        side = model.config.image_side
        scenes = [render(_FIRST_SCENE + index, side=side) for index in indices]
        images = np.stack([scene.image for scene in scenes])
        names = [
            _with_absent(scene.classes, calls.absent, index)
            for index, scene in zip(indices, scenes, strict=True)
        ]
        prompts = image_prompts(names, config.template)
        maps = attend_images(model, images, prompts, names, indices, config=config).attention_maps
        for row, masks in rows.items():
            _, found = masks_of(images, maps, masks)
            for scene, labels, looked_for in zip(scenes, found, names, strict=True):
                predicted = _class_ids(labels, looked_for)
                totals[row] += confusion_matrix(scene.label_map, predicted, size)
    return totals


def _with_absent(shown: Sequence[str], count: int, index: int) -> tuple[str, ...]:
    """The classes of a scene and some that it does not show, in random order."""
    rng = np.random.default_rng((7, index))
    others = [name for name in CLASSES if name not in shown]
    names = [*shown, *(others[k] for k in rng.permutation(len(others))[:count])]
    return tuple(names[k] for k in rng.permutation(len(names))) if count else tuple(shown)


def _class_ids(labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Labels of a scene's classes as ids of the study; ignored pixels count as background."""
    ids = np.zeros(IGNORE_INDEX + 1, np.uint8)
    ids[1 : len(names) + 1] = [CLASSES.index(name) + 1 for name in names]
    return ids[labels]


def run(
    settings: Settings,
    rows: Mapping[str, MaskConfig] = ROWS,
    calls: Mapping[str, Calls] = CALLS,
) -> dict[str, dict[str, Any]]:
    """Measures what the folder lacks; returns calls -> row -> "mean IoU", and "IoU" by label."""
    model, run_dir = load_model(settings.model), pathlib.Path(settings.run_dir)
    require_settings(run_dir, settings.pins(model))
    render = UnseenRenderer(ensure_sprites(pathlib.Path(settings.sprites)))
    wanted, results = {name: repr(masks) for name, masks in rows.items()}, {}
    for name, column in calls.items():
        path = run_dir / f"calls {name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if (found.get("calls"), found.get("rows")) != (repr(column), wanted):
            seeded = with_seeds(model, column.seeds)
            matrices = measure(seeded, render, column, rows, settings)
            figures = {row: _figures(confusion) for row, confusion in matrices.items()}
            found = {"calls": repr(column), "rows": wanted, "figures": figures}
            write_json(path, found)
            logging.info("timesteps %s: %d rows", name, len(rows))
        results[name] = found["figures"]
    return results


def _figures(confusion: np.ndarray) -> dict[str, Any]:
    return {"mean IoU": mean_iou(confusion), "IoU": name_ious(("background", *CLASSES), confusion)}


def render_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: mean IoU in %, one row per method and one column per kind of calls."""
    lines = [f"| masks | {' | '.join(results)} |", "|---|" + "---|" * len(results)]
    for row in next(iter(results.values())):
        cells = [f"{100 * figures[row]['mean IoU']:.1f}" for figures in results.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _work(settings: Settings) -> None:
    results, presence = run(settings), run(settings, PRESENCE_ROWS, PRESENCE_CALLS)
    tables = f"{render_table(results)}\n\n{render_table(presence)}"
    write_results(pathlib.Path(settings.run_dir) / "real_images", results | presence, tables)


main = make_main("experiments.stickers.real_images", __doc__, Settings, _work)


if __name__ == "__main__":
    run_program(main)
