"""What cheaper sampling costs in masks: FLOPs per image against IoU and recognised images.

    python -m experiments.fast_settings --study=shapes --run_dir=runs/fast

Rows differ by the number of steps, the sampler, the part of the run that is guided, and the part
whose attention is averaged. All start from the same noise, and each is compared with the published
settings image by image. The cost is the FLOPs of the compiled sampling program, which need no quiet
machine; on a chip that computes at its peak, images per second are their inverse. The images per
second are those of this machine.

Writes fast.md and fast.json. Each row is stored when it is done, and not sampled again. `study`,
the truth of masks, and the judges are those of `experiments.ablation`.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments.ablation import Ground, Sampling, make_ground
from experiments.ablation import Settings as AblationSettings
from experiments.benchmarks.hlo_flops import count_flops
from experiments.benchmarks.measuring import markdown_table
from experiments.training.evaluation import classes_in_turn
from experiments.training.judges import train_classifier
from experiments.training.mask_scores import masks_of, object_ious
from experiments.training.program import make_main
from experiments.training.run_folder import require_settings, write_results
from experiments.training.scenes import caption
from seediff_jax import MaskConfig, SamplingConfig, load_model
from seediff_jax.driver.stdio import run_program
from seediff_jax.errors import UserError
from seediff_jax.models.model import Model
from seediff_jax.sampling.inputs import pair_inputs
from seediff_jax.sampling.sampler import sample
from seediff_jax.schedulers.config import scheduler_config, scheduler_json
from seediff_jax.settings import check_settings, setting

_RNG_SEED = 20_290
_MIDDLE, _LATER = (0.2, 0.8), (0.5, 1.0)
_DPM = "dpmsolver_multistep"

PUBLISHED = "published, 50 steps"
ROWS = {
    PUBLISHED: Sampling(50),
    "10 steps": Sampling(10),
    "15 steps": Sampling(15),
    "DPM-Solver++, 10 steps": Sampling(10, scheduler=_DPM),
    "DPM-Solver++, 15 steps": Sampling(15, scheduler=_DPM),
    "15 steps, later half": Sampling(15, calls=_LATER),
    "DPM-Solver++, 15 steps, later half": Sampling(15, scheduler=_DPM, calls=_LATER),
    "DPM-Solver++, 10 steps, later half": Sampling(10, scheduler=_DPM, calls=_LATER),
    "10 steps, later half": Sampling(10, calls=_LATER),
    "20 steps, guided from 0.2 to 0.8": Sampling(20, interval=_MIDDLE),
    "LCM sampler, 4 steps, not guided": Sampling(4, 1.0, "lcm"),
    "LCM sampler, 8 steps, not guided": Sampling(8, 1.0, "lcm"),
    "Euler, 15 steps": Sampling(15, scheduler="euler"),
    "20 steps": Sampling(20),
    "25 steps": Sampling(25),
    "25 steps, later half": Sampling(25, calls=_LATER),
    "25 steps, guided from 0.2 to 0.8": Sampling(25, interval=_MIDDLE),
    "50 steps, guided from 0.2 to 0.8": Sampling(50, interval=_MIDDLE),
    "50 steps, later half": Sampling(50, calls=_LATER),
    "100 steps": Sampling(100),
}
"""The rows in the order in which they are sampled; adding one is one line."""


def slug(name: str) -> str:
    """The name of a row as files and flags have it."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower())


