"""Measures a trained segmenter on a folder: IoU of every class, as a table and as JSON.

python -m experiments.segmenter.evaluate --run_dir=runs/segmenter --data=VOCdevkit/VOC2012
"""

import dataclasses
import json
import pathlib
from typing import Any

from experiments.segmenter.checkpoints import read_weights
from experiments.segmenter.config import SegmenterConfig
from experiments.segmenter.data import LabelledSamples, require_labels
from experiments.segmenter.folders import open_samples, require_labels_of
from experiments.segmenter.predict import evaluate
from experiments.segmenter.trainer import Variables, variable_shapes
from experiments.training.program import make_main
from experiments.training.run_folder import write_json
from seediff_jax.dataset.iou import mean_iou, name_ious
from seediff_jax.driver.stdio import run_program
from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A finished training run.

    Attributes:
        config: its recipe.
        label_names: names of the labels, background first.
        variables: its averaged weights.
    """

    config: SegmenterConfig
    label_names: tuple[str, ...]
    variables: Variables


def load_run(run_dir: pathlib.Path) -> TrainedRun:
    """Reads what `experiments.segmenter.train` wrote.

    Raises:
        UserError: the folder is not that of a finished run, or its weights are of another network.
    """
    path = run_dir / "settings.json"
    if not path.is_file():
        raise UserError(f"{path} is missing; {run_dir} is not the folder of a training run")
    stored = json.loads(path.read_text(encoding="utf-8"))
    names = [field.name for field in dataclasses.fields(SegmenterConfig)]
    if missing := [name for name in (*names, "labels") if name not in stored]:
        raise UserError(f"{path} lacks {missing[0]}; another version wrote it, or another program")
    values = {k: tuple(v) if isinstance(v := stored[k], list) else v for k in names}
    config = SegmenterConfig(**values)
    variables = read_weights(run_dir / "weights.safetensors", variable_shapes(config))
    return TrainedRun(config, tuple(stored["labels"]), variables)


def measure(
    config: SegmenterConfig, variables: Variables, samples: LabelledSamples
) -> dict[str, Any]:
    """Mean IoU, and the IoU of each label by name; None for labels that do not occur."""
    confusion = evaluate(config, variables, samples)
    return {"mean IoU": mean_iou(confusion), "IoU": name_ious(samples.label_names, confusion)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What to measure, and on what."""

    run_dir: str = setting("runs/segmenter", "Folder of the training run.", path=True)
    data: str | None = setting(
        None, "Folder to measure on: VOC2012, COCO, or the output of seediff.", path=True
    )
    split: str = setting("val", "Samples to measure on: train, val, or a list of VOC.")
    stuff: bool = setting(False, "Read the stuff of COCO, too: 91 more classes.")
    output: str | None = setting(None, "File to write the figures to, JSON.", path=True)

    def __post_init__(self):
        check_settings(self)
        if self.data is None:
            raise UserError("data= is missing; give a folder in the layout of VOC, COCO or seediff")


def _work(settings: EvaluateSettings) -> None:
    samples = open_samples(pathlib.Path(settings.data), settings.split, settings.stuff)
    run = load_run(pathlib.Path(settings.run_dir))
    require_labels_of(samples, run.label_names, settings.run_dir)
    require_labels(samples, run.config.num_labels)
    result = measure(run.config, run.variables, samples)
    if settings.output:
        write_json(pathlib.Path(settings.output), result)
    print("| class | IoU, % |\n|---|---|")
    for name, value in result["IoU"].items():
        print(f"| {name} | {'-' if value is None else format(100 * value, '.1f')} |")
    print(f"| mean of {len(samples)} images of {settings.split} | {100 * result['mean IoU']:.1f} |")


main = make_main("experiments.segmenter.evaluate", __doc__, EvaluateSettings, _work)


if __name__ == "__main__":
    run_program(main)
