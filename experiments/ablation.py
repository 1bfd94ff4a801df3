"""Compares settings of masks and of sampling on an embedded model: IoU, its error, and seconds.

    python -m experiments.ablation --study=shapes --run_dir=runs/ablation

A row of ROWS is a configuration; adding one is one line. Rows that differ by their masks alone read
the attention of the same images. IoU is that of single objects, on two sets. The truth of rendered
scenes is exact, and their attention is that of one noised UNet call. The truth of generated images
is read from their colours (shapes), or by a segmenter trained on rendered scenes (stickers).

Writes ablation.md, ablation.json and ablation.svg. A run that was stopped goes on with the next
group of rows, and rows that were added are measured when the command is given again.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from experiments.training.attention import capture_attention, with_seeds
from experiments.training.evaluation import ReadTruth, classes_in_turn
from experiments.training.mask_scores import masks_of, object_ious
from experiments.training.plots import Bar, draw_bars
from experiments.training.program import make_main
from experiments.training.run_folder import require_settings, write_json, write_results
from experiments.training.scenes import Renderer, caption
from seediff_jax import AttentionMaps, MaskConfig, SamplingConfig, generate, load_model
from seediff_jax.driver.stdio import run_program
from seediff_jax.models.model import Model
from seediff_jax.schedulers.config import scheduler_config, scheduler_json
from seediff_jax.settings import check_settings, setting

_FIRST_SCENE, _RNG_SEED, _NOISE_TIMESTEP = 97_000_000, 20_280, 200


class Sampling(NamedTuple):
    """How images are sampled; None is the default of the command or the model.

    Attributes:
        steps: denoising steps.
        guidance: guidance scale.
        scheduler: kind of sampler.
        calls: the part of the UNet calls whose attention is averaged.
        interval: the part of the run in which there is guidance.
    """

    steps: int | None = None
    guidance: float | None = None
    scheduler: str | None = None
    calls: tuple[float, float] = (0.0, 1.0)
    interval: tuple[float, float] = (0.0, 1.0)


class Row(NamedTuple):
    """A configuration.

    Attributes:
        group: heading in the plot.
        name: in the table.
        masks: how masks are made.
        sampling: how images are sampled.
        levels: number of levels of self-attention, from the coarsest on; None for all.
        seeds: the choice of layers whose cross-attention makes the seeds, see `with_seeds`.
    """

    group: str
    name: str
    masks: MaskConfig = MaskConfig()
    sampling: Sampling = Sampling()
    levels: int | None = None
    seeds: str | None = None


ROWS = (
    Row("published", "published settings"),
    Row("affinity", "transition", MaskConfig(affinity="transition")),
    Row("affinity", "transition, power 2", MaskConfig(affinity="transition", power=2)),
    Row("affinity", "transition, power 4", MaskConfig(affinity="transition", power=4)),
    Row("affinity", "sinkhorn", MaskConfig(affinity="sinkhorn")),
    Row("affinity", "sinkhorn, power 2", MaskConfig(affinity="sinkhorn", power=2)),
    Row("power", "cosine, power 2", MaskConfig(power=2)),
    Row("power", "cosine, power 4", MaskConfig(power=4)),
    Row("background", "no background step", MaskConfig(background=False)),
    Row("levels", "seed level alone", levels=1),
    Row("levels", "seeds of two levels", seeds="two_levels"),
    Row("threshold", "threshold 0.3", MaskConfig(threshold=0.3)),
    Row("threshold", "threshold 0.4", MaskConfig(threshold=0.4)),
    Row("threshold", "threshold 0.6", MaskConfig(threshold=0.6)),
    Row("threshold", "threshold 0.7", MaskConfig(threshold=0.7)),
    Row("refinement", "PAMR, 10", MaskConfig(refine_iterations=10, dilations=(1, 2, 4))),
    Row("refinement", "PAMR, 100", MaskConfig(refine_iterations=100)),
    Row("method", "cross-attention", MaskConfig(method="cross_attention")),
    Row("method", "exponentiation", MaskConfig(method="exponentiation")),
    Row("guidance", "guidance 1 (none)", sampling=Sampling(guidance=1.0)),
    Row("guidance", "guidance 3", sampling=Sampling(guidance=3.0)),
    Row("guidance", "guidance 12", sampling=Sampling(guidance=12.0)),
    Row("guidance", "guidance from 0.2 to 0.8", sampling=Sampling(interval=(0.2, 0.8))),
    Row("steps", "10 steps", sampling=Sampling(steps=10)),
    Row("steps", "50 steps", sampling=Sampling(steps=50)),
    Row("steps", "100 steps", sampling=Sampling(steps=100)),
    Row("scheduler", "Euler", sampling=Sampling(scheduler="euler")),
    Row("scheduler", "DPM-Solver++", sampling=Sampling(scheduler="dpmsolver_multistep")),
    Row("part of the steps", "first half", sampling=Sampling(calls=(0.0, 0.5))),
    Row("part of the steps", "second half", sampling=Sampling(calls=(0.5, 1.0))),
)
"""The rows of the table."""

SETS = ("rendered", "generated")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare, and on how many images."""

    study: str = setting("shapes", "Data set of the model.", choices=("shapes", "stickers"))
    model: str | None = setting(
        None, "Model to measure; by default the embedded one of the study.", path=True
    )
    groups: tuple[str, ...] = setting(
        tuple(dict.fromkeys(row.group for row in ROWS)),
        "Groups of rows to measure.",
        choices=tuple(dict.fromkeys(row.group for row in ROWS)),
    )
    sets: tuple[str, ...] = setting(
        SETS, "What to measure on; rendered scenes need neither sampling nor a judge.", choices=SETS
    )
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings of stickers.", path=True)
    run_dir: str = setting("runs/ablation", "Folder of the results.", path=True)
    num_images: int = setting(64, "Number of images per row and set.", least=1)
    num_steps: int = setting(25, "Sampling steps, where a row does not say.", least=1)
    guidance_scale: float = setting(7.5, "Guidance, where a row does not say.", least=0)
    batch_size: int = setting(8, "Images that are generated at once.", least=1)
    judge_steps: int = setting(1500, "Training steps of the segmenter of stickers.", least=1)
    judge_scenes: int = setting(4000, "Scenes that it is trained on.", least=1)

    def __post_init__(self):
        check_settings(self)

    @property
    def rows(self) -> list[Row]:
        """The rows to measure, in the order of the table."""
        return [row for row in ROWS if row.group in self.groups]

    def pins(self, model: Model) -> dict[str, Any]:
        """What results depend on."""
        loose = {"model", "groups", "sets", "sprites", "run_dir"}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in loose}
        return values | {"weights_hash": model.weights_hash}


