"""Text encoder, UNet and VAE equal transformers and diffusers, with random weights in float32.

Each model is written by diffusers and read by `load_model`, so the tables of names are tested too.
Differences are maxima over all elements, in standard deviations of the reference; float32 sums in
another order differ by about 1e-6.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seediff_jax.checkpoints.load import load_model
from seediff_jax.models.model import decode_latents, encode_images, encode_text, predict_noise
from seediff_jax.models.transformer import TokenColumns
from tests.helpers.random_models import LENGTH, VOCABULARY, normal, quick_jit, relative_difference
from tests.helpers.torch_models import blocks, random_pipeline, to_numpy, to_torch

TOLERANCE = 1e-4

# Each name says what is special; `latents` are the height and width that the model runs with.
MODELS = {
    "two blocks, GELU, not square": {
        "unet": {},
        "text": {"hidden_act": "gelu"},
        "latents": (6, 10),
    },
    "Stable Diffusion 1, odd": {
        "unet": {
            **blocks("aaap"),
            "block_out_channels": [16, 24, 32, 32],
            "layers_per_block": 2,
            "attention_head_dim": 4,
        },
        "vae": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 2},
        "latents": (9, 9),
    },
    "Stable Diffusion 2, odd and not square": {
        "unet": {
            **blocks("aaap"),
            "block_out_channels": [16, 32, 32, 64],
            "attention_head_dim": [1, 2, 2, 4],
            "use_linear_projection": True,
            "cross_attention_dim": 32,
            "upcast_attention": True,
        },
        "text": {"hidden_size": 32, "hidden_act": "gelu", "num_attention_heads": 2},
        "vae": {"scaling_factor": 0.5, "block_out_channels": [8, 12, 16]},
        "latents": (11, 13),
    },
    "embedded model, larger than sample_size": {
        "unet": {
            **blocks("pap"),
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "block_out_channels": [16, 24, 32],
            "attention_head_dim": [2, 3, 4],
            "transformer_layers_per_block": [1, 2, 1],
            "norm_eps": 1e-6,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
        },
        "vae": {
            "mid_block_add_attention": False,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        },
        "latents": (16, 16),
    },
}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pair(name, tmp_path_factory):
    """Returns a diffusers pipeline and our model, read from the folder that diffusers wrote."""
    folder = tmp_path_factory.mktemp("pipeline")
    options = {part: MODELS[name].get(part) for part in ("text", "unet", "vae")}
    pipeline = random_pipeline(folder / "made", **options)
    pipeline.save_pretrained(folder / "saved")
    return pipeline, load_model(folder / "saved")


@torch.no_grad()
def test_text_embeddings_equal_those_of_transformers(pair):
    pipeline, model = pair
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, LENGTH))
    expected = pipeline.text_encoder(torch.from_numpy(ids)).last_hidden_state.numpy()
    got = encode_text(model, jnp.asarray(ids, jnp.int32))
    assert relative_difference(got, expected) < TOLERANCE


@torch.no_grad()
def test_noise_predictions_equal_those_of_diffusers(pair, name):
    pipeline, model = pair
    latents = normal(1, 3, *MODELS[name]["latents"], 4)
    timesteps = np.array([0, 437, 999], np.int32)
    text = normal(2, 3, LENGTH, model.unet_config.cross_attention_dim)
    expected = pipeline.unet(
        to_torch(latents), torch.from_numpy(timesteps), torch.from_numpy(text)
    ).sample
    nothing_recorded = TokenColumns(jnp.zeros((0, LENGTH, 1)))
    got, _ = quick_jit(predict_noise)(model, latents, timesteps, text, nothing_recorded)
    assert relative_difference(got, to_numpy(expected)) < TOLERANCE


@torch.no_grad()
def test_decoded_images_equal_those_of_diffusers(pair):
    pipeline, model = pair
    latents = normal(3, 2, 5, 7, 4)
    scaled = to_torch(latents) / pipeline.vae.config.scaling_factor
    expected = to_numpy(pipeline.vae.decode(scaled).sample)
    assert relative_difference(decode_latents(model, latents), expected) < TOLERANCE


@torch.no_grad()
def test_encoded_latents_equal_those_of_diffusers(pair):
    pipeline, model = pair
    factor = model.vae_config.downsampling
    images = np.random.default_rng(4).uniform(-1, 1, (2, 3 * factor, 5 * factor, 3))
    images = images.astype(np.float32)
    mean = pipeline.vae.encode(to_torch(images)).latent_dist.mean
    expected = to_numpy(mean * pipeline.vae.config.scaling_factor)
    assert relative_difference(encode_images(model, images), expected) < TOLERANCE
