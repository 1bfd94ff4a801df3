"""What the evaluations of the embedded models share: judged images, masks, and a sheet to look at.

Everything is fixed beforehand: thresholds are the published ones of each method, and the seeds are
used nowhere else.
"""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.training.mask_scores import PUBLISHED, Scores, iou
from experiments.training.run_folder import write_json
from experiments.training.scenes import Scene, caption, stack_images
from seediff_jax import (
    SamplingConfig,
    decode_latents,
    encode_images,
    generate,
    generate_images,
    load_model,
)
from seediff_jax.models.model import Model
from seediff_jax.settings import check_settings, setting

ReadTruth = Callable[[np.ndarray, Sequence[tuple[str, ...]]], Sequence[np.ndarray]]
"""uint8 images `[b, h, w, 3]` and the classes in each -> their label maps, uint8 `[h, w]`."""

_BATCH, _SHEET_SEED, _SHEET_COLUMNS = 8, 20_262, 8
_RECOGNISED_BAR = 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What to measure."""

    model: str = setting("stickers", "Model to measure.", path=True)
    output: str | None = setting(None, "File to write the figures to, JSON.", path=True)
    num_steps: int = setting(25, "Sampling steps.", least=1)
    guidance_scale: float = setting(7.5, "Weight of the prompt.", least=0)
    singles: int = setting(152, "Number of generated images of one object.", least=1)
    pairs: int = setting(64, "Number of generated images of two objects.", least=1)
    rendered: int = setting(256, "Number of rendered images with exact masks.", least=1)
    sheet: str | None = setting(
        None,
        "File to draw 48 images to, PNG, in random order and without names; the answers go into "
        "a text file beside it.",
        path=True,
    )

    def __post_init__(self):
        check_settings(self)

    @property
    def sampling(self) -> SamplingConfig:
        """Settings of the generated images."""
        return SamplingConfig(num_steps=self.num_steps, guidance_scale=self.guidance_scale)


def classes_in_turn(classes: Sequence[str], index: int, objects: int) -> tuple[str, ...]:
    """Classes of image `index`: the first ones in turn, the second ones at changing distances."""
    count = len(classes)
    distance = 1 + index // count % max(1, count - 1)
    return tuple(classes[(index + k * distance) % count] for k in range(objects))


def measure_generated(
    model: Model,
    classes: tuple[str, ...],
    count: int,
    objects: int,
    *,
    classify: Callable[[np.ndarray], np.ndarray],
    read_truth: ReadTruth,
    rng_seed: int,
    sampling: SamplingConfig,
) -> dict[str, Any]:
    """Generates images of one or two objects; judges what they show, and compares masks.

    Args:
        model: the model.
        classes: that it knows; shown in turn.
        count: number of images.
        objects: number of objects in each.
        classify: uint8 images `[b, h, w, 3]` -> indices of classes `[b]`.
        read_truth: gives the label maps that masks are compared with.
        rng_seed: of the images.
        sampling: settings of the images.

    Returns:
        "images": `count`; "iou": method -> mean and classes, see `Scores.table`; of one object
        also "recognised": share of the images whose first class the classifier names, in "mean"
        and for each class.
    """
    scores, recognised = Scores(classes), collections.defaultdict(list)
    for start in range(0, count, _BATCH):
        some = range(start, min(count, start + _BATCH))
        names = [classes_in_turn(classes, index, objects) for index in some]
        pairs = generate(
            model,
            [caption("a photo of", of_image) for of_image in names],
            [list(of_image) for of_image in names],
            rng_seed=rng_seed,
            first_index=start,
            sampling=sampling,
        )
        images = np.asarray(pairs.images)
        scores.add(images, pairs.attention_maps, list(read_truth(images, names)), names)
        for found, of_image in zip(classify(images), names, strict=True):
            recognised[of_image[0]].append(classes[found] == of_image[0])
    result = {"images": count, "iou": scores.table()}
    if objects > 1:
        return result
    by_class = {name: float(np.mean(recognised[name])) for name in classes if recognised[name]}
    mean = float(np.mean(sum(recognised.values(), [])))
    return result | {"recognised": {"mean": mean} | by_class}


def round_trip(model: Model, scenes: Sequence[Scene]) -> np.ndarray:
    """The images of scenes, encoded and decoded by the VAE: uint8 `[b, h, w, 3]`."""
    decoded = decode_latents(model, encode_images(model, jnp.asarray(stack_images(scenes))))
    return (np.clip(np.asarray(decoded) * 127.5 + 127.5, 0, 255) + 0.5).astype(np.uint8)


def round_trip_iou(
    model: Model, scenes: Sequence[Scene], classes: tuple[str, ...], read_truth: ReadTruth
) -> float:
    """Mean IoU of the objects that `read_truth` finds in scenes after a round trip through the VAE.

    How much the truth of generated images can be trusted.
    """
    values = []
    for start in range(0, len(scenes), _BATCH):
        some = scenes[start : start + _BATCH]
        truths = read_truth(round_trip(model, some), [scene.classes for scene in some])
        for found, scene in zip(truths, some, strict=True):
            ids = [classes.index(name) + 1 for name in scene.classes]
            values += [iou(found == k, scene.label_map == k) for k in ids]
    return float(np.mean(values))


def write_sheet(
    path: pathlib.Path, model: Model, classes: Sequence[str], sampling: SamplingConfig, count=48
) -> None:
    """Draws images of single objects without their names, and writes the names beside it.

    Whoever looks at the sheet names the objects; the answers are in `path` with the ending .txt,
    one line per row of the sheet.
    """
    order = np.random.default_rng(_SHEET_SEED).permutation(count)
    names = [classes[k % len(classes)] for k in order]
    parts = []
    for start in range(0, count, _BATCH):
        prompts = [caption("a photo of", [name]) for name in names[start : start + _BATCH]]
        options = {"rng_seed": _SHEET_SEED, "first_index": start, "sampling": sampling}
        parts.append(np.asarray(generate_images(model, prompts, **options)))
    images = np.concatenate(parts)
    rows = [images[i : i + _SHEET_COLUMNS] for i in range(0, count, _SHEET_COLUMNS)]
    drawn = [np.concatenate([*row], axis=1) for row in rows]
    width = max(row.shape[1] for row in drawn)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in drawn]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(padded)).save(path)
    lines = [", ".join(names[i : i + _SHEET_COLUMNS]) for i in range(0, count, _SHEET_COLUMNS)]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")


def class_table(classes: Sequence[str], columns: dict[str, dict[str, float]]) -> str:
    """Markdown table with one row per class; a class that was not measured has a dash."""
    lines = [f"| class | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in classes:
        cells = [f"{column[name]:.2f}" if name in column else "-" for column in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report_recognised(single: dict[str, Any]) -> str:
    """Says which share of the images of one object is recognised, and the classes that lag."""
    shares = dict(single["recognised"])
    mean = shares.pop("mean")
    low = [f"{name} {share:.2f}" for name, share in shares.items() if share < _RECOGNISED_BAR]
    rest = f"below {_RECOGNISED_BAR}: {', '.join(low)}" if low else f"none below {_RECOGNISED_BAR}"
    return f"recognised: {mean:.3f} of {single['images']} images; classes {rest}"


def published(result: dict[str, Any]) -> dict[str, float]:
    """The IoU of each class with the published settings."""
    return result["iou"][PUBLISHED]


def report(
    settings: EvaluationSettings,
    *,
    classes: Sequence[str],
    measure: Callable[[Any, Model], dict[str, Any]],
    print_tables: Callable[[dict[str, Any]], None],
) -> None:
    """Measures a model, writes the figures and a sheet where asked for, and prints tables."""
    start, model = time.time(), load_model(settings.model)
    results = {
        "model": model.weights_hash,
        "num_steps": settings.num_steps,
        "guidance_scale": settings.guidance_scale,
        **measure(settings, model),
    }
    if settings.sheet:
        write_sheet(pathlib.Path(settings.sheet), model, classes, settings.sampling)
    results["seconds"] = round(time.time() - start)
    if settings.output:
        write_json(pathlib.Path(settings.output), results)
    print_tables(results)