@dataclasses.dataclass(frozen=True)
class Ground:
    """What a study measures on: its classes, scenes, and truth of generated images."""

    classes: tuple[str, ...]
    render: Renderer
    read_truth: ReadTruth


def make_ground(settings: Settings, side: int) -> Ground:
    """The ground of a study; that of stickers trains its segmenter at the first use, or resumes."""
    if settings.study == "shapes":
        from experiments.shapes.evaluate import SHAPES_CLASSES, read_truth, render_scene

        return Ground(SHAPES_CLASSES, render_scene, read_truth)
    from experiments.stickers.scenes import TrainingRenderer
    from experiments.stickers.sprites import CLASSES, ensure_sprites
    from experiments.training.judges import train_segmenter

    render = TrainingRenderer(ensure_sprites(pathlib.Path(settings.sprites)))
    path, options = pathlib.Path(settings.run_dir) / "judge", {"steps": settings.judge_steps}
    options |= {"count": settings.judge_scenes, "side": side}

    @functools.cache
    def segmenter() -> ReadTruth:
        return train_segmenter(render, CLASSES, path=path, **options)

    return Ground(CLASSES, render, lambda images, names: segmenter()(images, names))


@dataclasses.dataclass
class Measured:
    """IoU of the objects of a row, and seconds per image of each batch."""

    values: list[float] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Mean, its standard error over the objects, their number, and seconds per image."""
        count = len(self.values)
        error = float(np.std(self.values, ddof=1) / count**0.5) if count > 1 else 0.0
        mean = float(np.mean(self.values))
        return {"iou": mean, "error": error, "objects": count, "mask s": _warm(self.seconds)}


def _warm(seconds: Sequence[float]) -> float:
    """Median seconds; the first batch compiles and does not count, unless it is the only one."""
    return float(np.median(seconds[1:] or seconds))


def first_levels(maps: AttentionMaps, levels: int | None) -> AttentionMaps:
    """The maps with only the `levels` coarsest levels of self-attention; None keeps all."""
    return maps.replace(
        self_attention={side: maps.self_attention[side] for side in maps.sides[:levels]}
    )


def score_batch(
    rows: Sequence[Row], measured: Mapping[str, Measured], ground: Ground, batch: tuple
) -> None:
    """Makes the masks of every row for a batch, and adds their IoU."""
    images, maps, truths, names = batch
    for row in rows:
        begun = time.perf_counter()
        _, found = masks_of(images, first_levels(maps, row.levels), row.masks)
        measured[row.name].seconds.append((time.perf_counter() - begun) / len(images))
        ious = object_ious(found, truths, names, ground.classes)
        measured[row.name].values += [value for _, value in ious]


def _batches(settings: Settings) -> list[range]:
    starts = range(0, settings.num_images, settings.batch_size)
    return [range(s, min(settings.num_images, s + settings.batch_size)) for s in starts]


def measure_rendered(
    model: Model, ground: Ground, rows: Sequence[Row], settings: Settings
) -> dict[str, dict[str, float]]:
    """Row -> figures on rendered scenes of one object; all rows read the same attention."""
    measured = {row.name: Measured() for row in rows}
    for some in _batches(settings):
        side = model.config.image_side
        scenes = [ground.render(_FIRST_SCENE + i, side=side, num_objects=1) for i in some]
        maps = capture_attention(model, scenes, _NOISE_TIMESTEP, some.start)
        images = np.stack([scene.image for scene in scenes])
        truths, names = zip(*((scene.label_map, scene.classes) for scene in scenes), strict=True)
        score_batch(rows, measured, ground, (images, maps, truths, names))
    return {name: found.figures() for name, found in measured.items()}


def measure_generated(
    model: Model, ground: Ground, rows: Sequence[Row], settings: Settings
) -> dict[str, dict[str, float]]:
    """Row -> figures on generated images of one object; all rows have the same sampling."""
    sampling = rows[0].sampling
    if sampling.scheduler:
        json_config = scheduler_json(model.scheduler_config)
        model = model.with_config(scheduler=scheduler_config(json_config, kind=sampling.scheduler))
    model = model.with_config(capture=dataclasses.replace(model.capture, calls=sampling.calls))
    config = SamplingConfig(
        num_steps=sampling.steps or settings.num_steps,
        guidance_scale=settings.guidance_scale if sampling.guidance is None else sampling.guidance,
        guidance_interval=sampling.interval,
    )
    measured, seconds = {row.name: Measured() for row in rows}, []
    for some in _batches(settings):
        names = [classes_in_turn(ground.classes, index, 1) for index in some]
        prompts = [caption("a photo of", of_image) for of_image in names]
        options = {"rng_seed": _RNG_SEED, "first_index": some.start, "sampling": config}
        begun = time.perf_counter()
        pairs = jax.block_until_ready(generate(model, prompts, [list(n) for n in names], **options))
        seconds.append((time.perf_counter() - begun) / len(names))
        images = np.asarray(pairs.images)
        truths = ground.read_truth(images, names)
        score_batch(rows, measured, ground, (images, pairs.attention_maps, truths, names))
    figures = {name: found.figures() for name, found in measured.items()}
    return {name: row | {"sampling s": _warm(seconds)} for name, row in figures.items()}


def run(settings: Settings, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Measures what the folder lacks; returns the figures of every row, in order."""
    model = load_model(settings.model or settings.study)
    run_dir = pathlib.Path(settings.run_dir)
    require_settings(run_dir, settings.pins(model))
    ground = make_ground(settings, model.config.image_side)

    def stored(name: str, some: Sequence[Row], measure: Callable) -> dict[str, Any]:
        path, wanted = run_dir / f"{name}.json", {row.name: repr(row) for row in some}
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}
        if found["rows"] != wanted:
            seeded = with_seeds(model, some[0].seeds)
            found = {"rows": wanted, "figures": measure(seeded, ground, some, settings)}
            write_json(path, found)
            logging.info("%s: %d rows", name, len(some))
        return found["figures"]

    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.sampling, row.seeds), []).append(row)
    rendered, generated = {}, {}
    for (sampling, seeds), some in groups.items():
        ending = f" {seeds}" if seeds else ""
        if "rendered" in settings.sets and sampling == Sampling():  # one noised call, whatever else
            rendered |= stored(f"rendered{ending}", some, measure_rendered)
        if "generated" in settings.sets:
            name = "-".join(str(part).replace(" ", "") for part in sampling)
            generated |= stored(f"generated {name}{ending}", some, measure_generated)
    return [
        {
            "group": row.group,
            "name": row.name,
            "config": repr(row),
            "rendered": rendered.get(row.name),
            "generated": generated.get(row.name),
        }
        for row in rows
        if row.name in rendered or row.name in generated
    ]


