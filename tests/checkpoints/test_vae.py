"""Another VAE in place of a model's own: from a file or a folder, for every kind of model."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seediff_jax.checkpoints.families import FAMILIES
from seediff_jax.checkpoints.load import load_model
from seediff_jax.checkpoints.orbax_folder import save_orbax
from seediff_jax.errors import UserError
from tests.helpers.model_folders import write_folder
from tests.helpers.original_layout import VAE, original_clip, original_vae
from tests.helpers.random_models import random_params, small_config
from tests.helpers.single_files import tensors_of, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in every kind of checkpoint, another one, and the VAE of that one in every form."""
    folder = tmp_path_factory.mktemp("made")
    config = small_config(folder / "tokenizer")
    family = written(folder, "sd1", config)
    write_folder(folder / "other", config, random_params(config, seed=1))
    save_orbax(load_model(folder / "model"), folder / "orbax")
    tensors = tensors_of(folder, original_clip)
    save_file(tensors, folder / "whole.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if not name.startswith(VAE)},
        folder / "without.safetensors",
    )
    stored = load_file(folder / "other/vae/diffusion_pytorch_model.safetensors")
    save_file(stored, folder / "diffusers.safetensors")
    vae_json = json.loads((folder / "other/vae/config.json").read_text())
    original = original_vae(stored, vae_json)
    save_file(original, folder / "prefixed.safetensors")
    plain = {name.removeprefix(VAE): tensor for name, tensor in original.items()}
    save_file(plain | {"loss.logvar": np.ones(1, np.float32)}, folder / "original.safetensors")
    return folder, family


@pytest.mark.parametrize("model", ["model", "orbax", "whole.safetensors", "without.safetensors"])
@pytest.mark.parametrize(
    "vae",
    ["other", "other/vae", "diffusers.safetensors", "original.safetensors", "prefixed.safetensors"],
)
def test_a_vae_from_elsewhere_replaces_the_models_own(folder, monkeypatch, model, vae):
    folder, family = folder
    monkeypatch.setitem(FAMILIES, "sd1", family)
    got = load_model(folder / model, vae=folder / vae, tokenizer=folder / "tokenizer")
    own, other = load_model(folder / "model"), load_model(folder / "other")
    expected = own.params | {"vae": other.params["vae"]}
    jax.tree.map(np.testing.assert_array_equal, got.params, expected)
    assert got.weights_hash not in (own.weights_hash, other.weights_hash)


def test_a_vae_folder_brings_its_config(folder, tmp_path):
    folder, _ = folder
    vae = shutil.copytree(folder / "other/vae", tmp_path / "vae")
    config = json.loads((vae / "config.json").read_text()) | {"scaling_factor": 0.5}
    (vae / "config.json").write_text(json.dumps(config))
    assert load_model(folder / "model", vae=vae).vae_config.scaling_factor == 0.5


def test_what_is_not_a_vae_is_refused(folder, monkeypatch, tmp_path):
    folder, family = folder
    monkeypatch.setitem(FAMILIES, "sd1", family)
    without = folder / "without.safetensors"
    with pytest.raises(UserError, match="has no VAE .*--vae"):
        load_model(without, tokenizer=folder / "tokenizer")
    for vae, message in (
        (tmp_path / "nothing", "is neither a .safetensors file nor the folder"),
        (tmp_path, "is neither a .safetensors file nor the folder"),
        (folder / "other/unet", "has a UNet2DConditionModel; only AutoencoderKL is supported"),
        (folder / "other/unet/diffusion_pytorch_model.safetensors", "weights do not fit"),
    ):
        with pytest.raises(UserError, match=message):
            load_model(folder / "model", vae=vae)
