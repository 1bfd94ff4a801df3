"""Quality of images and masks of the embedded model "stickers": tables, printed and kept as JSON.

    python -m experiments.stickers.evaluate --output=results.json

Two judges are trained on rendered scenes, where the truth is exact: a classifier says whether a
generated image shows its class, and a segmenter gives the truth of its mask. Their own scores on
other rendered scenes are printed beside what they measure.
"""

import dataclasses
import functools
import pathlib

from experiments.stickers.scenes import TrainingRenderer, UnseenRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.evaluation import (
    EvaluationSettings,
    class_table,
    measure_generated,
    published,
    report,
    report_recognised,
    round_trip_iou,
)
from experiments.training.judges import (
    classifier_accuracy,
    held_out_scenes,
    train_classifier,
    train_segmenter,
)
from experiments.training.mask_scores import measure_rendered, print_rows
from experiments.training.program import make_main
from seediff_jax.driver.stdio import run_program
from seediff_jax.models.model import Model
from seediff_jax.settings import setting

_RNG_SEED = 20_261


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(EvaluationSettings):
    """What to measure, and with what."""

    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    judge_steps: int = setting(1500, "Training steps of each judge.", least=1)
    judge_scenes: int = setting(8000, "Rendered scenes that each judge is trained on.", least=1)
    judge_dir: str | None = setting(
        None, "Folder where the segmenter is kept, so that a stopped run resumes.", path=True
    )


def evaluate(settings: Settings, model: Model) -> dict:
    """Measures everything; the keys are those of the tables."""
    path = ensure_sprites(pathlib.Path(settings.sprites))
    render, rendered = TrainingRenderer(path), settings.rendered
    side = model.config.image_side
    training = {"steps": settings.judge_steps, "count": settings.judge_scenes, "side": side}
    classify = train_classifier(render, CLASSES, **training)
    kept = pathlib.Path(settings.judge_dir) if settings.judge_dir else None
    segment = train_segmenter(render, CLASSES, **training, path=kept)
    unseen = classifier_accuracy(classify, UnseenRenderer(path), CLASSES, rendered, side)
    scenes = held_out_scenes(render, rendered, side)
    results = {
        "classifier accuracy": classifier_accuracy(classify, render, CLASSES, rendered, side),
        "classifier accuracy, unseen style": unseen,
        "segmenter IoU": round_trip_iou(model, scenes, CLASSES, segment),
    }
    for style, renderer in (("", render), (", unseen style", UnseenRenderer(path))):
        for objects, word in ((1, "one object"), (2, "two objects")):
            table = measure_rendered(model, renderer, CLASSES, rendered, objects)
            results[f"rendered, {word}{style}"] = {"images": rendered, "iou": table}
    for objects, word, count in ((1, "one", settings.singles), (2, "two", settings.pairs)):
        results[f"generated, {word}"] = measure_generated(
            model, CLASSES, count, objects, classify=classify, read_truth=segment,
            rng_seed=_RNG_SEED + objects, sampling=settings.sampling,
        )  # fmt: skip
    return results


def print_tables(results: dict) -> None:
    """Prints the figures as Markdown."""
    sets = [name for name, found in results.items() if isinstance(found, dict) and "iou" in found]
    print_rows({f"{name} (n={results[name]['images']})": results[name]["iou"] for name in sets})
    print(f"\n{report_recognised(results['generated, one'])}")
    print(f"the classifier on held-out scenes: {results['classifier accuracy']:.3f}, on scenes of")
    print(f"the unseen style: {results['classifier accuracy, unseen style']:.3f}")
    print(f"IoU of the segmenter after a round trip: {results['segmenter IoU']:.3f}\n")
    single = results["generated, one"]
    columns = {"recognised": single["recognised"]}
    columns |= {f"IoU {name}": published(results[name]) for name in sets}
    print(class_table(CLASSES, columns))


work = functools.partial(report, classes=CLASSES, measure=evaluate, print_tables=print_tables)
main = make_main("experiments.stickers.evaluate", __doc__, Settings, work)


if __name__ == "__main__":
    run_program(main)
