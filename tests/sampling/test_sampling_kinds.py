"""Sampling with every kind of scheduler: finite, with few calls, and independent of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.checkpoints.load import make_model
from seediff_jax.prompts.tokenizer import class_token_mask
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import initial_latents, step_noise
from seediff_jax.sampling.sampler import require_finite, sample
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.random_models import quick_jit, random_params, relative_difference, small_config

PROMPTS, CLASSES = ["a cat", "a dog", "a cow"], [["cat"], ["dog"], ["cow"]]
SETTINGS = {"rng_seed": np.uint32(7), "guidance_scale": np.float32(3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return make_model(config, random_params(config), model_id="random")


def of_kind(model, kind):
    return model.with_config(scheduler=model.scheduler_config.with_kind(kind))


def inputs(model, rows):
    prompts = [PROMPTS[row] for row in rows]
    token_mask = class_token_mask(model.tokenizer, prompts, [CLASSES[row] for row in rows])
    negative = model.tokenizer.encode(["a red cup"] * len(rows))
    return model.tokenizer.encode(prompts), negative, token_mask, np.array(rows, np.int32)


def run(model, rows, num_steps=3):
    config = SamplingConfig(num_steps=num_steps)
    program = quick_jit(functools.partial(sample, config=config))
    return program(model, PairInputs(*inputs(model, rows)), **SETTINGS)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_images_are_finite_and_attention_is_a_mean_over_the_calls(model, kind):
    samples = run(of_kind(model, kind), [0, 1])
    require_finite(samples, np.arange(2))
    assert samples.images.std(axis=(1, 2, 3)).min() > 5
    assert relative_difference(samples.latents[0], samples.latents[1]) > 0.5
    # Each of the two heads of a layer gives probabilities, whose mean sums to 1.
    np.testing.assert_allclose(samples.attention_maps.self_attention[8].sum(-1), 2, rtol=1e-4)


def test_fresh_noise_depends_on_seed_index_and_call_alone(model):
    seed, indices = jnp.uint32(7), jnp.arange(4)
    noise = step_noise(model, seed, indices, jnp.int32(2))
    np.testing.assert_array_equal(step_noise(model, seed, indices[2:], jnp.int32(2)), noise[2:])
    others = [
        step_noise(model, seed, indices, jnp.int32(0)),
        step_noise(model, jnp.uint32(8), indices, jnp.int32(2)),
        step_noise(model, seed, indices + 1, jnp.int32(2)),
        initial_latents(model, seed, indices),
        initial_latents(model, jnp.uint32(2), indices),
    ]
    assert not any(np.isclose(noise, other, atol=1e-6).any() for other in others)
    many = np.asarray(step_noise(model, seed, jnp.arange(200), jnp.int32(0)))
    # 51200 standard normal values: three standard errors of mean and deviation.
    assert abs(many.mean()) < 0.014 and abs(many.std() - 1) < 0.01


def test_a_stochastic_sample_does_not_depend_on_the_batch_that_it_is_part_of(model):
    model = of_kind(model, "ddpm")
    alone, batch = run(model, [2]), run(model, [0, 1, 2])
    # Networks are evaluated in another order of sums.
    assert relative_difference(alone.latents, batch.latents[2:]) < 1e-3


@pytest.mark.parametrize(("kind", "num_steps"), [("lcm", 4), ("euler", 1)])
def test_few_steps_without_guidance_are_compiled_without_the_unconditional_half(
    model, kind, num_steps
):
    def lowered(use_guidance):
        config = SamplingConfig(num_steps=num_steps)
        program = jax.jit(functools.partial(sample, config=config))
        arrays = PairInputs(*inputs(model, [0, 1, 2]))
        if not use_guidance:
            arrays = arrays.replace(negative_token_ids=None)
        return program.lower(of_kind(model, kind), arrays, **SETTINGS).as_text()

    # The UNet's first convolution, of three samples with 8 x 8 latents and 16 channels.
    assert "tensor<6x8x8x16xf32>" in lowered(use_guidance=True)
    plain = lowered(use_guidance=False)
    assert "tensor<6x8x8x16xf32>" not in plain and "tensor<3x8x8x16xf32>" in plain
