"""Looks into a training run: samples of every class, and where the attention to a class falls.

    python -m experiments.training.watch --study=stickers --output=/tmp/watch.png

The attention needs one noised UNet call on rendered scenes. A class whose word is attended more
outside its object than inside is lost to every mask method: better to change the recipe then than
to train on. `--samples=0` leaves out the sheet of samples, which takes longer.
"""

import pathlib

import numpy as np
from absl import flags
from PIL import Image

from experiments.training import program
from experiments.training.attention import attention_inside_and_outside, capture_attention
from experiments.training.scenes import Renderer, caption
from experiments.training.study import load_study
from experiments.training.weights import load_params
from seediff_jax import SamplingConfig, generate
from seediff_jax.checkpoints.load import make_model
from seediff_jax.models.model import Model

_BATCH, _FIRST_SCENE = 8, 80_000_000


def class_attention(
    model: Model, render: Renderer, *, side: int, count: int, timestep: int
) -> dict[str, np.ndarray]:
    """Class -> `[layers, 2]`: mean head sum of its word, inside and outside of the object."""
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, _BATCH):
        seeds = range(_FIRST_SCENE + start, _FIRST_SCENE + start + _BATCH)
        scenes = [render(seed, side=side, num_objects=1) for seed in seeds]
        maps = capture_attention(model, scenes, timestep, start)
        for scene, layers in zip(scenes, attention_inside_and_outside(maps, scenes), strict=True):
            found.setdefault(scene.classes[0], []).append(layers)
    return {name: np.mean(found[name], axis=0) for name in sorted(found)}


def sample_classes(model: Model, classes: tuple[str, ...], count: int, side: int) -> np.ndarray:
    """Draws `count` images, the classes in turn, and their masks below: uint8 `[h, w, 3]`."""
    names = [classes[i % len(classes)] for i in range(count)]
    rows = []
    for start in range(0, count, _BATCH):
        some = (names * 2)[start : start + _BATCH]
        prompts = [caption("a photo of", [name]) for name in some]
        names_of_images = [[name] for name in some]
        sampling = SamplingConfig(num_steps=25, height=side, width=side)
        pairs = generate(
            model, prompts, names_of_images, rng_seed=1, first_index=start, sampling=sampling
        )
        masks = np.repeat(np.uint8(255) * (np.asarray(pairs.label_maps)[..., None] > 0), 3, axis=-1)
        rows += [np.concatenate(list(row), axis=1) for row in (np.asarray(pairs.images), masks)]
    return np.concatenate(rows)


def main(_) -> None:
    """Prints one line per class and draws the sheet."""
    study, side = load_study(_STUDY.value), int(_SIDE.value)
    run_dir = pathlib.Path(_RUN_DIR.value or f"runs/{study.name}")
    config, params = load_params(study, run_dir)
    model = make_model(config, params, model_id=study.name)
    print("head-summed attention inside/outside, layers", ", ".join(model.capture.cross_layers))
    render = study.make_renderer(run_dir)
    found = class_attention(model, render, side=side, count=_COUNT.value, timestep=_TIMESTEP.value)
    for name, layers in found.items():
        print(f"{name:12}", "  ".join(f"{a:.3f}/{b:.3f}" for a, b in layers))
    if _SAMPLES.value:
        sheet = sample_classes(model, study.classes, _SAMPLES.value, side)
        Image.fromarray(sheet).save(_OUTPUT.value)


if __name__ == "__main__":
    _STUDY = flags.DEFINE_string("study", "stickers", "Data set and recipe.")
    _RUN_DIR = flags.DEFINE_string("run_dir", None, "Folder of the run; default runs/STUDY.")
    _SIDE = flags.DEFINE_enum("side", "128", ["64", "128"], "Edge of the images, pixels.")
    _COUNT = flags.DEFINE_integer("count", 64, "Rendered scenes of one object.", lower_bound=1)
    _TIMESTEP = flags.DEFINE_integer("timestep", 400, "Noise level.", lower_bound=0)
    _SAMPLES = flags.DEFINE_integer("samples", 24, "Images on the sheet.", lower_bound=0)
    _OUTPUT = flags.DEFINE_string("output", "/tmp/watch.png", "The sheet.")
    program.run(main)