def render_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: IoU with standard error on both sets, seconds per image."""
    lines = [
        "| setting | IoU, rendered | IoU, generated | s/image, sampling | s/image, masks |",
        "|---|---|---|---|---|",
    ]
    for row in results:
        rendered, generated = (row[name] for name in SETS)
        cells = [f"{x['iou']:.3f} ± {x['error']:.3f}" if x else "" for x in (rendered, generated)]
        cells.append(f"{generated['sampling s']:.3f}" if generated else "")
        cells.append(f"{(generated or rendered)['mask s']:.4f}")
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_plot(results: Sequence[Mapping[str, Any]]) -> str:
    """SVG: the IoU of every row on the sets that were measured, with standard errors."""
    sets = [name for name in SETS if any(row[name] for row in results)]
    bars = [
        Bar(row["group"], row["name"], tuple((row[s] or {}).get("iou") for s in sets),
            tuple((row[s] or {}).get("error", 0.0) for s in sets))
        for row in results
    ]  # fmt: skip
    titles = {"rendered": "rendered scenes", "generated": "generated images"}
    return draw_bars(bars, [titles[name] for name in sets], "IoU of single objects")


def _work(settings: Settings) -> None:
    results, run_dir = run(settings, settings.rows), pathlib.Path(settings.run_dir)
    write_results(run_dir / "ablation", results, render_table(results))
    (run_dir / "ablation.svg").write_text(render_plot(results), encoding="utf-8")


main = make_main("experiments.ablation", __doc__, Settings, _work)


if __name__ == "__main__":
    run_program(main)
