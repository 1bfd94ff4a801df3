"""What tells whether an image shows a class, and how good its mask is: statistics against truth.

    python -m experiments.stickers.mask_statistics --model=stickers

The images are rendered scenes, whose truth is exact, and their attention is that of one noised UNet
call. Classes are looked for that a scene shows, and others that it does not, in four ways:

    named     its caption names the object; three absent classes are looked for without being named
    half      its caption names one of two objects; the other and two absent ones are not named
    listed    a caption that lists the object and one absent class, in random order
    wrong     its caption names one absent class instead of the object

Presence is measured by the area under the ROC curve (AUC) of present against absent classes, and
the quality of masks by the rank correlation of a statistic with IoU, over present classes that the
caption names. Prints Markdown and writes mask_statistics.json.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from experiments.stickers.scenes import TrainingRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.mask_scores import METHODS, PUBLISHED, iou, masks_of
from experiments.training.run_folder import write_json
from experiments.training.scenes import Renderer, caption
from seediff_jax import AttentionMaps, MaskConfig, SegmentConfig, load_model
from seediff_jax.driver import cli
from seediff_jax.driver.stdio import run_program
from seediff_jax.masks.label_maps import class_scores, make_masks
from seediff_jax.models.model import Model
from seediff_jax.pipeline.segment_images import attend_images
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.sampling.inputs import ClassLists, image_prompts
from seediff_jax.settings import check_settings, setting, static_part

_FIRST_SCENE, _NUM_CLASSES, _BATCH, _AT_A_TIME = 98_000_000, 4, 8, 64
_CALLS = SegmentConfig(timesteps=(200,))
_LISTED_CALLS = SegmentConfig()
SETS = ("named", "half", "listed", "wrong")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure on."""

    model: str = setting("stickers", "Model to measure.", path=True)
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    output: str = setting("mask_statistics.json", "File of the results.", path=True)
    num_images: int = setting(96, "Number of scenes of each set, a multiple of 8.", least=8)

    def __post_init__(self):
        check_settings(self)


class Looked(NamedTuple):
    """A class that was looked for in a scene.

    Attributes:
        of: the set of the scene.
        image: of the scene.
        cross_attention: float32 `[layers, n0]` of the class.
        self_attention: of the scene, side -> float32 `[n, n]`.
        truth: bool `[H, W]`, where the scene shows the class.
        is_named: whether the caption names it.
    """

    of: str
    image: np.ndarray
    cross_attention: np.ndarray
    self_attention: dict[int, np.ndarray]
    truth: np.ndarray
    is_named: bool


def look(
    model: Model, render: Renderer, of: str, seeds: Sequence[int], rng: np.random.Generator
) -> list[Looked]:
    """Looks for classes in a batch of scenes of one set."""
    objects = 2 if of == "half" else 1
    side = model.config.image_side
    scenes = [render(seed, side=side, num_objects=objects) for seed in seeds]
    shown, unnamed, config = [scene.classes for scene in scenes], [()] * len(scenes), _CALLS
    if of == "named":
        named, prompts = shown, [scene.caption for scene in scenes]
        unnamed = [_absent(names, 3, rng) for names in shown]
    elif of == "half":
        named = [names[:1] for names in shown]
        unnamed = [(*names[1:], *_absent(names, 2, rng)) for names in shown]
        prompts = [caption("a photo of", names) for names in named]
    elif of == "listed":
        both = [(*names, *_absent(names, 1, rng)) for names in shown]
        named = [tuple(names[k] for k in rng.permutation(2)) for names in both]
        config, prompts = _LISTED_CALLS, image_prompts(named, _LISTED_CALLS.template)
    else:
        named = [_absent(names, 1, rng) for names in shown]
        prompts = [caption("a photo of", names) for names in named]
    lists = ClassLists(named, unnamed if any(unnamed) else None, num_classes=_NUM_CLASSES)
    images = np.stack([scene.image for scene in scenes])
    indices = [seed - _FIRST_SCENE for seed in seeds]
    maps = attend_images(model, images, prompts, lists, indices, config=config).attention_maps
    maps = jax.tree.map(np.asarray, maps)
    return [
        Looked(
            of,
            scene.image,
            maps.cross_attention[i, ..., k],
            {level: maps.self_attention[level][i] for level in maps.sides},
            scene.label_map == CLASSES.index(name) + 1,
            k < len(named[i]),
        )
        for i, scene in enumerate(scenes)
        for k, name in enumerate((*named[i], *unnamed[i]))
    ]


