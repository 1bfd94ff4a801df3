"""Looks into a training run: does the attention to a class word fall on the object of that class?

    python -m experiments.shapes.watch --run_dir=runs/shapes

One noised UNet call on rendered scenes, no sampling, so it is cheap enough to run from the first
minutes on. A class whose word is attended more outside its object than inside is lost to every mask
method: better to change the recipe then than to train on.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.shapes import train
from experiments.shapes.render import render_scene
from seediff_jax.model import encode_images, encode_text, make_model, predict_noise
from seediff_jax.model_config import init_params
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.prompts import SHAPES_CLASSES
from seediff_jax.schedulers import add_noise, make_noise_schedule
from seediff_jax.tokenizer import class_token_mask

_COUNT = flags.DEFINE_integer("count", 64, "Rendered scenes of one object.", lower_bound=1)
_TIMESTEP = flags.DEFINE_integer("timestep", 400, "Noise level.", lower_bound=0, upper_bound=999)
_FIRST_SCENE = 80_000_000


def load_average(run_dir: pathlib.Path):
    """The model of a run's averaged weights so far."""
    config = train.make_config(run_dir)
    params = init_params(config, jax.random.key(0))
    trained = {key: params[key] for key in ("text_encoder", "unet")}
    params = train.restore_ema(run_dir / "unet", trained) | train.restore_ema(
        run_dir / "vae", {"vae": params["vae"]}
    )
    return make_model(config, params, model_id=str(run_dir))


def class_attention(model, image_side: int) -> dict[str, np.ndarray]:
    """Class -> `[layers, 2]`: mean head sum of its word, inside and outside of the object."""
    scenes = [
        render_scene(_FIRST_SCENE + i, side=image_side, num_objects=1) for i in range(_COUNT.value)
    ]
    images = np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1
    prompts = [scene.caption for scene in scenes]
    mask = class_token_mask(model.tokenizer, prompts, [list(s.classes) for s in scenes])
    timesteps = jnp.full((len(scenes),), _TIMESTEP.value)
    latents = encode_images(model, jnp.asarray(images))
    noise = jax.random.normal(jax.random.key(0), latents.shape)
    _, maps = predict_noise(
        model,
        add_noise(make_noise_schedule(model.scheduler_config), latents, noise, timesteps),
        timesteps,
        encode_text(model, model.tokenizer.encode(prompts)),
        TokenColumns(jnp.asarray(mask.astype(np.float32).swapaxes(1, 2))),
    )
    attention = np.asarray(maps.cross_attention)[..., 0]
    side = round(attention.shape[-1] ** 0.5)
    found = {name: [] for name in SHAPES_CLASSES}
    for scene, layers in zip(scenes, attention, strict=True):
        blocks = (scene.label_map > 0).reshape(side, image_side // side, side, -1)
        inside = blocks.mean(axis=(1, 3)).reshape(-1) > 0.5
        means = np.stack([layers[:, inside].mean(-1), layers[:, ~inside].mean(-1)], axis=-1)
        found[scene.classes[0]].append(means)
    return {name: np.mean(values, axis=0) for name, values in found.items() if values}


def main(_) -> None:
    """Prints a line a class."""
    model = load_average(pathlib.Path(flags.FLAGS.run_dir))
    print("head-summed attention inside/outside, layers", ", ".join(model.capture.cross_layers))
    for name, layers in class_attention(model, int(flags.FLAGS.image_side)).items():
        print(f"{name:10}", "  ".join(f"{a:.3f}/{b:.3f}" for a, b in layers))


if __name__ == "__main__":
    app.run(main)
