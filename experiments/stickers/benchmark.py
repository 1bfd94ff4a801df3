"""The field's protocol in miniature: train on generated pairs, test on images never seen before.

    python -m experiments.stickers.benchmark --run_dir=runs/benchmark

Generates pairs with a model that was trained on two styles of drawings, trains a small segmenter on
them, and measures its mean IoU on scenes of a third style, whose masks are exact, and on scenes of
the first two. A row differs from the next one by its masks alone; the images are the same. The
upper bound is trained on as many rendered scenes with exact masks. Every row is trained with
several seeds.

Every stage resumes. A run of a few minutes on one core, far too short to compare rows:

    python -m experiments.stickers.benchmark --num_pairs=64 --num_steps=10 --train_steps=100
        --num_test=100 --num_seeds=1
"""

import dataclasses
import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from experiments.benchmarks.measuring import markdown_table
from experiments.segmenter.config import LAPTOP, SegmenterConfig
from experiments.segmenter.data import ArraySamples
from experiments.segmenter.predict import evaluate
from experiments.segmenter.trainer import train
from experiments.stickers.pairs import PairSet, load_pairs
from experiments.stickers.scenes import TrainingRenderer, UnseenRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.program import make_main
from experiments.training.run_folder import require_settings, write_json, write_results
from experiments.training.scenes import Renderer
from seediff_jax import MaskConfig, SamplingConfig, load_model
from seediff_jax.dataset.iou import mean_iou, name_ious
from seediff_jax.driver.stdio import run_program
from seediff_jax.models.model import Model
from seediff_jax.settings import check_settings, setting

_BOUND_SEED, _TEST_SEED, _KNOWN_SEED = 70_000_000, 95_000_000, 94_000_000

