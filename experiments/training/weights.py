"""The weights of a run: those that it starts from, and the averaged ones so far."""

import json
import pathlib

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.training.growing import grow_unet
from experiments.training.state import Params, read_step
from experiments.training.study import Study, make_config
from experiments.training.unet import read_unet
from experiments.training.vae import read_vae, write_latent_scale
from seediff_jax.checkpoints.sources import read_source_weights
from seediff_jax.models.model import ModelConfig, init_params


def start_params(
    study: Study, run_dir: pathlib.Path, init_from: str | None, *, inner: bool = False
) -> tuple[ModelConfig, Params]:
    """Config and the weights that a new run starts from: random ones, or those of a folder.

    The UNet grows out of the inner one, where the run has trained that.
    """
    if init_from and not inner:
        vae = json.loads((pathlib.Path(init_from) / "vae" / "config.json").read_text())
        write_latent_scale(run_dir, vae["scaling_factor"])
        config = make_config(study, run_dir)
        weights = read_source_weights(pathlib.Path(init_from), config, np.float32)
        return config, unflatten_dict({path: weight.array for path, weight in weights})
    config = make_config(study, run_dir, inner=inner)
    params = init_params(config, jax.random.key(0))
    if not inner and read_step(run_dir / "inner.npz"):
        small = init_params(make_config(study, run_dir, inner=True), jax.random.key(0))
        trained = read_unet(small, run_dir, "inner")
        params |= trained | {"unet": grow_unet(trained["unet"], params["unet"])}
    return config, params


def load_params(study: Study, run_dir: pathlib.Path) -> tuple[ModelConfig, Params]:
    """Config and averaged weights of a run so far."""
    config, params = start_params(study, run_dir, None)
    return config, read_unet(params, run_dir) | {"vae": read_vae(config, params, run_dir)}
