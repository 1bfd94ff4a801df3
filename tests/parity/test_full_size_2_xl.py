"""Stable Diffusion 2.1 and XL in their full sizes, with random weights, against diffusers.

One network at a time, in float32: its weights are drawn, written to disk, run by diffusers and
freed before ours are read from there. The networks beside it are small, and only their widths fit.
`pytest -m slow tests/parity/test_full_size_2_xl.py -s` runs it and prints the differences. The UNet
of Stable Diffusion XL needs 11 GB of disk and 16 GB of memory.
"""

import gc
import shutil

import numpy as np
import pytest
import torch
from random_models import normal, quick_jit, relative_difference
from test_config import (
    SD2_TEXT,
    SD2_UNET,
    SD2_VAE,
    XL_TEXT,
    XL_TEXT_2,
    XL_UNET,
    XL_VAE,
)
from torch_models import capture_probs, random_pipeline, random_xl_pipeline, to_numpy, to_torch

from seediff_jax.model import (
    decode_latents,
    encode_images,
    encode_text_and_pool,
    load_model,
    predict_noise,
)
from seediff_jax.models.capture import published_capture
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.config import unet_config

TIMESTEPS = np.array([437], np.int32)
TOKEN_IDS = np.random.default_rng(2).integers(0, 49406, (2, 77)).astype(np.int32)
TOKEN_IDS[:, 40:] = 49407  # the end token
SIZES = np.array([[1024, 768, 16, 32, 1024, 1024]], np.int32)


def options(json):
    """What diffusers and transformers take as arguments; all is float32 here."""
    skipped = ("_", "torch_dtype")
    return {name: value for name, value in json.items() if not name.startswith(skipped)}


# For each family: who makes it, its networks, small ones that fit beside them, the latent side.
FAMILIES = {
    "2.1": {
        "make": random_pipeline,
        "full": {"text": SD2_TEXT, "unet": SD2_UNET, "vae": SD2_VAE},
        "small": {
            "text": {"hidden_size": 1024, "num_attention_heads": 16},
            "unet": {"cross_attention_dim": 1024},
        },
        "side": 96,
    },
    "XL": {
        "make": random_xl_pipeline,
        "full": {"text": XL_TEXT, "text_2": XL_TEXT_2, "unet": XL_UNET, "vae": XL_VAE},
        "small": {
            "text": {"hidden_size": 768, "num_attention_heads": 12},
            "text_2": {"hidden_size": 1280, "num_attention_heads": 20, "projection_dim": 1280},
            "unet": {
                "cross_attention_dim": 2048,
                "projection_class_embeddings_input_dim": 1280 + 6 * 8,
            },
        },
        "side": 128,
    },
}


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


def compare(family, full, folder, reference, ours, tolerance=1e-4):
    """Runs `reference` on a diffusers pipeline, frees it, and `ours` on our model of its folder.

    Both return arrays by name; those with a name of a layer are probabilities, compared as they
    are, the others in standard deviations.
    """
    parts = family["small"] | {name: options(family["full"][name]) for name in full}
    pipeline = family["make"](folder / "made", **parts)
    pipeline.save_pretrained(folder / "saved")
    with torch.no_grad():
        expected = reference(pipeline)
    del pipeline
    gc.collect()
    model = load_model(folder / "saved")
    shutil.rmtree(folder)  # up to 11 GB, which pytest would keep
    got = ours(model)
    assert got.keys() == expected.keys()
    differences = {}
    for name, wanted in expected.items():
        is_probability = "attn" in name
        difference = relative_difference(got[name], wanted) * (
            wanted.std() if is_probability else 1
        )
        differences[name] = float(difference)
    print(differences)
    assert max(differences.values()) < tolerance


@pytest.mark.slow
def test_text_encoders_equal_transformers(family, tmp_path):
    names = [name for name in family["full"] if name.startswith("text")]

    def reference(pipeline):
        ids = torch.from_numpy(TOKEN_IDS)
        if len(names) == 1:
            return {"text": pipeline.text_encoder(ids).last_hidden_state.numpy()}
        first = pipeline.text_encoder(ids, output_hidden_states=True)
        second = pipeline.text_encoder_2(ids, output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"text": text.numpy(), "pooled": second.text_embeds.numpy()}

    def ours(model):
        ids = TOKEN_IDS if len(names) == 1 else np.stack([TOKEN_IDS, TOKEN_IDS], axis=1)
        text, pooled = encode_text_and_pool(model, ids)
        return {"text": text} | ({} if pooled is None else {"pooled": pooled})

    compare(family, names, tmp_path, reference, ours)


@pytest.mark.slow
def test_unet_equals_diffusers(family, tmp_path):
    config, side = unet_config(family["full"]["unet"]), family["side"]
    latents, text = normal(0, 1, side, side, 4), normal(1, 1, 77, config.cross_attention_dim)
    pooled = normal(4, 1, config.pooled_text_dim)
    capture = published_capture(config)
    layers = (*capture.cross_layers, *capture.self_layers)

    def reference(pipeline):
        captured = capture_probs(pipeline.unet, layers)
        added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(SIZES)}
        noise = pipeline.unet(
            to_torch(latents),
            torch.from_numpy(TIMESTEPS),
            torch.from_numpy(text),
            added_cond_kwargs=added if pooled.size else None,
        ).sample
        probs = {name: captured[name].head_sum for name in layers}
        return {"noise": to_numpy(noise)} | probs

    def ours(model):
        conditions = Conditions(pooled_text=pooled, sizes=SIZES) if pooled.size else NO_CONDITIONS
        run = quick_jit(lambda *arrays: predict_noise(*arrays, conditions=conditions))
        compiled = run.lower(model, latents, TIMESTEPS, text).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        print(f"{memory / 2**30:.2f} GiB beside weights and results")
        # One layer's probabilities of all heads alone are 1.6 GiB at the finest level of 2.1.
        assert memory < 3 * 2**30
        noise, maps = compiled(model, latents, TIMESTEPS, text)
        got = {"noise": noise}
        got |= {name: maps.cross_attention[:, i] for i, name in enumerate(capture.cross_layers)}
        for name, level in zip(capture.self_layers, maps.sides, strict=True):
            got[name] = maps.self_attention[level]
        return got

    compare(family, ["unet"], tmp_path, reference, ours)


@pytest.mark.slow
def test_vae_equals_diffusers(family, tmp_path):
    side = family["side"]
    latents, images = normal(0, 1, side, side, 4), np.tanh(normal(3, 1, 256, 256, 3))

    def reference(pipeline):
        vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
        return {
            "decoded": to_numpy(vae.decode(to_torch(latents) / factor).sample),
            "encoded": to_numpy(vae.encode(to_torch(images)).latent_dist.mean * factor),
        }

    def ours(model):
        return {
            "decoded": decode_latents(model, latents),
            "encoded": encode_images(model, images),
        }

    compare(family, ["vae"], tmp_path, reference, ours)
