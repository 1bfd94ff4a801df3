"""What tells whether an image shows a class, and how good its mask is: statistics against truth.

    python -m experiments.stickers.mask_statistics --model=stickers
    python -m experiments.stickers.mask_statistics --generated=96

Classes are looked for that an image shows, and others that it does not, in the sets of rendered
scenes of `looked_for`. With --generated there is also a set of generated images. Its truth is that
of a segmenter, which is trained on rendered scenes first; what it finds in scenes after a round
trip through the VAE, of the classes that they show and of all others, is printed with the rest.

Presence is measured by the area under the ROC curve (AUC) of present against absent classes, and
the quality of masks by the rank correlation of a statistic with IoU, over present classes that the
prompt names. Prints Markdown and writes mask_statistics.json.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from experiments.stickers.looked_for import (
    FIRST_SCENE,
    GENERATED,
    SETS,
    Judge,
    Looked,
    look,
    look_generated,
    without_specks,
)
from experiments.stickers.scenes import TrainingRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.evaluation import round_trip
from experiments.training.judges import held_out_scenes, train_segmenter
from experiments.training.mask_scores import METHODS, PUBLISHED, iou, masks_of
from experiments.training.run_folder import write_json
from experiments.training.scenes import Renderer, Scene
from seediff_jax import AttentionMaps, MaskConfig, SamplingConfig, load_model
from seediff_jax.driver import cli
from seediff_jax.driver.stdio import run_program
from seediff_jax.masks.label_maps import class_scores, make_masks
from seediff_jax.models.model import Model
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.sampling.config import PRESENCE_DRAWS
from seediff_jax.settings import check_settings, setting, static_part

BY_ATTENTION, BY_DENOISING = "presence by attention", "presence by denoising"
_THRESHOLDS = {BY_ATTENTION: (0.5, 0.7, 0.8, 0.85, 0.9), BY_DENOISING: (0.1, 0.2, 0.3, 0.5)}
_BATCH, _AT_A_TIME, _JUDGED_SCENES = 8, 64, 64
_GENERATED = ("generated=NUMBER above 0", lambda settings: settings.generated > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure on."""

    model: str = setting("stickers", "Model to measure.", path=True)
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    output: str = setting("mask_statistics.json", "File of the results.", path=True)
    num_images: int = setting(96, "Number of scenes of each set.", least=1)
    generated: int = setting(0, "Number of generated images of two objects.", least=0)
    num_steps: int = setting(25, "Their sampling steps.", least=1, needs=_GENERATED)
    judge_steps: int = setting(
        1500, "Training steps of the segmenter that judges them.", least=1, needs=_GENERATED
    )
    judge_scenes: int = setting(
        8000, "Rendered scenes that it is trained on.", least=1, needs=_GENERATED
    )
    judge_dir: str | None = setting(
        None, "Folder where it is kept, so that a run resumes.", path=True, needs=_GENERATED
    )

    def __post_init__(self):
        check_settings(self)