UNSEEN, KNOWN = "unseen style", "known styles"
"""Test sets: drawings that neither the model nor a segmenter has seen, and those of the training in
other scenes."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a segmenter is trained on.

    Attributes:
        name: in the table.
        masks: how the masks of generated images are made; None for rendered scenes, whose masks are
            exact.
        keep: share of the images that is kept, those with the highest score.
    """

    name: str
    masks: MaskConfig | None
    keep: float = 1.0

    @property
    def slug(self) -> str:
        """The name as files and flags have it."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


BOUND = Row("rendered scenes, exact masks", None)
ROWS = (
    BOUND,
    Row("SeeDiff", MaskConfig()),
    Row("SeeDiff without background", MaskConfig(background=False)),
    Row("cross-attention", MaskConfig(method="cross_attention")),
    Row("exponentiation", MaskConfig(method="exponentiation")),
    Row("SeeDiff, PAMR", MaskConfig(refine_iterations=10, dilations=(1, 2, 4))),
    Row("SeeDiff, ignore band", MaskConfig(uncertain=0.3)),
    Row("SeeDiff, score filter", MaskConfig(), keep=0.8),
)
"""The rows of the table; adding one is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to generate, train and measure."""

    model: str = setting("stickers", "Model that generates the pairs.", path=True)
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    run_dir: str = setting("runs/benchmark", "Folder of pairs, checkpoints, results.", path=True)
    num_pairs: int = setting(2000, "Number of generated pairs, and of rendered scenes.", least=2)
    num_steps: int = setting(25, "Sampling steps.", least=1)
    guidance_scale: float = setting(7.5, "Weight of the prompt.", least=0)
    batch_size: int = setting(8, "Images that are generated at once.", least=1)
    train_steps: int = setting(LAPTOP.steps, "Training steps of the segmenter.", least=1)
    train_batch_size: int = setting(LAPTOP.batch_size, "Images per training step.", least=1)
    train_side: int | None = setting(
        None, "Side of the images that the segmenter reads, pixels; None is the model's.", least=16
    )
    num_test: int = setting(1000, "Number of scenes of each test set.", least=1)
    num_seeds: int = setting(3, "Number of training runs per row.", least=1)
    rows: tuple[str, ...] = setting(
        tuple(row.slug for row in ROWS), "Rows to measure.", choices=tuple(r.slug for r in ROWS)
    )

    def __post_init__(self):
        check_settings(self)

    def segmenter(self, side: int) -> SegmenterConfig:
        """The recipe that every row is trained with; images have `side` pixels."""
        return dataclasses.replace(
            LAPTOP,
            num_labels=len(CLASSES) + 1,
            crop=self.train_side or side,
            test_side=self.train_side,
            steps=self.train_steps,
            batch_size=self.train_batch_size,
        )

    @property
    def chosen(self) -> list[Row]:
        """The rows to measure, in the order of the table."""
        return [row for row in ROWS if row.slug in self.rows]

    def pins(self, model: Model) -> dict[str, Any]:
        """What results depend on; rows and seeds may be added to a folder."""
        loose = {"model", "sprites", "run_dir", "num_seeds", "rows"}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in loose}
        return values | {"weights_hash": model.weights_hash}


def mask_methods(rows: Sequence[Row]) -> dict[str, MaskConfig]:
    """Slug -> masks, each config once."""
    first = {row.masks: row.slug for row in reversed(rows) if row.masks is not None}
    return {slug: masks for masks, slug in first.items()}


def rendered_samples(render: Renderer, first_seed: int, count: int, side: int) -> ArraySamples:
    """Rendered scenes of `side` pixels with exact masks."""
    scenes = [render(first_seed + i, side=side) for i in range(count)]
    images = np.stack([scene.image for scene in scenes])
    return ArraySamples(images, np.stack([scene.label_map for scene in scenes]))


def generated_samples(row: Row, pairs: PairSet, methods: Mapping[str, MaskConfig]) -> ArraySamples:
    """The pairs of a row: its masks, and the images that its filter keeps."""
    (method,) = [slug for slug, masks in methods.items() if masks == row.masks]
    kept = max(1, round(row.keep * len(pairs.images)))
    chosen = np.sort(np.argsort(-pairs.scores[method], kind="stable")[:kept])
    return ArraySamples(pairs.images[chosen], pairs.labels[method][chosen])


def measure(
    config: SegmenterConfig,
    samples: ArraySamples,
    tests: Mapping[str, ArraySamples],
    path: pathlib.Path,
    seed: int,
) -> dict[str, Any]:
    """Trains the segmenter once and measures it; reads the result where it is there.

    Args:
        config: the recipe.
        samples: what to train on.
        tests: what to measure on, by the names of the test sets.
        path: file of the result; the checkpoints lie beside it until the result is written.
        seed: of the training run.
    """
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    begun, checkpoint = time.time(), path.with_suffix(".checkpoints")
    variables = train(config, samples, checkpoint, rng_seed=seed)
    result: dict[str, Any] = {"images": len(samples)}
    for name, scenes in tests.items():
        confusion = evaluate(config, variables, scenes)
        ious = name_ious(("background", *CLASSES), confusion)
        result[name] = {"mean IoU": mean_iou(confusion), "IoU": ious}
    result["seconds"] = round(time.time() - begun)
    write_json(path, result)
    shutil.rmtree(checkpoint, ignore_errors=True)
    means = ", ".join(f"{name} {result[name]['mean IoU']:.4f}" for name in tests)
    logging.info("%s: mean IoU of %s, %.0f s", path.stem, means, result["seconds"])
    return result


def run(settings: Settings) -> dict[str, Any]:
    """Runs all stages; returns the figures of every row."""
    model, run_dir = load_model(settings.model), pathlib.Path(settings.run_dir)
    require_settings(run_dir, settings.pins(model))
    sprites = ensure_sprites(pathlib.Path(settings.sprites))
    methods = mask_methods(settings.chosen)
    sampling = SamplingConfig(num_steps=settings.num_steps, guidance_scale=settings.guidance_scale)
    pairs = load_pairs(
        model, run_dir / "pairs", settings.num_pairs, methods, sampling, settings.batch_size
    )
    side = model.config.image_side
    config = settings.segmenter(side)
    count, known = settings.num_test, TrainingRenderer(sprites)
    tests = {
        UNSEEN: rendered_samples(UnseenRenderer(sprites), _TEST_SEED, count, side),
        KNOWN: rendered_samples(known, _KNOWN_SEED, count, side),
    }
    makers: dict[str, Callable[[], ArraySamples]] = {
        row.name: lambda row=row: generated_samples(row, pairs, methods) for row in settings.chosen
    }
    makers[BOUND.name] = lambda: rendered_samples(known, _BOUND_SEED, settings.num_pairs, side)
    rows = {}
    for row in settings.chosen:
        samples = makers[row.name]()
        paths = [run_dir / f"{row.slug}-{seed}.json" for seed in range(settings.num_seeds)]
        rows[row.name] = [
            measure(config, samples, tests, path, seed) for seed, path in enumerate(paths)
        ]
    return {"settings": settings.pins(model), "rows": rows}


def render_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: mean and spread (standard deviation of a sample) of each row over its seeds."""
    header = ["training pairs", "images", "seeds"]
    cells = {name: [str(runs[0]["images"]), str(len(runs))] for name, runs in rows.items()}
    for test in (UNSEEN, KNOWN):
        header += [f"{test}: mean IoU, %", "of the upper bound"]
        means = {
            name: 100 * np.array([run[test]["mean IoU"] for run in runs])
            for name, runs in rows.items()
        }
        bound = means[BOUND.name].mean() if BOUND.name in means else np.nan
        for name, found in means.items():
            spread = f" ± {found.std(ddof=1):.1f}" if len(found) > 1 else ""
            share = f"{found.mean() / bound:.0%}" if bound > 0 else "-"
            cells[name] += [f"{found.mean():.1f}{spread}", share]
    return markdown_table(header, [(name, *line) for name, line in cells.items()])


def _work(settings: Settings) -> None:
    results = run(settings)
    table = render_table(results["rows"])
    write_results(pathlib.Path(settings.run_dir) / "results", results, table)


main = make_main("experiments.stickers.benchmark", __doc__, Settings, _work)


if __name__ == "__main__":
    run_program(main)
