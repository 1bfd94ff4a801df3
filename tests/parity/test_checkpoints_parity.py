"""diffusers and transformers load the folders that we write."""

import inspect
import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.load import load_model, make_model
from seediff_jax.models.model import decode_latents, encode_images, encode_text, predict_noise
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.random_models import (
    LENGTH,
    normal,
    quick_jit,
    random_params,
    relative_difference,
    small_config,
)
from tests.helpers.torch_models import random_pipeline, to_numpy, to_torch

UNET = {
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "transformer_layers_per_block": [2, 1],
}
DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
SCHEDULER_FILES = {"PNDM": {}, "DDIM": DDIM | {"skip_prk_steps": False}}


@pytest.fixture(scope="module", params=SCHEDULER_FILES)
def pair(request, tmp_path_factory):
    """Returns our model, and the pipeline that diffusers loads from its folder."""
    folder = tmp_path_factory.mktemp("model")
    config = small_config(
        folder / "made",
        unet=UNET,
        vae={"scaling_factor": 0.3},
        text={"hidden_act": "gelu"},
        scheduler=SCHEDULER_FILES[request.param],
    )
    model = make_model(config, random_params(config), model_id="made")
    save_model(model, folder / "saved")
    return model, StableDiffusionPipeline.from_pretrained(folder / "saved")


@torch.no_grad()
def test_diffusers_computes_the_same_from_our_folder(pair):
    model, pipeline = pair
    timesteps = np.array([3, 900], np.int32)
    latents, text = normal(0, 2, 8, 8, 4), normal(1, 2, LENGTH, 24)
    token_ids = model.tokenizer.encode(["a cat", "the dog"])
    images = np.tanh(normal(2, 2, 8, 8, 3))
    unet, vae = pipeline.unet, pipeline.vae
    noise_pred, _ = quick_jit(predict_noise)(model, latents, timesteps, text)
    results = {
        "text": (
            encode_text(model, token_ids),
            pipeline.text_encoder(torch.from_numpy(token_ids)).last_hidden_state.numpy(),
        ),
        "noise": (
            noise_pred,
            to_numpy(
                unet(to_torch(latents), torch.from_numpy(timesteps), torch.from_numpy(text)).sample
            ),
        ),
        "decoded": (
            decode_latents(model, latents),
            to_numpy(vae.decode(to_torch(latents) / vae.config.scaling_factor).sample),
        ),
        "encoded": (
            encode_images(model, images),
            to_numpy(vae.encode(to_torch(images)).latent_dist.mean * vae.config.scaling_factor),
        ),
    }
    for name, (got, expected) in results.items():
        assert relative_difference(got, expected) < 1e-4, name


def test_diffusers_reads_the_same_tokenizer_and_scheduler(pair):
    model, pipeline = pair
    prompts = ["a cat", "dog"]
    ids = pipeline.tokenizer(prompts, padding="max_length", max_length=LENGTH).input_ids
    np.testing.assert_array_equal(model.tokenizer.encode(prompts), ids)
    config, scheduler = model.scheduler_config, pipeline.scheduler
    assert type(scheduler).__name__ == SCHEDULERS[config.kind].class_name
    options = ["beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset"]
    for option in [*options, "set_alpha_to_one", "timestep_spacing", "num_train_timesteps"]:
        assert scheduler.config[option] == getattr(config, option)


def test_a_folder_of_diffusers_is_written_back_with_equal_weights(tmp_path):
    """From diffusers to our params to a float16 folder and back: equal to diffusers' rounding."""
    pipeline = random_pipeline(tmp_path / "made", unet=UNET)
    pipeline.save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours", dtype=jnp.float16)
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "ours", dtype=torch.float16)
    for name in ("text_encoder", "unet", "vae"):
        expected = getattr(pipeline, name).state_dict()
        got = getattr(again, name).state_dict()
        assert got.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(got[key], tensor.half() if tensor.is_floating_point() else tensor)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler"])
def test_the_written_json_holds_only_what_diffusers_knows(pair, part, tmp_path):
    """diffusers drops an unexpected key with a warning only."""
    model, pipeline = pair
    save_model(model, tmp_path / "saved")
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    written = json.loads((tmp_path / "saved" / part / name).read_text())
    known = inspect.signature(type(getattr(pipeline, part)).__init__).parameters
    assert {key for key in written if not key.startswith("_")} <= set(known)
