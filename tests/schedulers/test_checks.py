"""A scheduler that cannot make finite samples is refused by `make_steps`, without a model."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.errors import UserError
from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import SchedulerConfig, scheduler_config
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.scheduler_runs import BETAS

SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction")
# Betas so large that the float32 share of signal is 0 before the last timestep.
UNDERFLOW = {"beta_start": 0.3, "beta_end": 0.9}


def last_latents(config, num_steps):
    """Runs the sampler on noise with a fixed prediction; returns the last latents."""
    steps, schedule = (
        schedulers.make_steps(config, num_steps),
        noise_schedule.make_noise_schedule(config),
    )
    noise = jnp.full((1, 2, 2, 1), 0.7)
    latents = noise * schedulers.initial_noise_scale(config, num_steps)
    state = schedulers.init_scheduler_state(config, latents)
    fresh = noise if schedulers.is_stochastic(config) else None
    for index in range(len(steps.timesteps)):
        step = jax.tree.map(lambda leaf, index=index: jnp.asarray(leaf[index]), steps)
        inputs = schedulers.scale_input(config, latents, step)
        assert np.isfinite(inputs).all()
        latents, state = schedulers.scheduler_step(
            config, schedule, state, latents, noise, step, fresh
        )
    return latents


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("betas", [BETAS, UNDERFLOW], ids=["usual", "underflow"])
def test_every_choice_of_options_gives_finite_samples_or_is_refused(kind, betas):
    outcomes = set()
    choices = itertools.product((False, True), SPACINGS, PREDICTIONS, (False, True))
    for zero_snr, spacing, prediction_type, prk in choices:
        options = {"timestep_spacing": spacing, "prediction_type": prediction_type, **betas}
        if kind == "pndm":
            options["skip_prk_steps"] = prk
        if zero_snr:
            options["rescale_betas_zero_snr"] = True
        try:
            latents = last_latents(SchedulerConfig(kind=kind, **options), 4)
        except UserError as error:
            outcomes.add("refused")
            assert "\n" not in str(error) and len(str(error)) < 400
        else:
            outcomes.add("finite")
            assert np.isfinite(latents).all(), options
    if betas is BETAS:
        assert "finite" in outcomes
    else:
        assert "refused" in outcomes


@pytest.mark.parametrize("kind", ["ddim", "ddpm", "lcm"])
def test_epsilon_is_refused_at_pure_noise_and_velocity_is_not(kind):
    options = {"kind": kind, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    with pytest.raises(UserError, match="timestep 999 is pure noise .*prediction_type='epsilon'"):
        schedulers.make_steps(SchedulerConfig(**options), 10)
    schedulers.make_steps(SchedulerConfig(**options, prediction_type="v_prediction"), 10)
    # "leading" spacing does not reach the last timestep.
    leading = SchedulerConfig(**{**options, "timestep_spacing": "leading"})
    if kind != "lcm":
        schedulers.make_steps(leading, 10)


def test_a_scheduler_of_the_registry_without_updates_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(schedulers._STEPS, "euler")
    with pytest.raises(UserError, match=r"^the scheduler 'euler' has no updates; choose .*ddim"):
        schedulers.make_steps(SchedulerConfig(kind="euler"), 10)


def test_a_scheduler_whose_state_forgets_a_prediction_that_is_weighed_is_refused(monkeypatch):
    monkeypatch.setattr(schedulers, "init_mixing_state", lambda config, latents: ())
    message = "weights of 'dpmsolver_multistep' are for 2 predictions, but 1 are there"
    with pytest.raises(ValueError, match=message):
        last_latents(SchedulerConfig(kind="dpmsolver_multistep", **BETAS), 4)


@pytest.mark.parametrize("skip_prk_steps", [False, True])
def test_pndm_is_refused_where_the_signal_underflows(skip_prk_steps):
    config = SchedulerConfig(kind="pndm", skip_prk_steps=skip_prk_steps, **UNDERFLOW)
    with pytest.raises(UserError, match="is pure noise"):
        schedulers.make_steps(config, 10)


def test_a_schedule_of_one_timestep_cannot_end_in_pure_noise():
    with pytest.raises(UserError, match="needs num_train_timesteps of 2 or more"):
        SchedulerConfig(kind="ddim", num_train_timesteps=1, rescale_betas_zero_snr=True)


def test_long_values_of_a_file_are_shortened_in_messages():
    json = {"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 100_000}
    with pytest.raises(UserError) as error:
        scheduler_config(json)
    assert len(str(error.value)) < 300 and "trained_betas=[0.1, 0.1" in str(error.value)
    json = {"_class_name": "DDIMScheduler"} | {f"option_{i}\x1b": 1 for i in range(1000)}
    with pytest.raises(UserError, match="and 990 more") as error:
        scheduler_config(json)
    assert len(str(error.value)) < 500 and str(error.value).isprintable()