def _absent(shown: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    others = [name for name in CLASSES if name not in shown]
    return tuple(others[k] for k in rng.permutation(len(others))[:count])


def measure(some: Sequence[Looked]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Statistic -> float `[n]`, and the IoU of the masks with the truth, float `[n]`."""
    padded = [*some, *[some[0]] * (_AT_A_TIME - len(some))]
    cross = np.stack([each.cross_attention for each in padded])[..., None]
    first = padded[0].self_attention
    levels = {side: np.stack([each.self_attention[side] for each in padded]) for side in first}
    images, maps = np.stack([each.image for each in padded]), AttentionMaps(cross, levels)
    soft, found, presence = {}, {}, None
    for name, config in METHODS.items():
        made = masks_of(images, maps, config)
        soft[name], found[name] = np.asarray(made[0])[:, 0], made[1] == 1
    thresholds = PairSettings(masks=MaskConfig()).scalars().thresholds
    config = static_part(MaskConfig())
    made = make_masks(images, maps, thresholds, config=config)
    scores, presence = np.asarray(class_scores(made[0], made[1])), np.asarray(made[3])
    own, mask = soft[PUBLISHED], found[PUBLISHED]
    clipped = np.clip(own, 1e-6, 1 - 1e-6)
    entropy = -(clipped * np.log(clipped) + (1 - clipped) * np.log(1 - clipped))
    num_heads = levels[min(levels)].sum(axis=2).mean(axis=1)
    _, other, crossed, spread = METHODS
    values = {
        "score": scores[:, 0],
        "presence": presence[:, 0],
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


def auc(present: np.ndarray, absent: np.ndarray) -> float:
    """Area under the ROC curve: how often a present class has the larger value; ties count half."""
    difference = np.sign(present[:, None] - absent[None])
    return float((1 + difference.mean()) / 2)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's correlation; equal values have the mean of their ranks."""

    def ranks(values: np.ndarray) -> np.ndarray:
        ordered = np.sort(values)
        ends = [np.searchsorted(ordered, values, side) for side in ("left", "right")]
        return np.add(*ends)

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


def run(settings: Settings) -> dict[str, Mapping]:
    """Returns statistic -> set -> AUC and rank correlation, and presence threshold -> shares."""
    model, rng = load_model(settings.model), np.random.default_rng(0)
    render = TrainingRenderer(ensure_sprites(pathlib.Path(settings.sprites)))
    looked: list[Looked] = []
    for of in SETS:
        for start in range(0, settings.num_images, _BATCH):
            seeds = range(_FIRST_SCENE + start, _FIRST_SCENE + start + _BATCH)
            looked += look(model, render, of, seeds, rng)
    values, ious = collections.defaultdict(list), []
    for start in range(0, len(looked), _AT_A_TIME):
        columns, found = measure(looked[start : start + _AT_A_TIME])
        ious += found.tolist()
        for name, column in columns.items():
            values[name] += column.tolist()
    of, named = (np.array([each[k] for each in looked]) for k in (0, 5))
    is_present = np.array([each.truth.any() for each in looked])
    groups = {
        "named against unnamed and absent": of == "named",
        "unnamed: present against absent": (of == "half") & ~named,
        "listed: present against absent": of == "listed",
        "named: present against absent": ((of == "named") | (of == "wrong")) & named,
    }
    judged = {one: (of == one) & is_present & named for one in ("named", "half", "listed")}
    judged["all"] = np.logical_or.reduce([*judged.values()])
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
    presence = np.array(values["presence"])
    for threshold in (0.5, 0.7, 0.8, 0.85, 0.9):
        kept = presence >= threshold
        thresholds[f"{threshold:g}"] = {
            group: [float(kept[w & is_present].mean()), float(kept[w & ~is_present].mean())]
            for group, w in groups.items()
        }
    means = {one: float(np.array(ious)[w].mean()) for one, w in judged.items()}
    return {"statistics": table, "presence at": thresholds, "mean IoU": means}


def render_tables(results: Mapping[str, Mapping]) -> str:
    """Markdown: the statistics, and the shares that a presence threshold keeps."""
    lines = []
    for title, rows in (("statistic", results["statistics"]), ("presence", results["presence at"])):
        columns = next(iter(rows.values()))
        lines += [f"| {title} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        for name, row in rows.items():
            cells = [
                f"{value:.3f}"
                if isinstance(value, float)
                else " / ".join(f"{v:.0%}" for v in value)
                for value in row.values()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: float | Sequence[float]) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return " / ".join(f"{share:.0%}" for share in value)


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


if __name__ == "__main__":
    run_program(main)
