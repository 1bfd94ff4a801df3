"""The embedded model is an ordinary diffusers folder: diffusers loads it and draws the same."""

import importlib.resources
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from seediff_jax.checkpoints.load import load_model
from seediff_jax.pipeline.generate import generate_images
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.noise import initial_latents
from tests.helpers.torch_models import to_torch

FOLDER = Path(str(importlib.resources.files("seediff_jax"))) / "assets" / "shapes"
PROMPTS = ["a photo of a star", "a picture of a ring and a cross"]


def test_diffusers_draws_the_same_images_with_the_embedded_model():
    model = load_model("shapes")
    got = generate_images(model, PROMPTS, rng_seed=3, sampling=SamplingConfig(num_steps=4))
    pipeline = StableDiffusionPipeline.from_pretrained(
        FOLDER, safety_checker=None, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS,
        num_inference_steps=4,
        guidance_scale=7.5,
        latents=to_torch(initial_latents(model, jnp.uint32(3), jnp.arange(2))),
        output_type="np",
    ).images
    error = np.mean((np.asarray(got, np.float64) - 255 * expected) ** 2)
    assert expected.std() > 0.05
    # Rounding our colours to 8 bits alone leaves 59 dB.
    assert 10 * np.log10(255**2 / error) >= 50
