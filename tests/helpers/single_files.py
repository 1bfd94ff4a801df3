"""Small models as single files of the original layout, and as the folder that they are made of."""

import dataclasses
import json

from safetensors.numpy import load_file

from seediff_jax.checkpoints.families import FAMILIES
from tests.helpers.model_folders import write_folder
from tests.helpers.original_layout import original_unet, original_vae
from tests.helpers.random_models import random_params

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def written(folder, family, config):
    """Writes a small model as a diffusers folder; returns the family with its configs."""
    write_folder(folder / "model", config, random_params(config))
    files = [path for path in (folder / "model").rglob("*config.json") if "token" not in str(path)]
    configs = {
        path.relative_to(folder / "model").as_posix(): json.loads(path.read_text())
        for path in [*files, folder / "model/model_index.json"]
    }
    sides = dict.fromkeys(("epsilon", "v_prediction"), config.unet.sample_size)
    return dataclasses.replace(FAMILIES[family], configs=configs, sample_sizes=sides)


def tensors_of(folder, original_text):
    """The tensors of a single file with the weights of a diffusers folder."""
    parts = {name: load_file(folder / "model" / file) for name, file in FILES.items()}
    unet_json, vae_json = (
        json.loads((folder / "model" / name / "config.json").read_text())
        for name in ("unet", "vae")
    )
    return {
        **original_text(parts["text_encoder"]),
        **original_unet(parts["unet"], unet_json),
        **original_vae(parts["vae"], vae_json),
    }
