"""Measures masks and images of the embedded model; prints a table and writes it as JSON.

    python -m experiments.shapes.evaluate --output=results.json

All methods read the same captured attention of the same images. IoU compares an object's mask with
its truth. The truth of a generated image is read from its colours, and that reading is itself
measured on rendered scenes after a round trip through the VAE.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from experiments.shapes.render import read_label_map, render_scene
from experiments.training.evaluation import (
    EvaluationSettings,
    class_table,
    measure_generated,
    published,
    report,
    report_recognised,
    round_trip_iou,
)
from experiments.training.judges import classifier_accuracy, held_out_scenes, train_classifier
from experiments.training.mask_scores import measure_rendered, print_rows
from experiments.training.program import make_main
from seediff_jax.driver.stdio import run_program
from seediff_jax.models.model import Model
from seediff_jax.prompts.class_lists import SHAPES_CLASSES
from seediff_jax.settings import setting

_RNG_SEED = 20_260


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EvaluationSettings):
    """What to measure."""

    model: str = setting("shapes", "Model to measure.", path=True)
    num_steps: int = setting(50, "Sampling steps.", least=1)
    singles: int = setting(128, "Number of generated images of one object.", least=1)


def read_truth(images: np.ndarray, names: Sequence[tuple[str, ...]]) -> list[np.ndarray]:
    """Label maps of images, read from their colours."""
    return [read_label_map(image, classes) for image, classes in zip(images, names, strict=True)]


def evaluate(settings: Settings, model: Model) -> dict:
    """Measures everything; the keys are those of the table."""
    classes, rendered = SHAPES_CLASSES, settings.rendered
    classify = train_classifier(render_scene, classes)
    accuracy = classifier_accuracy(classify, render_scene, classes, rendered)
    results = {"classifier accuracy": accuracy}
    for objects, word, count in (
        (1, "one object", settings.singles),
        (2, "two objects", settings.pairs),
    ):
        results[word] = measure_generated(
            model, classes, count, objects, classify=classify, read_truth=read_truth,
            rng_seed=_RNG_SEED + objects, sampling=settings.sampling,
        )  # fmt: skip
    results["rendered"] = {
        "images": rendered,
        "iou": measure_rendered(model, render_scene, classes, rendered, None),
    }
    scenes = held_out_scenes(render_scene, rendered)
    results["colour reading"] = round_trip_iou(model, scenes, classes, read_truth)
    return results


def print_tables(results: dict) -> None:
    """Prints the results as Markdown."""
    sets = ("one object", "two objects", "rendered")
    print_rows({f"{s} (n={results[s]['images']})": results[s]["iou"] for s in sets})
    print("\nSeeDiff, published, by class:\n")
    print(class_table(SHAPES_CLASSES, {name: published(results[name]) for name in sets}))
    print(f"\n{report_recognised(results['one object'])}")
    print(f"classifier on rendered scenes: {results['classifier accuracy']:.3f}")
    print(f"IoU of the truth read from colour: {results['colour reading']:.3f}")


work = functools.partial(
    report, classes=SHAPES_CLASSES, measure=evaluate, print_tables=print_tables
)
main = make_main("experiments.shapes.evaluate", __doc__, Settings, work)


if __name__ == "__main__":
    run_program(main)
