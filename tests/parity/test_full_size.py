"""Stable Diffusion 1 in its full size, with random weights, against diffusers.

Run it with `pytest -m slow tests/parity/test_full_size.py -s`, which prints the differences. On two
CPU cores it takes two minutes, 8 GB of memory and 5 GB of disk.
"""

import gc
import shutil

import numpy as np
import pytest
import torch
from random_models import normal, quick_jit, relative_difference
from test_config import SD1_TEXT, SD1_UNET, SD1_VAE
from torch_models import capture_probs, random_pipeline, to_numpy, to_torch

from seediff_jax.model import (
    decode_latents,
    encode_images,
    encode_text,
    load_model,
    predict_noise,
)
from seediff_jax.models.capture import published_capture
from seediff_jax.models.config import unet_config

LATENTS, TEXT = normal(0, 1, 64, 64, 4), normal(1, 1, 77, 768)
TIMESTEPS = np.array([437], np.int32)
TOKEN_IDS = np.random.default_rng(2).integers(0, 49408, (2, 77)).astype(np.int32)
IMAGES = np.tanh(normal(3, 1, 512, 512, 3))


def options(json):
    """What diffusers takes as arguments."""
    return {name: value for name, value in json.items() if not name.startswith("_")}


@torch.no_grad()
def reference(folder):
    """Writes a random model to `folder`; returns what diffusers computes with it."""
    pipeline = random_pipeline(
        folder / "tokenizer",
        text=options(SD1_TEXT),
        unet=options(SD1_UNET),
        vae=options(SD1_VAE),
    )
    pipeline.save_pretrained(folder / "model")
    capture = published_capture(unet_config(SD1_UNET))
    captured = capture_probs(pipeline.unet, {*capture.cross_layers, *capture.self_layers})
    vae, scaling_factor = pipeline.vae, pipeline.vae.config.scaling_factor
    inputs = (to_torch(LATENTS), torch.from_numpy(TIMESTEPS), torch.from_numpy(TEXT))
    results = {
        "noise": to_numpy(pipeline.unet(*inputs).sample),
        "text": pipeline.text_encoder(torch.from_numpy(TOKEN_IDS)).last_hidden_state.numpy(),
        "decoded": to_numpy(vae.decode(to_torch(LATENTS) / scaling_factor).sample),
        "encoded": to_numpy(vae.encode(to_torch(IMAGES)).latent_dist.mean * scaling_factor),
    }
    return results, {name: processor.head_sum for name, processor in captured.items()}


@pytest.mark.slow
def test_stable_diffusion_1_equals_diffusers(tmp_path):
    expected, probs = reference(tmp_path)
    gc.collect()  # the torch weights, before ours are read
    model = load_model(tmp_path / "model")
    shutil.rmtree(tmp_path)  # 4 GB, which pytest would keep
    noise_pred, maps = quick_jit(predict_noise)(model, LATENTS, TIMESTEPS, TEXT)
    got = {
        "noise": noise_pred,
        "text": encode_text(model, TOKEN_IDS),
        "decoded": decode_latents(model, LATENTS),
        "encoded": encode_images(model, IMAGES),
    }
    differences = {name: relative_difference(got[name], expected[name]) for name in expected}
    cross = np.stack([probs[name] for name in model.capture.cross_layers], axis=1)
    absolute = {"cross_attention": np.abs(maps.cross_attention - cross).max()}
    for name, side in zip(model.capture.self_layers, maps.sides, strict=True):
        absolute[name] = np.abs(maps.self_attention[side] - probs[name]).max()
    print(differences, absolute)
    assert maps.sides == (16, 32, 64)
    assert max(differences.values()) < 1e-4
    assert max(absolute.values()) < 1e-4
