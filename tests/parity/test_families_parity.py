"""generate() with each family of models against its diffusers pipeline, from the same latents."""

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import DDIMScheduler
from random_models import SCHEDULER
from torch_models import blocks, capture_probs, random_pipeline, random_xl_pipeline, to_torch

from seediff_jax.guidance import SizeCondition
from seediff_jax.model import load_model
from seediff_jax.noise import initial_latents
from seediff_jax.pipeline import generate
from seediff_jax.prompt_tokens import mark_classes

PROMPTS, CLASSES = ["a red cat", "a dog, a cat"], [["cat"], ["dog", "cat"]]
NUM_STEPS, RNG_SEED = 6, 5
UNET = {
    **blocks("aap"),
    "sample_size": 16,
    "block_out_channels": [16, 32, 32],
    "attention_head_dim": [2, 4, 4],
    "use_linear_projection": True,
}


def with_ddim(pipeline, prediction_type):
    options = {k: v for k, v in SCHEDULER.items() if k not in ("_class_name", "skip_prk_steps")}
    options |= {"clip_sample": False, "set_alpha_to_one": False}
    pipeline.scheduler = DDIMScheduler(**options, prediction_type=prediction_type)
    return pipeline


def make_2(folder):
    """Stable Diffusion 2 at 768: velocity, a text encoder with GELU, linear projections."""
    text = {"hidden_act": "gelu", "num_hidden_layers": 3}
    return with_ddim(random_pipeline(folder, text=text, unet=UNET), "v_prediction")


def make_lcm(folder):
    """A latent consistency model, whose UNet reads the guidance scale."""
    unet = UNET | {"time_cond_proj_dim": 32}
    return with_ddim(random_pipeline(folder, unet=unet), "epsilon")


def make_xl(folder):
    return random_xl_pipeline(folder)


# Maker, what both are given, and what each calls by another name.
CASES = {
    "Stable Diffusion 2": (make_2, {"guidance_scale": 7.5, "negative_prompt": "a cup"}, {}, {}),
    "Stable Diffusion 2, guidance rescaled": (
        make_2,
        {"guidance_scale": 7.5, "negative_prompt": "a cup", "guidance_rescale": 0.7},
        {},
        {},
    ),
    "Stable Diffusion XL": (make_xl, {"guidance_scale": 5.0, "negative_prompt": "a cup"}, {}, {}),
    "Stable Diffusion XL, no negative prompt, other sizes": (
        make_xl,
        {"guidance_scale": 5.0, "guidance_rescale": 0.3},
        {"size_condition": SizeCondition(original=(48, 64), crop=(3, 5), target=(40, 24))},
        {
            "original_size": (48, 64),
            "crops_coords_top_left": (3, 5),
            "target_size": (40, 24),
        },
    ),
    "latent consistency model": (make_lcm, {"guidance_scale": 3.0}, {}, {}),
}


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    make, shared, ours, theirs = CASES[request.param]
    pipeline = make(tmp_path / "made")
    pipeline.save_pretrained(tmp_path / "saved")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, load_model(tmp_path / "saved"), shared | ours, shared | theirs


def run_diffusers(pipeline, model, options):
    """Colours as float 0..255, and the mean over the calls of every layer's probabilities."""
    captured, calls = capture_probs(pipeline.unet), []

    def keep(pipeline, step, timestep, kept):
        calls.append({name: processor.head_sum[-2:] for name, processor in captured.items()})
        return kept

    if "negative_prompt" in options:
        options = options | {"negative_prompt": [options["negative_prompt"]] * 2}
    images = pipeline(
        PROMPTS,
        num_inference_steps=NUM_STEPS,
        latents=to_torch(initial_latents(model, jnp.uint32(RNG_SEED), jnp.arange(2))),
        output_type="np",
        callback_on_step_end=keep,
        **options,
    ).images
    return 255 * images, {name: np.mean([c[name] for c in calls], axis=0) for name in captured}


def test_images_and_averaged_attention_equal_those_of_diffusers(case):
    pipeline, model, ours, theirs = case
    expected, probs = run_diffusers(pipeline, model, theirs)
    pairs = generate(model, PROMPTS, CLASSES, rng_seed=RNG_SEED, num_steps=NUM_STEPS, **ours)
    error = np.mean((np.asarray(pairs.images, np.float64) - expected) ** 2)
    psnr = 10 * np.log10(255**2 / error)
    assert expected.std() > 20
    # Rounding our colours to 8 bits alone leaves 59 dB.
    assert psnr >= 50
    # Entries are sums of at most 4 probabilities.
    token_mask = mark_classes(model, PROMPTS, CLASSES)
    differences = []
    for i, names in enumerate(CLASSES):
        for k in range(len(names)):
            columns = [probs[name][i][:, token_mask[i, k]] for name in model.capture.cross_layers]
            got = pairs.attention_maps.cross_attention[i, :, :, k]
            differences.append(np.abs(got - np.mean(columns, axis=-1)).max())
            assert got.std() > 0.03
    for name in model.capture.self_layers:
        side = int(np.sqrt(probs[name].shape[-1]))
        differences.append(np.abs(pairs.attention_maps.self_attention[side] - probs[name]).max())
    print(f"{psnr:.1f} dB, attention within {max(differences):.1e}")
    assert max(differences) <= 1e-5
    assert (pairs.seed_counts[:, 0] > 0).all()
