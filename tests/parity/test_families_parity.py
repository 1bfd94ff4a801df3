"""generate() equals the diffusers pipeline of each family, from the same latents."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seediff_jax.checkpoints.load import load_model
from seediff_jax.pipeline.generate import generate
from seediff_jax.sampling.config import SamplingConfig, SizeCondition
from seediff_jax.sampling.inputs import ClassLists, mark_classes
from seediff_jax.sampling.noise import initial_latents, step_noise
from tests.helpers.diffusers_schedulers import own_noise
from tests.helpers.published_configs import (
    LCM_SCHEDULER,
    SD2_SCHEDULER,
    TURBO_SCHEDULER,
    XL_SCHEDULER,
)
from tests.helpers.torch_models import (
    blocks,
    capture_probs,
    random_pipeline,
    random_xl_pipeline,
    to_torch,
)

# diffusers converts torch tensors to arrays in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS, CLASSES = ["a red cat", "a dog, a cat"], [["cat"], ["dog", "cat"]]
UNNAMED = {"unnamed": [["red hen"], ["sky", "cup"]]}
NUM_STEPS, RNG_SEED = 6, 5
UNET = {
    **blocks("aap"),
    "sample_size": 16,
    "block_out_channels": [16, 32, 32],
    "attention_head_dim": [2, 4, 4],
}
UNET_2 = UNET | {"use_linear_projection": True}
TEXT_2 = {"hidden_act": "gelu", "num_hidden_layers": 3}
GUIDED = {"guidance_scale": 7.5, "negative_prompt": "a cup"}


def scheduler_of(json):
    return getattr(diffusers, json["_class_name"]).from_config(json)


def with_scheduler(pipeline, json):
    pipeline.scheduler = scheduler_of(json)
    return pipeline


def make_1(folder):
    return random_pipeline(folder, unet=UNET)


def make_2(folder):
    """Makes a Stable Diffusion 2 at 768: velocity, GELU in the text encoder, linear projections."""
    return with_scheduler(random_pipeline(folder, text=TEXT_2, unet=UNET_2), SD2_SCHEDULER)


def make_turbo(folder):
    """Makes a Stable Diffusion 2 that predicts noise, for one step."""
    return with_scheduler(random_pipeline(folder, text=TEXT_2, unet=UNET_2), TURBO_SCHEDULER)


def make_lcm(folder):
    """Makes a latent consistency model, whose UNet reads the guidance scale."""
    made = random_pipeline(folder, unet=UNET | {"time_cond_proj_dim": 32})
    parts = made.components | {"scheduler": scheduler_of(LCM_SCHEDULER)}
    return diffusers.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def make_xl(folder):
    return with_scheduler(random_xl_pipeline(folder), XL_SCHEDULER)


class Case(NamedTuple):
    """A pipeline, how it is called, and how far attention may differ.

    Attributes:
        make: makes the pipeline in a folder.
        shared: arguments with the same name here and in diffusers.
        ours: other arguments here.
        theirs: other arguments in diffusers.
        num_steps: sampling steps.
        atol: of averaged attention, whose entries are sums of at most 4 probabilities.
    """

    make: Callable
    shared: dict[str, Any]
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    num_steps: int = NUM_STEPS
    atol: float = 1e-5


# Diffusers in float32 is up to 2.4e-5 away from itself in float64, and 1.2e-5 from itself with
# another number of threads.
XL_ATOL = 5e-5


CASES = {
    "Stable Diffusion 1, unnamed classes": Case(make_1, GUIDED, UNNAMED),
    "Stable Diffusion 2": Case(make_2, GUIDED),
    "Stable Diffusion 2, guidance rescaled": Case(make_2, GUIDED | {"guidance_rescale": 0.7}),
    "Turbo, guidance 0": Case(make_turbo, GUIDED | {"guidance_scale": 0.0}, num_steps=1),
    "Turbo, guidance 1": Case(make_turbo, GUIDED | {"guidance_scale": 1.0}, num_steps=1),
    "Stable Diffusion XL": Case(make_xl, GUIDED | {"guidance_scale": 5.0}, atol=XL_ATOL),
    "Stable Diffusion XL, no negative prompt, other sizes, unnamed classes": Case(
        make_xl,
        {"guidance_scale": 5.0, "guidance_rescale": 0.3},
        {"size_condition": SizeCondition(original=(48, 64), crop=(3, 5), target=(40, 24))}
        | UNNAMED,
        {
            "original_size": (48, 64),
            "crops_coords_top_left": (3, 5),
            "target_size": (40, 24),
        },
        atol=XL_ATOL,
    ),
    "latent consistency model": Case(make_lcm, {"guidance_scale": 3.0}, num_steps=4),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes each pipeline once, so that cases with the same program compile once."""

    @functools.cache
    def pair_of(make):
        folder = tmp_path_factory.mktemp("pipeline")
        pipeline = make(folder / "made")
        pipeline.save_pretrained(folder / "saved")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, load_model(folder / "saved")

    return pair_of


