"""IoU of the masks of every method, from the same captured attention."""

import collections
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.training.attention import capture_attention
from experiments.training.scenes import Renderer
from seediff_jax.array_typing import Array
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import make_masks
from seediff_jax.models.model import Model
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.settings import static_part

# Thresholds and settings are the published ones of each method.
METHODS = {
    "SeeDiff, published": MaskConfig(),
    "SeeDiff without background step": MaskConfig(background=False),
    "cross-attention only": MaskConfig(method="cross_attention"),
    "self-attention exponentiation": MaskConfig(method="exponentiation"),
}
PUBLISHED = "SeeDiff, published"
_FIRST_SCENE, _NOISE_TIMESTEP, _BATCH = 90_000_000, 200, 8


def masks_of(
    images: Array, maps: AttentionMaps, config: MaskConfig
) -> tuple[jax.Array, np.ndarray]:
    """Makes the masks of a batch, as `generate` does, from given attention.

    Args:
        images: uint8 `[b, H, W, 3]`.
        maps: attention with one column per class.
        config: how to make masks; its thresholds compile nothing again.

    Returns:
        Soft masks float32 `[b, c, H, W]` and label maps uint8 `[b, H, W]`, k + 1 for class k.
    """
    thresholds = PairSettings(masks=config).scalars().thresholds
    made = make_masks(jnp.asarray(images), maps, thresholds, config=static_part(config))
    return made[0], np.asarray(made[1])


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; 0 (missed) for an object that is nowhere in the image."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def object_ious(
    found: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    names: Sequence[tuple[str, ...]],
    classes: tuple[str, ...],
) -> list[tuple[str, float]]:
    """Class and IoU of every object of a batch.

    Args:
        found: label maps, k + 1 for the k-th class of the image.
        truths: label maps, k + 1 for class k of `classes`.
        names: the classes of each image.
        classes: of the study.
    """
    return [
        (name, iou(label == k + 1, truth == classes.index(name) + 1))
        for label, truth, of_image in zip(found, truths, names, strict=True)
        for k, name in enumerate(of_image)
    ]


class Scores:
    """IoU of every object, by method and class.

    Attributes:
        classes: names, in the order of their ids.
        methods: name -> how to make masks.
        values: method and class -> IoU of each object.
    """

    def __init__(self, classes: tuple[str, ...], methods: Mapping[str, MaskConfig] = METHODS):
        self.classes, self.methods = classes, methods
        self.values = collections.defaultdict(list)

    def add(
        self, images: Array, maps: AttentionMaps, truths, classes: Sequence[tuple[str, ...]]
    ) -> None:
        """Adds a batch: images, attention, true label maps and the class names of each image."""
        for method, config in self.methods.items():
            _, found = masks_of(images, maps, config)
            for name, value in object_ious(found, truths, classes, self.classes):
                self.values[method, name].append(value)

    def table(self) -> dict[str, dict[str, float]]:
        """Method -> mean over all objects, and the mean of every class."""
        rows = {}
        for method in self.methods:
            per_class = {name: self.values[method, name] for name in self.classes}
            rows[method] = {"mean": float(np.mean(sum(per_class.values(), [])))}
            rows[method] |= {name: float(np.mean(v)) for name, v in per_class.items() if v}
        return rows


def measure_rendered(
    model: Model, render: Renderer, classes: tuple[str, ...], count: int, num_objects: int | None
) -> dict[str, dict[str, float]]:
    """Reads the attention of one noised UNet call on rendered scenes; the truth is exact."""
    scores = Scores(classes)
    for start in range(0, count, _BATCH):
        seeds = range(_FIRST_SCENE + start, _FIRST_SCENE + min(count, start + _BATCH))
        side = model.config.image_side
        scenes = [render(seed, side=side, num_objects=num_objects) for seed in seeds]
        maps = capture_attention(model, scenes, _NOISE_TIMESTEP, start)
        images = np.stack([scene.image for scene in scenes])
        scores.add(images, maps, [scene.label_map for scene in scenes], [s.classes for s in scenes])
    return scores.table()


def print_rows(columns: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints the means as a Markdown table, one row per method and one column per set."""
    print("| method | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for method in METHODS:
        means = [f"{table[method]['mean']:.3f}" for table in columns.values()]
        print(f"| {method} | " + " | ".join(means) + " |")
