"""Compares Stable Diffusion 1.4, 2.1 and XL in full size, with random weights, with diffusers.

One network at a time, in float32: its weights are drawn, written to disk, run by diffusers and
freed before ours are read from there. The other networks are small; only their widths match.
`python -m experiments.full_size_table` runs each test in its own process and writes the recorded
differences, seconds and memory to docs/full_size_parity.md. The UNet of Stable Diffusion XL needs
11 GB of disk.
"""

import gc
import json
import resource
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from seediff_jax.checkpoints.load import load_model
from seediff_jax.models.capture import published_capture
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.config import unet_config
from seediff_jax.models.model import (
    decode_latents,
    encode_images,
    encode_text_and_pool,
    predict_noise,
)
from tests.helpers.published_configs import (
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_TEXT,
    SD2_UNET,
    SD2_VAE,
    XL_TEXT,
    XL_TEXT_2,
    XL_UNET,
    XL_VAE,
)
from tests.helpers.random_models import normal, relative_difference
from tests.helpers.torch_models import (
    capture_probs,
    random_pipeline,
    random_xl_pipeline,
    to_numpy,
    to_torch,
)

TABLE = Path(__file__).parents[2] / "docs" / "full_size_parity.json"
# Float32 sums in another order differ by about 1e-6, and by ten times that in XL's many layers.
BOUND = 1e-4
TIMESTEPS = np.array([437], np.int32)
TOKEN_IDS = np.random.default_rng(2).integers(0, 49406, (2, 77)).astype(np.int32)
TOKEN_IDS[:, 40:] = 49407  # the end token
SIZES = np.array([[1024, 768, 16, 32, 1024, 1024]], np.int32)

# For each family: its maker, its networks, small networks that match them, the latent side.
FAMILIES = {
    "1.4": {
        "name": "Stable Diffusion 1.4",
        "make": random_pipeline,
        "full": {"text": SD1_TEXT, "unet": SD1_UNET, "vae": SD1_VAE},
        "small": {
            "text": {"hidden_size": 768, "num_attention_heads": 12},
            "unet": {"cross_attention_dim": 768},
        },
        "side": 64,
    },
    "2.1": {
        "name": "Stable Diffusion 2.1",
        "make": random_pipeline,
        "full": {"text": SD2_TEXT, "unet": SD2_UNET, "vae": SD2_VAE},
        "small": {
            "text": {"hidden_size": 1024, "num_attention_heads": 16},
            "unet": {"cross_attention_dim": 1024},
        },
        "side": 96,
    },
    "XL": {
        "name": "Stable Diffusion XL base",
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
COMPONENTS = {"text": "text_encoder", "text_2": "text_encoder_2", "unet": "unet", "vae": "vae"}
# Heights and widths of latents: of square images, for 1.4 of 512 x 768 and 768 x 512 pixels, and
# for 2.1 of its base model.
UNETS = [
    ("1.4", (64, 64)),
    ("1.4", (64, 96)),
    ("1.4", (96, 64)),
    ("2.1", (64, 64)),
    ("2.1", (96, 96)),
    ("XL", (128, 128)),
]
UNET_IDS = [f"{family}-{height}x{width}" for family, (height, width) in UNETS]


def options(json):
    """Converts a JSON config to arguments of diffusers and transformers, in float32."""
    skipped = ("_", "torch_dtype")
    return {name: value for name, value in json.items() if not name.startswith(skipped)}


def timed(call, *arguments):
    """Returns the result of a call, and the seconds of a second call, whose memory is warm."""
    jax.block_until_ready(call(*arguments))
    start = time.perf_counter()
    result = jax.block_until_ready(call(*arguments))
    return result, time.perf_counter() - start


def differences(got, expected):
    """Returns the largest difference of each compared array.

    Units are standard deviations of the expected array. Differences of attention maps are absolute,
    and the largest of all layers of a kind.
    """
    assert got.keys() == expected.keys()
    kinds = {
        f"{kind}-attention of {len(names)} layers": names
        for kind, suffix in (("cross", "attn2"), ("self", "attn1"))
        if (names := [name for name in expected if name.endswith(suffix)])
    }
    maps = set().union(*kinds.values())
    found = {n: relative_difference(got[n], expected[n]) for n in expected if n not in maps}
    for kind, names in kinds.items():
        found[kind] = max(np.abs(np.asarray(got[name]) - expected[name]).max() for name in names)
    return {name: float(value) for name, value in found.items()}


@pytest.fixture
def compare(tmp_path, record_property):
    """Compares and measures a network; records the results before it checks them."""

    def run(family, network, names, described, inputs, reference, ours, most_scratch=None):
        """Runs `reference(pipeline)`, frees the pipeline, and runs `ours(model, *inputs)`.

        Both return arrays by name. `names` are the networks of full size. In addition to weights
        and results, our program may use `most_scratch` bytes.
        """
        spec = FAMILIES[family]
        parts = spec["small"] | {name: options(spec["full"][name]) for name in names}
        pipeline = spec["make"](tmp_path / "made", **parts)
        pipeline.save_pretrained(tmp_path / "saved")
        with torch.no_grad():
            expected, seconds_of_reference = timed(reference, pipeline)
        del pipeline
        gc.collect()
        model = load_model(tmp_path / "saved")
        shutil.rmtree(tmp_path)  # up to 11 GB, which pytest would keep
        compiled = jax.jit(ours).lower(model, *inputs).compile()
        got, seconds = timed(compiled, model, *inputs)
        found = differences(got, expected)
        counts = [
            sum(leaf.size for leaf in jax.tree.leaves(model.params[COMPONENTS[name]]))
            for name in names
        ]
        millions = " + ".join(f"{count / 1e6:.1f} M" for count in counts)
        for name, value in {
            "family": spec["name"],
            "config": f"{network}, {millions} parameters, {described}",
            "differences": json.dumps(found),
            "bound": BOUND,
            "seconds": seconds,
            "seconds_of_reference": seconds_of_reference,
            "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }.items():
            record_property(name, value)
        if most_scratch is not None:
            assert compiled.memory_analysis().temp_size_in_bytes < most_scratch
        assert max(found.values()) < BOUND, found

    return run


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_text_encoders_equal_transformers(family, compare):
    names = [name for name in FAMILIES[family]["full"] if name.startswith("text")]
    token_ids = TOKEN_IDS if len(names) == 1 else np.stack([TOKEN_IDS, TOKEN_IDS], axis=1)

    def reference(pipeline):
        ids = torch.from_numpy(TOKEN_IDS)
        if len(names) == 1:
            return {"text embeddings": pipeline.text_encoder(ids).last_hidden_state.numpy()}
        first = pipeline.text_encoder(ids, output_hidden_states=True)
        second = pipeline.text_encoder_2(ids, output_hidden_states=True)
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"text embeddings": text.numpy(), "pooled text": second.text_embeds.numpy()}

    def ours(model, token_ids):
        text, pooled = encode_text_and_pool(model, token_ids)
        return {"text embeddings": text} | ({} if pooled is None else {"pooled text": pooled})

    network = "text encoder" if len(names) == 1 else "text encoders"
    compare(family, network, names, "2 texts of 77 tokens", (token_ids,), reference, ours)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), UNETS, ids=UNET_IDS)
