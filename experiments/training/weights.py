"""The weights of a run: those that it starts from, and the averaged ones so far."""

import json
import pathlib
import shutil

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.training.growing import grow_unet
from experiments.training.state import Params, read_step
from experiments.training.study import STAGES, Study, make_config
from experiments.training.unet import read_unet
from experiments.training.vae import read_vae, write_latent_scale
from seediff_jax.checkpoints.sources import read_source_weights
from seediff_jax.errors import UserError
from seediff_jax.models.model import ModelConfig, init_params


def keep_initial(run_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the model that a new run starts from into the run's folder.

    The resumed run and the export find it there: what the plan does not train keeps its weights.

    Raises:
        UserError: the folder is not a model, or the run was started from something else.
    """
    if not (folder / "vae" / "config.json").is_file():
        raise UserError(
            f"--init_from={folder} is not a diffusers folder; it has no vae/config.json"
        )
    kept = initial_folder(run_dir)
    if not kept.exists():
        if trained := [kind for kind in STAGES if read_step(run_dir / f"{kind}.npz")]:
            raise UserError(
                f"the run in {run_dir} has trained its stage {trained[0]} from random weights; "
                "give another --run_dir"
            )
        aside = kept.with_name(kept.name + ".part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(folder, aside)
        aside.rename(kept)
    elif _files(kept) != _files(folder):
        raise UserError(
            f"the run in {run_dir} was started from another model than {folder}; give another "
            "--run_dir, or leave --init_from out to resume"
        )


def initial_folder(run_dir: pathlib.Path) -> pathlib.Path:
    """Folder of the model that a run was started from, if there is one."""
    return run_dir / "initial"


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def start_params(
    study: Study, run_dir: pathlib.Path, *, inner: bool = False
) -> tuple[ModelConfig, Params]:
    """Config and the weights that a run starts from: random ones, or those of `keep_initial`.

    The UNet grows out of the inner one, where the run has trained that.
    """
    initial = initial_folder(run_dir)
    if initial.exists() and not inner:
        vae = json.loads((initial / "vae" / "config.json").read_text())
        write_latent_scale(run_dir, vae["scaling_factor"])
        config = make_config(study, run_dir)
        weights = read_source_weights(initial, config, np.float32)
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
    config, params = start_params(study, run_dir)
    return config, read_unet(params, run_dir) | {"vae": read_vae(config, params, run_dir)}
