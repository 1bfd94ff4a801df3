"""generate() equals diffusers' StableDiffusionPipeline, from the same initial latents."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.load import load_model
from seediff_jax.pipeline.generate import generate
from seediff_jax.prompts.tokenizer import class_token_mask
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.noise import initial_latents, step_noise
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.diffusers_schedulers import own_noise
from tests.helpers.torch_models import blocks, capture_probs, random_pipeline, to_torch

# diffusers converts torch tensors to arrays in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

UNET = {
    **blocks("aap"),
    "sample_size": 16,
    "block_out_channels": [16, 32, 32],
    "attention_head_dim": [2, 4, 4],
}
PROMPTS, CLASSES = ["a red cat", "a dog, a cat"], [["cat"], ["dog", "cat"]]
NEGATIVE_PROMPT, RNG_SEED = "a cup", 5
KINDS = ["pndm", "ddim", "euler", "euler_ancestral", "dpmsolver_multistep", "lcm", "ddpm"]
# Fractional timesteps, and sigmas with their own spacing.
OPTIONS = {
    "euler": {"timestep_spacing": "linspace"},
    "dpmsolver_multistep": {"use_karras_sigmas": True},
}
# LCM is made for few steps and little guidance. Each of its calls predicts clean latents, so more
# of both would turn one unit in the last place of the first latents into 7e-6 of attention.
RUNS = {"lcm": {"num_steps": 4, "guidance_scale": 2.0}}
USUAL_RUN = {"num_steps": 10, "guidance_scale": 7.5}

# Each scheduler by itself is compared with diffusers' in test_schedulers_parity.
QUICK = [("pndm", (16, 16)), ("ddim", (24, 16)), ("lcm", (16, 16)), ("euler_ancestral", (16, 16))]
OTHERS = [*((kind, (16, 16)) for kind in KINDS), ("pndm", (16, 24))]
CASES = [
    *QUICK,
    *(pytest.param(*each, marks=pytest.mark.slow) for each in OTHERS if each not in QUICK),
]


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    """Returns diffusers' pipeline, loaded from a folder that we wrote, and our model."""
    folder = tmp_path_factory.mktemp("pipeline")
    random_pipeline(folder / "made", unet=UNET).save_pretrained(folder / "saved")
    model = load_model(folder / "saved")
    scheduler = model.scheduler_config.with_kind(request.param)
    scheduler = dataclasses.replace(scheduler, **OPTIONS.get(request.param, {}))
    model = model.with_config(scheduler=scheduler)
    save_model(model, folder / "ours")
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "ours", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.__class__.__name__ == SCHEDULERS[request.param].class_name
    return pipeline, model


def run_diffusers(pipeline, model, size, num_steps, guidance_scale):
    """Returns colours as float 0..255, and each layer's probabilities, averaged over the calls."""
    captured = capture_probs(pipeline.unet)
    calls = []

    def keep(pipeline, step, timestep, kept):
        calls.append({name: processor.head_sum[2:] for name, processor in captured.items()})
        return kept

    arguments = (model, jnp.uint32(RNG_SEED), jnp.arange(2))
    numbers = itertools.count()

    def fresh_noise():
        return to_torch(step_noise(*arguments, jnp.int32(next(numbers)), size))

    with own_noise(pipeline.scheduler, fresh_noise):
        images = pipeline(
            PROMPTS,
            negative_prompt=[NEGATIVE_PROMPT] * 2,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            height=2 * size[0],
            width=2 * size[1],
            latents=to_torch(initial_latents(*arguments, size)),
            output_type="np",
            callback_on_step_end=keep,
        ).images
    return 255 * images, {name: np.mean([c[name] for c in calls], axis=0) for name in captured}


@pytest.mark.parametrize(("pair", "size"), CASES, indirect=["pair"], ids=str)
def test_images_and_averaged_attention_equal_those_of_diffusers(pair, size):
    pipeline, model = pair
    run = RUNS.get(model.scheduler_config.kind, USUAL_RUN)
    expected, probs = run_diffusers(pipeline, model, size, **run)
    pairs = generate(
        model,
        PROMPTS,
        CLASSES,
        rng_seed=RNG_SEED,
        sampling=SamplingConfig(
            negative_prompt=NEGATIVE_PROMPT, height=2 * size[0], width=2 * size[1], **run
        ),
    )
    assert pairs.label_maps.shape == pairs.images.shape[:3] == (2, 2 * size[0], 2 * size[1])
    error = np.mean((np.asarray(pairs.images, np.float64) - expected) ** 2)
    psnr = 10 * np.log10(255**2 / error)
    assert expected.std() > 20
    # Rounding our colours to 8 bits alone leaves 59 dB.
    assert psnr >= 50
    # Entries are sums of at most 4 probabilities, as in the comparison of one call. Rounding grows
    # along a run of the ancestral sampler: it is 1.4e-5 or less by the flags of XLA.
    atol = 2e-5 if model.scheduler_config.kind == "euler_ancestral" else 1e-5
    token_mask = class_token_mask(model.tokenizer, PROMPTS, CLASSES)
    for i, names in enumerate(CLASSES):
        for k in range(len(names)):
            columns = [probs[name][i][:, token_mask[i, k]] for name in model.capture.cross_layers]
            got = pairs.attention_maps.cross_attention[i, :, :, k]
            np.testing.assert_allclose(got, np.mean(columns, axis=-1), rtol=0, atol=atol)
            assert got.std() > 0.05
    for name in model.capture.self_layers:
        height = round(np.sqrt(probs[name].shape[-1] * size[0] / size[1]))
        got = pairs.attention_maps.self_attention[height]
        np.testing.assert_allclose(got, probs[name], rtol=0, atol=atol)