LEAST_SAVED, MOST_LOST = 3.0, 0.01
"""A row is fast if it has this many times fewer FLOPs and loses at most this much IoU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, and on how many images."""

    study: str = setting("shapes", "Data set of the model.", choices=("shapes", "stickers"))
    model: str | None = setting(
        None, "Model to measure; by default the embedded one of the study.", path=True
    )
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings of stickers.", path=True)
    run_dir: str = setting("runs/fast", "Folder of the results.", path=True)
    num_images: int = setting(64, "Number of images per row.", least=2)
    guidance_scale: float = setting(7.5, "Guidance, where a row does not say.", least=0)
    batch_size: int = setting(8, "Images that are generated at once.", least=1)
    rows: tuple[str, ...] = setting(
        tuple(map(slug, ROWS)),
        "Rows to measure; the published one is always among them.",
        choices=tuple(map(slug, ROWS)),
    )
    judge_steps: int = setting(1500, "Training steps of each judge.", least=1)
    judge_scenes: int = setting(4000, "Scenes that each judge is trained on.", least=1)

    def __post_init__(self):
        check_settings(self)
        if self.num_images % self.batch_size:
            raise UserError(
                f"num_images={self.num_images} must be a multiple of batch_size={self.batch_size}: "
                "every row is one compiled program"
            )

    def pins(self, model: Model) -> dict[str, Any]:
        """What results depend on."""
        loose = {"model", "sprites", "run_dir", "rows"}
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in loose}
        return values | {"weights_hash": model.weights_hash}

    def ground(self, side: int) -> Ground:
        """The classes, scenes and truth of the study, of images of `side` pixels."""
        names = ("study", "sprites", "run_dir", "judge_steps", "judge_scenes")
        return make_ground(AblationSettings(**{k: getattr(self, k) for k in names}), side)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row: what was sampled, and what it cost.

    Attributes:
        images: uint8 `[n, H, W, 3]`, of one object each.
        ious: float64 `[n]`, of the object's mask.
        flops: of the sampling program, per image.
        seconds: of the sampling program, per image; the median of the batches.
    """

    images: np.ndarray
    ious: np.ndarray
    flops: float
    seconds: float


def names_of(ground: Ground, count: int) -> list[tuple[str, ...]]:
    """The class of each image."""
    return [classes_in_turn(ground.classes, index, 1) for index in range(count)]


def measure(model: Model, ground: Ground, row: Sampling, settings: Settings) -> Measured:
    """Samples the images of a row and makes their masks, with the published settings."""
    if row.scheduler:
        json_config = scheduler_json(model.scheduler_config)
        model = model.with_config(scheduler=scheduler_config(json_config, kind=row.scheduler))
    model = model.with_config(capture=dataclasses.replace(model.capture, calls=row.calls))
    guidance = settings.guidance_scale if row.guidance is None else row.guidance
    config = SamplingConfig(
        num_steps=row.steps, guidance_scale=guidance, guidance_interval=row.interval
    )
    traced = {"rng_seed": np.uint32(_RNG_SEED), "guidance_scale": np.float32(guidance)}
    names, compiled, images, ious = names_of(ground, settings.num_images), None, [], []
    seconds = []
    for start in range(0, settings.num_images, settings.batch_size):
        some = range(start, start + settings.batch_size)
        classes = names[start : some.stop]
        prompts = [caption("a photo of", of_image) for of_image in classes]
        inputs = pair_inputs(model, prompts, [list(each) for each in classes], some, config)
        compiled = compiled or sample.lower(model, inputs, **traced, config=config).compile()
        begun = time.perf_counter()
        samples = jax.block_until_ready(compiled(model, inputs, **traced))
        seconds.append((time.perf_counter() - begun) / settings.batch_size)
        images.append(np.asarray(samples.images))
        _, found = masks_of(images[-1], samples.attention_maps, MaskConfig())
        truths = ground.read_truth(images[-1], classes)
        ious += [value for _, value in object_ious(found, truths, classes, ground.classes)]
    flops = count_flops(compiled.as_text()) / settings.batch_size
    return Measured(np.concatenate(images), np.array(ious), flops, float(np.median(seconds)))


def stored(path: pathlib.Path) -> Measured:
    """Reads a row that `keep` wrote."""
    with np.load(path) as file:
        return Measured(file["images"], file["ious"], float(file["flops"]), float(file["seconds"]))


def keep(path: pathlib.Path, row: Measured) -> None:
    """Writes a row; a kill leaves no half of it."""
    aside = path.with_name(f"part-{path.name}")
    np.savez(aside, **dataclasses.asdict(row))
    aside.replace(path)


def compare(rows: Mapping[str, Measured], recognised: Mapping[str, float]) -> list[dict[str, Any]]:
    """Figures of each row beside PUBLISHED, cheapest first.

    "difference" is the mean difference of IoU on the same images, "error" its standard error.
    """
    base = rows[PUBLISHED]
    table = []
    for name, row in sorted(rows.items(), key=lambda item: item[1].flops):
        difference = row.ious - base.ious
        error = difference.std(ddof=1) / len(difference) ** 0.5
        table.append(
            {
                "name": name,
                "flops": row.flops,
                "fewer": base.flops / row.flops,
                "seconds": row.seconds,
                "iou": float(row.ious.mean()),
                "difference": float(difference.mean()),
                "error": float(error),
                "recognised": recognised[name],
            }
        )
    return table


def fast_rows(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the rows that save LEAST_SAVED and lose at most MOST_LOST."""
    return [
        row["name"]
        for row in table
        if row["fewer"] >= LEAST_SAVED and row["difference"] >= -MOST_LOST
    ]


def render_table(table: Sequence[Mapping[str, Any]]) -> str:
    """Formats the figures as Markdown."""
    header = ("sampling", "GFLOP per image", "times fewer", "images/s", "IoU")
    header += ("IoU, relative to published", "recognised")
    rows = (
        (
            row["name"],
            f"{row['flops'] / 1e9:,.0f}",
            f"{row['fewer']:.2f}",
            f"{1 / row['seconds']:.2f}",
            f"{row['iou']:.3f}",
            f"{row['difference']:+.3f} ± {row['error']:.3f}",
            f"{row['recognised']:.0%}",
        )
        for row in table
    )
    return markdown_table(header, rows)


def run(settings: Settings, rows: Mapping[str, Sampling] = ROWS) -> list[dict[str, Any]]:
    """Measures what the folder lacks; returns the figures of every row."""
    model, run_dir = load_model(settings.model or settings.study), pathlib.Path(settings.run_dir)
    require_settings(run_dir, settings.pins(model))
    side = model.config.image_side
    ground, measured = settings.ground(side), {}
    for name, row in rows.items():
        path = run_dir / f"{slug(name)}.npz"
        if not path.exists():
            keep(path, measure(model, ground, row, settings))
            logging.info("%s: done", name)
        measured[name] = stored(path)
    judge = {"steps": settings.judge_steps, "count": settings.judge_scenes, "side": side}
    classify = train_classifier(ground.render, ground.classes, **judge)
    shown = [ground.classes.index(name) for (name,) in names_of(ground, settings.num_images)]
    recognised = {
        name: float(np.mean(classify(row.images) == shown)) for name, row in measured.items()
    }
    return compare(measured, recognised)


def _work(settings: Settings) -> None:
    chosen = {slug(PUBLISHED), *settings.rows}
    table = run(settings, {name: row for name, row in ROWS.items() if slug(name) in chosen})
    text = f"{render_table(table)}\n\nfast: {', '.join(fast_rows(table)) or 'none'}"
    write_results(pathlib.Path(settings.run_dir) / "fast", table, text)


main = make_main("experiments.fast_settings", __doc__, Settings, _work)


if __name__ == "__main__":
    run_program(main)
