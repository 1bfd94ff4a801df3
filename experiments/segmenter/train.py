"""Trains a segmenter on a folder of images and masks, and measures it on another.

    python -m experiments.segmenter.train --data=OUTPUT --run_dir=runs/segmenter

The same command resumes, also after `kill -9`. Folders are those of VOC and COCO as they are
downloaded, or datasets of this project.
"""

import dataclasses
import pathlib

from experiments.segmenter.checkpoints import write_weights
from experiments.segmenter.config import DTYPES, RECIPES, SegmenterConfig
from experiments.segmenter.data import require_labels
from experiments.segmenter.evaluate import load_run, measure
from experiments.segmenter.folders import open_samples, require_labels_of
from experiments.segmenter.pseudo_labels import write_pseudo_labels
from experiments.segmenter.resnet import read_backbone
from experiments.segmenter.trainer import Variables, init_variables, train
from experiments.training.program import make_main
from experiments.training.run_folder import require_settings, write_json
from seediff_jax.driver.stdio import run_program
from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What to train on, and how."""

    data: str | None = setting(
        None,
        "Folder to train on: VOC2012, COCO, or the output of seediff.",
        path=True,
    )
    split: str = setting("train", "Samples to train on: train, val, or a list of VOC.")
    test_data: str | None = setting(
        None, "Folder to measure on; by default that of data.", path=True
    )
    test_split: str = setting("val", "Samples to measure on.")
    stuff: bool = setting(False, "Read the stuff of COCO, too: 91 more classes.")
    recipe: str = setting("laptop", "Recipe.", choices=tuple(RECIPES))
    network: str | None = setting(
        None, "Network in place of the recipe's.", choices=("resnet50", "resnet101")
    )
    backbone: str | None = setting(
        None,
        "safetensors file with ImageNet weights of the recipe's ResNet, in the names of "
        "transformers, torchvision or mmsegmentation; by default weights are random.",
        path=True,
    )
    teacher: str | None = setting(
        None,
        "Folder of a finished training run, whose predictions replace the masks of data "
        "(self-training).",
        path=True,
    )
    min_confidence: float = setting(
        0.0, "Pixels that the teacher is less sure of become 255.", least=0, most=1
    )
    run_dir: str = setting("runs/segmenter", "Folder of checkpoints and results.", path=True)
    steps: int | None = setting(None, "Training steps; by default those of the recipe.", least=1)
    batch_size: int | None = setting(
        None, "Images per step; by default those of the recipe.", least=1
    )
    dtype: str | None = setting(
        None,
        "Dtype of the network; by default the recipe's.",
        choices=DTYPES,
    )
    rng_seed: int = setting(0, "Seed of weights, batches and augmentations.", least=0)

    def __post_init__(self):
        check_settings(self)
        if self.data is None:
            raise UserError("data= is missing; give a folder in the layout of VOC, COCO or seediff")
        if self.min_confidence and self.teacher is None:
            raise UserError(f"min_confidence={self.min_confidence} needs teacher=, which it is of")

    def config(self, num_labels: int) -> SegmenterConfig:
        """The recipe with the changes of the command line."""
        names = ("network", "steps", "batch_size", "dtype")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return dataclasses.replace(RECIPES[self.recipe], num_labels=num_labels, **changes)


def start_variables(config: SegmenterConfig, rng_seed: int, backbone: str | None) -> Variables:
    """Random weights, with those of a backbone's file in their place.

    Raises:
        UserError: the recipe has no ResNet, or the file is of another one.
    """
    variables = init_variables(config, rng_seed)
    if backbone is None:
        return variables
    if config.network == "unet":
        raise UserError(f"backbone={backbone}: the network of this recipe has no backbone")
    expected = {kind: tree["backbone"] for kind, tree in variables.items()}
    found = read_backbone(pathlib.Path(backbone), expected)
    return {kind: {**tree, "backbone": found[kind]} for kind, tree in variables.items()}


def _work(settings: TrainSettings) -> None:
    samples = open_samples(pathlib.Path(settings.data), settings.split, settings.stuff)
    test_folder = pathlib.Path(settings.test_data or settings.data)
    tests = open_samples(test_folder, settings.test_split, settings.stuff)
    names = samples.label_names
    require_labels_of(tests, names, str(samples.folder))
    config = settings.config(len(names))
    run_dir, rng_seed = pathlib.Path(settings.run_dir), settings.rng_seed
    teacher = load_run(pathlib.Path(settings.teacher)) if settings.teacher else None
    if teacher:
        require_labels_of(samples, teacher.label_names, settings.teacher)
    start = start_variables(config, rng_seed, settings.backbone)
    for each in (samples, tests):
        require_labels(each, config.num_labels)
    pins = {"data": str(pathlib.Path(settings.data).resolve()), "labels": names}
    pins |= {k: getattr(settings, k) for k in ("split", "rng_seed", "backbone", "min_confidence")}
    pins["teacher"] = settings.teacher
    require_settings(run_dir, dataclasses.asdict(config) | pins)
    if teacher:
        samples = write_pseudo_labels(
            teacher.config, teacher.variables, samples, run_dir / "pseudo_labels",
            settings.min_confidence,
        )  # fmt: skip
    path = run_dir / "checkpoints"
    variables = train(config, samples, path, rng_seed=rng_seed, variables=start)
    write_weights(run_dir / "weights.safetensors", variables)
    result = measure(config, variables, tests)
    write_json(run_dir / "results.json", result)
    print(f"mean IoU {result['mean IoU']:.4f} on {len(tests)} images of {settings.test_split}")


main = make_main("experiments.segmenter.train", __doc__, TrainSettings, _work)


if __name__ == "__main__":
    run_program(main)