def test_unet_equals_diffusers(family, size, compare):
    config = unet_config(FAMILIES[family]["full"]["unet"])
    latents, text = normal(0, 1, *size, 4), normal(1, 1, 77, config.cross_attention_dim)
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
        return {"predicted noise": to_numpy(noise)} | probs

    def ours(model, latents, text, pooled):
        conditions = Conditions(pooled_text=pooled, sizes=SIZES) if pooled.size else NO_CONDITIONS
        noise, maps = predict_noise(model, latents, TIMESTEPS, text, conditions=conditions)
        got = {"predicted noise": noise}
        got |= {name: maps.cross_attention[:, i] for i, name in enumerate(capture.cross_layers)}
        for name, level in zip(capture.self_layers, maps.sides, strict=True):
            got[name] = maps.self_attention[level]
        return got

    described = f"{size[0]} x {size[1]} latents"
    # One layer's probabilities of all heads alone are 1.6 GiB at the finest level of 2.1.
    most = 3 * 2**30
    compare(family, "UNet", ["unet"], described, (latents, text, pooled), reference, ours, most)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_images_equal_those_of_diffusers(family, compare):
    side = FAMILIES[family]["side"]
    latents = normal(0, 1, side, side, 4)

    def reference(pipeline):
        vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
        return {"images": to_numpy(vae.decode(to_torch(latents) / factor).sample)}

    def ours(model, latents):
        return {"images": decode_latents(model, latents)}

    described = f"{side} x {side} latents"
    compare(family, "VAE decode", ["vae"], described, (latents,), reference, ours)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_encoded_images_equal_those_of_diffusers(family, compare):
    side = 8 * FAMILIES[family]["side"]
    images = np.tanh(normal(3, 1, side, side, 3))

    def reference(pipeline):
        vae, factor = pipeline.vae, pipeline.vae.config.scaling_factor
        return {"latents": to_numpy(vae.encode(to_torch(images)).latent_dist.mean * factor)}

    def ours(model, images):
        return {"latents": encode_images(model, images)}

    described = f"{side} x {side} pixels"
    compare(family, "VAE encode", ["vae"], described, (images,), reference, ours)


def test_the_published_table_has_a_row_for_every_comparison():
    tests = {
        "test_text_encoders_equal_transformers": FAMILIES,
        "test_unet_equals_diffusers": UNET_IDS,
        "test_decoded_images_equal_those_of_diffusers": FAMILIES,
        "test_encoded_images_equal_those_of_diffusers": FAMILIES,
    }
    wanted = [f"{name}[{case}]" for name, cases in tests.items() for case in cases]
    assert sorted(json.loads(TABLE.read_text(encoding="utf-8"))) == sorted(wanted)