def measure(some: Sequence[Looked]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Statistic -> float `[n]`, and the IoU of the masks with the truth, float `[n]`."""
    padded = [*some, *[some[0]] * (_AT_A_TIME - len(some))]
    cross = np.stack([each.cross_attention for each in padded])[..., None]
    first = padded[0].self_attention
    levels = {side: np.stack([each.self_attention[side] for each in padded]) for side in first}
    images, maps = np.stack([each.image for each in padded]), AttentionMaps(cross, levels)
    evidence = np.stack([each.evidence for each in padded])[..., None, :]
    soft, found = {}, {}
    for name, config in METHODS.items():
        made = masks_of(images, maps, config)
        soft[name], found[name] = np.asarray(made[0])[:, 0], made[1] == 1
    thresholds = PairSettings(masks=MaskConfig()).scalars().thresholds
    config = static_part(MaskConfig())
    made = make_masks(images, maps, thresholds, config=config)
    scores, presence = np.asarray(class_scores(made[0], made[1])), np.asarray(made[3])
    with_evidence = maps.replace(evidence=evidence)
    explained = np.asarray(make_masks(images, with_evidence, thresholds, config=config)[3])
    own, mask = soft[PUBLISHED], found[PUBLISHED]
    clipped = np.clip(own, 1e-6, 1 - 1e-6)
    entropy = -(clipped * np.log(clipped) + (1 - clipped) * np.log(1 - clipped))
    num_heads = levels[min(levels)].sum(axis=2).mean(axis=1)
    _, other, crossed, spread = METHODS
    values = {
        "score": scores[:, 0],
        BY_ATTENTION: presence[:, 0],
        BY_DENOISING: explained[:, 0],
        "mean attention to the word": cross.mean(axis=(1, 2, 3)) / num_heads,
        "margin of the soft mask, inside - outside": _inside(own, mask) - _inside(own, ~mask),
        "certainty (negative entropy) inside": -_inside(entropy, mask),
        "agreement with cross-attention": _agreement(mask, found[crossed]),
        "agreement with exponentiation": _agreement(mask, found[spread]),
        "agreement without the background step": _agreement(mask, found[other]),
        "agreement of the two baselines": _agreement(found[crossed], found[spread]),
        "area": mask.mean(axis=(1, 2)),
    }
    truth = np.stack([each.truth for each in padded])
    values = {name: column[: len(some)] for name, column in values.items()}
    return values, _agreement(mask, truth)[: len(some)]


def _inside(field: np.ndarray, where: np.ndarray) -> np.ndarray:
    count = np.maximum(where.sum(axis=(1, 2)), 1)
    return np.where(where, field, 0).sum(axis=(1, 2)) / count


def _agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.array([iou(one, other) for one, other in zip(first, second, strict=True)])


def auc(present: np.ndarray, absent: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a present class has the larger value; ties count half.

    None if either is empty.
    """
    if not (len(present) and len(absent)):
        return None
    difference = np.sign(present[:, None] - absent[None])
    return float((1 + difference.mean()) / 2)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation; equal values have the mean of their ranks.

    None if all values of either are equal.
    """
    if len({*first}) < 2 or len({*second}) < 2:
        return None

    def ranks(values: np.ndarray) -> np.ndarray:
        ordered = np.sort(values)
        ends = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
        return np.add(*ends)

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def look_everywhere(
    settings: Settings, model: Model, render: Renderer, judge: Judge | None
) -> list[Looked]:
    """Looks for classes in all sets."""
    rng = np.random.default_rng(0)
    looked: list[Looked] = []
    for of in SETS:
        for start in range(0, settings.num_images, _BATCH):
            seeds = range(FIRST_SCENE, FIRST_SCENE + settings.num_images)[start : start + _BATCH]
            looked += look(model, render, of, seeds, rng)
    sampling = SamplingConfig(num_steps=settings.num_steps, presence_draws=PRESENCE_DRAWS)
    for start in range(0, settings.generated, _BATCH):
        indices = range(settings.generated)[start : start + _BATCH]
        looked += look_generated(model, indices, rng, judge, sampling)
    return looked


def found_shares(model: Model, judge: Judge, scenes: Sequence[Scene]) -> list[float]:
    """Shares of the classes that scenes show, and of all others, that a judge finds."""
    found = [
        np.isin(range(1, len(CLASSES) + 1), truth)
        for truth in without_specks(judge(round_trip(model, scenes)))
    ]
    is_shown = np.array([[name in scene.classes for name in CLASSES] for scene in scenes])
    return [float(np.array(found)[which].mean()) for which in (is_shown, ~is_shown)]


def summarise(looked: Sequence[Looked]) -> dict[str, Mapping]:
    """Returns statistic -> set -> AUC and rank correlation, and presence threshold -> shares."""
    values, ious = collections.defaultdict(list), []
    for start in range(0, len(looked), _AT_A_TIME):
        columns, found = measure(looked[start : start + _AT_A_TIME])
        ious += found.tolist()
        for name, column in columns.items():
            values[name] += column.tolist()
    of = np.array([each.of for each in looked])
    named = np.array([each.is_named for each in looked])
    is_present = np.array([each.truth.any() for each in looked])
    groups = {
        "named against unnamed and absent": of == "named",
        "unnamed: present against absent": (of == "half") & ~named,
        "listed: present against absent": of == "listed",
        "named: present against absent": ((of == "named") | (of == "wrong")) & named,
    }
    judged = {one: (of == one) & is_present & named for one in ("named", "half", "listed")}
    judged["all"] = np.logical_or.reduce([*judged.values()])
    if GENERATED in of:
        groups["generated, named: drawn against not drawn"] = (of == GENERATED) & named
        groups["generated: drawn against not drawn"] = of == GENERATED
        judged[GENERATED] = (of == GENERATED) & is_present & named
    table, thresholds = {}, {}
    for name, column in values.items():
        array = np.array(column)
        row = {
            group: auc(array[w & is_present], array[w & ~is_present]) for group, w in groups.items()
        }
        row |= {
            f"IoU, {one}": rank_correlation(array[which], np.array(ious)[which])
            for one, which in judged.items()
        }
        table[name] = row
    for name, candidates in _THRESHOLDS.items():
        for threshold in candidates:
            kept = np.array(values[name]) >= threshold
            thresholds[f"{name}, {threshold:g}"] = {
                group: [_mean(kept[w & is_present]), _mean(kept[w & ~is_present])]
                for group, w in groups.items()
            }
    means = {one: _mean(np.array(ious)[w]) for one, w in judged.items()}
    return {"statistics": table, "presence at": thresholds, "mean IoU": means}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def run(settings: Settings) -> dict[str, Mapping]:
    """Returns what `summarise` does, and how well the judge does if there is one."""
    model, path = load_model(settings.model), ensure_sprites(pathlib.Path(settings.sprites))
    render, side = TrainingRenderer(path), model.config.image_side
    if not settings.generated:
        return summarise(look_everywhere(settings, model, render, None))
    segment = train_segmenter(
        render,
        CLASSES,
        steps=settings.judge_steps,
        count=settings.judge_scenes,
        side=side,
        path=pathlib.Path(settings.judge_dir) if settings.judge_dir else None,
    )

    def judge(images: np.ndarray) -> np.ndarray:
        return segment(images, [CLASSES] * len(images))

    shares = found_shares(model, judge, held_out_scenes(render, _JUDGED_SCENES, side))
    return summarise(look_everywhere(settings, model, render, judge)) | {"judge": shares}


def render_tables(results: Mapping[str, Mapping]) -> str:
    """Markdown: the statistics, and the shares that a presence threshold keeps."""
    lines = []
    for title, rows in (("statistic", results["statistics"]), ("presence", results["presence at"])):
        columns = next(iter(rows.values()))
        lines += [f"| {title} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        lines += [
            f"| {name} | {' | '.join(map(_cell, row.values()))} |" for name, row in rows.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _cell(value: float | None | Sequence[float | None]) -> str:
    if isinstance(value, Sequence):
        return " / ".join("-" if share is None else f"{share:.0%}" for share in value)
    return "-" if value is None else f"{value:.3f}"


def main(argv: Sequence[str]) -> int:
    """Measures; errors are one line each."""
    return cli.run_command(
        "experiments.stickers.mask_statistics", __doc__, {"Statistics": Settings}, argv, _work
    )


def _work(values: flags.FlagValues) -> None:
    settings = cli.read_settings(values, Settings)
    results = run(settings)
    write_json(pathlib.Path(settings.output), results)
    print(render_tables(results))
    print("mean IoU:", results["mean IoU"])
    if "judge" in results:
        shown, others = results["judge"]
        print(f"the judge finds {shown:.1%} of the classes in scenes, and {others:.1%} of others")


if __name__ == "__main__":
    run_program(main)
