"""Guidance in a part of the run: which calls have it, what they give and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.hlo_flops import count_flops
from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.models.model import predict_noise
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.guidance import guidance_segments, guide
from seediff_jax.sampling.sampler import denoise
from seediff_jax.schedulers.noise_schedule import make_noise_schedule
from seediff_jax.schedulers.step import init_scheduler_state, make_steps, scheduler_step
from tests.helpers.random_models import (
    normal,
    one_level_config,
    quick_jit,
    random_params,
    relative_difference,
)

STEPS, SCALE = 4, jnp.float32(5.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = one_level_config(tmp_path_factory.mktemp("made") / "tokenizer")
    made = make_model(config, random_params(config), model_id="random")
    return made.with_config(scheduler=made.scheduler_config.with_kind("ddim"))


@pytest.fixture(scope="module")
def arrays(model):
    """Latents, texts of two prompts, the negative one's, and which token is recorded."""
    unet = model.unet_config
    latents = normal(0, 2, unet.sample_size, unet.sample_size, unet.in_channels)
    text, negative = (normal(i, 2, 5, unet.cross_attention_dim) for i in (1, 2))
    weights = np.zeros((2, 5, 1), np.float32)
    weights[:, 2] = 1
    return tuple(map(jnp.asarray, (latents, text, negative, weights)))


def compiled(model, arrays, interval):
    latents, text, negative, weights = arrays

    def run(model, latents, text, negative, weights):
        return denoise(
            model,
            latents,
            text,
            negative,
            TokenColumns(weights),
            SCALE,
            STEPS,
            rng_seed=jnp.uint32(0),
            indices=jnp.arange(2),
            guidance_interval=interval,
        )

    return quick_jit(run).lower(model, latents, text, negative, weights).compile()


@pytest.fixture(scope="module")
def programs(model, arrays):
    """The program of each interval; and of None, without a negative prompt."""
    plain = (*arrays[:2], arrays[2][:0], arrays[3])
    intervals = ((0.0, 1.0), (0.25, 0.75), (0.5, 1.0))
    made = {interval: compiled(model, arrays, interval) for interval in intervals}
    return made | {None: compiled(model, plain, (0.0, 1.0))}


def by_hand(model, arrays, guided):
    """Latents and the mean of both records, one UNet call for each row and prompt."""
    latents, text, negative, weights = arrays
    steps, schedule = (
        make_steps(model.scheduler_config, STEPS),
        make_noise_schedule(model.scheduler_config),
    )
    state, records = init_scheduler_state(model.scheduler_config, latents), []
    for i, has_guidance in enumerate(guided):
        timesteps = np.full(2, steps.timesteps[i])
        noise_pred, maps = predict_noise(model, latents, timesteps, text, TokenColumns(weights))
        if has_guidance:
            away, _ = predict_noise(model, latents, timesteps, negative, TokenColumns(weights[:0]))
            noise_pred = guide(away, noise_pred, SCALE)
        step = jax.tree.map(lambda column, i=i: jnp.asarray(column[i]), steps)
        latents, state = scheduler_step(
            model.scheduler_config, schedule, state, latents, noise_pred, step
        )
        records.append(maps)
    return latents, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *records)


@pytest.mark.parametrize(
    ("interval", "guided"),
    [((0.0, 1.0), [1, 1, 1, 1]), ((0.25, 0.75), [0, 1, 1, 0]), ((0.5, 1.0), [0, 0, 1, 1])],
)
def test_there_is_guidance_in_the_interval_alone(model, arrays, programs, interval, guided):
    """And attention is that of the prompt, from all calls."""
    got, maps = programs[interval](model, *arrays)
    expected, expected_maps = by_hand(model, arrays, guided)
    # Networks are evaluated in another order of sums; random weights make that grow.
    assert relative_difference(got, expected) < 1e-3
    assert relative_difference(got, by_hand(model, arrays, [1, 0, 0, 0])[0]) > 0.01
    for one, other in zip(jax.tree.leaves(maps), jax.tree.leaves(expected_maps), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def test_calls_without_guidance_cost_half(programs):
    flops = {interval: count_flops(program.as_text()) for interval, program in programs.items()}
    plain = flops[None]
    assert flops[0.0, 1.0] == pytest.approx(2 * plain, rel=1e-3)
    assert flops[0.25, 0.75] == pytest.approx(1.5 * plain, rel=1e-3)
    assert flops[0.5, 1.0] == pytest.approx(1.5 * plain, rel=1e-3)


@pytest.mark.parametrize(
    ("interval", "calls", "expected"),
    [
        ((0.0, 1.0), 4, "gggg"),
        ((0.25, 0.75), 4, "-gg-"),
        ((0.2, 0.8), 50, "-" * 10 + "g" * 30 + "-" * 10),
        ((0.5, 1.0), 5, "--ggg"),  # the middle of a call counts
        ((0.0, 0.5), 5, "gg---"),
        ((0.0, 0.1), 6, "g-----"),
    ],
)
def test_an_interval_splits_the_calls_where_their_middles_lie(interval, calls, expected):
    text = ""
    for part, guided in guidance_segments(interval, calls):
        text += "-g"[guided] * len(range(calls)[part])
    assert text == expected


def test_intervals_without_a_call_or_out_of_order_are_refused():
    with pytest.raises(UserError, match="none of 4 UNet calls lies in guidance_interval=0.4,0.6"):
        guidance_segments((0.4, 0.6), 4)
    for wrong in ((0.5, 0.5), (0.8, 0.2), (0.5,), (0.0, 0.5, 1.0)):
        with pytest.raises(UserError, match="guidance_interval=.* must be two numbers that rise"):
            SamplingConfig(guidance_interval=wrong)
    with pytest.raises(UserError, match="guidance_interval=1.5 must be a finite number in 0..1"):
        SamplingConfig(guidance_interval=(0.5, 1.5))