# Those whose parts the other cases have, too.
SLOW = ("Stable Diffusion 2", "Turbo, guidance 1", "Stable Diffusion XL")


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]
)
def case(request, made):
    """Returns the pipeline, the model, the arguments of each, and the bound of attention."""
    make, shared, ours, theirs, num_steps, atol = CASES[request.param]
    ours = {"num_steps": num_steps} | shared | ours
    theirs = {"num_inference_steps": num_steps} | shared | theirs
    return *made(make), ours, theirs, atol


def mean_of(calls):
    return {name: np.mean([call[name] for call in calls], axis=0) for name in calls[0]}


def embed(pipeline, texts):
    """Embeds texts for cross-attention."""
    plain = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    with torch.no_grad():
        return pipeline.encode_prompt(texts, device="cpu", **plain)[0]


def run_diffusers(pipeline, model, options, other_texts):
    """Runs the pipeline; `other_texts` do not influence its image.

    Returns:
        Colours as float 0..255, and each layer's probabilities, averaged over the calls: those of
        the pipeline, and those of cross-attention with the other texts.
    """
    captured, calls, other_calls = capture_probs(pipeline.unet), [], []
    for processor in captured.values():
        processor.watched = embed(pipeline, other_texts)

    def keep(pipeline, step, timestep, kept):
        calls.append({name: processor.head_sum[-2:] for name, processor in captured.items()})
        crossing = [name for name in captured if name.endswith("attn2")]
        other_calls.append({name: captured[name].watched_head_sum for name in crossing})
        return kept

    arguments, numbers = (model, jnp.uint32(RNG_SEED), jnp.arange(2)), itertools.count()

    def fresh_noise():
        return to_torch(step_noise(*arguments, jnp.int32(next(numbers))))

    if "negative_prompt" in options:
        options = options | {"negative_prompt": [options["negative_prompt"]] * 2}
    with own_noise(pipeline.scheduler, fresh_noise):
        images = pipeline(
            PROMPTS,
            latents=to_torch(initial_latents(*arguments)),
            output_type="np",
            callback_on_step_end=keep,
            **options,
        ).images
    return 255 * images, mean_of(calls), mean_of(other_calls)


def token_columns(model, probs, text, names, row):
    """Averages, in each layer, over the tokens of each class that a text names."""
    masks = mark_classes(model, [text], [names])[0] if names else []
    for tokens in masks:
        layers = [probs[name][row] for name in model.capture.cross_layers]
        yield np.mean(np.stack(layers)[:, :, tokens], axis=-1)


def test_images_and_averaged_attention_equal_those_of_diffusers(case):
    pipeline, model, ours, theirs, atol = case
    sampling = {k: v for k, v in ours.items() if k != "unnamed"}
    unnamed = ours.get("unnamed", [[], []])
    texts = [" and ".join(names) for names in unnamed]
    expected, probs, other_probs = run_diffusers(pipeline, model, theirs, texts)
    classes = ClassLists(CLASSES, unnamed) if "unnamed" in ours else CLASSES
    sampling = SamplingConfig(**sampling)
    pairs = generate(model, PROMPTS, classes, rng_seed=RNG_SEED, sampling=sampling)
    error = np.mean((np.asarray(pairs.images, np.float64) - expected) ** 2)
    psnr = 10 * np.log10(255**2 / error)
    assert expected.std() > 20
    # Rounding our colours to 8 bits alone leaves 59 dB.
    assert psnr >= 50
    differences = []
    for i in range(len(PROMPTS)):
        columns = [
            *token_columns(model, probs, PROMPTS[i], CLASSES[i], i),
            *token_columns(model, other_probs, texts[i], unnamed[i], i),
        ]
        for k, column in enumerate(columns):
            got = pairs.attention_maps.cross_attention[i, :, :, k]
            differences.append(np.abs(got - column).max())
            assert got.std() > 0.03
    for name in model.capture.self_layers:
        side = int(np.sqrt(probs[name].shape[-1]))
        differences.append(np.abs(pairs.attention_maps.self_attention[side] - probs[name]).max())
    print(f"{psnr:.1f} dB, attention within {max(differences):.1e}")
    assert max(differences) <= atol
    assert (pairs.seed_counts[:, 0] > 0).all()
