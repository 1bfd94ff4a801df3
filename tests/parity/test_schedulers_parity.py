"""DDIM, PNDM, add_noise, velocity and the reading of files equal diffusers' schedulers."""

import inspect

import diffusers
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import scheduler_config, scheduler_json
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.diffusers_schedulers import (
    SHAPE,
    STABLE_DIFFUSION,
    assert_trajectories_equal,
    reference_of,
)

# diffusers converts torch tensors to arrays in a way that NumPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SAMPLERS = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False},
    "plms": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "runge_kutta": {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
}


def json_of(sampler, **options):
    return {**STABLE_DIFFUSION, "steps_offset": 1, **SAMPLERS[sampler], **options}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 25, 50])
def test_trajectory_with_the_config_of_stable_diffusion(sampler, num_steps, prediction_type):
    json = json_of(sampler, prediction_type=prediction_type)
    if sampler == "runge_kutta" and num_steps < 4:  # neither takes fewer than 4 steps
        with pytest.raises(ValueError):
            reference_of(json).set_timesteps(num_steps)
        with pytest.raises(ValueError):
            schedulers.make_steps(scheduler_config(json), num_steps)
    else:
        assert_trajectories_equal(json, num_steps)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectory_with_other_schedules_and_spacings(sampler, timestep_spacing, beta_schedule):
    json = json_of(
        sampler,
        beta_schedule=beta_schedule,
        timestep_spacing=timestep_spacing,
        set_alpha_to_one=True,
        num_train_timesteps=430,
    )
    assert_trajectories_equal(json, 30)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 2.0, "prediction_type": "v_prediction"},
        {
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
        },
    ],
)
def test_trajectory_with_options_of_ddim(options):
    assert_trajectories_equal(json_of("ddim", **options), 50)


def test_trailing_spacing_omits_the_timestep_minus_one_that_diffusers_adds():
    json = json_of("ddim", timestep_spacing="trailing")
    reference = reference_of(json)
    reference.set_timesteps(61)
    steps = schedulers.make_steps(scheduler_config(json), 61)
    assert reference.timesteps.tolist() == [*steps.timesteps.tolist(), -1]


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_defaults_are_those_of_diffusers(kind):
    written = scheduler_json(scheduler_config({"_class_name": SCHEDULERS[kind].class_name}))
    reference = getattr(diffusers, SCHEDULERS[kind].class_name)().config
    assert {"prediction_type", "beta_schedule", "timestep_spacing"} < written.keys()
    del written["_class_name"]
    assert written == {name: reference[name] for name in written}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_default_file_of_diffusers_survives_reading_and_writing(kind):
    """diffusers drops an unexpected key with a warning only."""
    reference = getattr(diffusers, SCHEDULERS[kind].class_name)()
    config = scheduler_config(dict(reference.config) | {"_class_name": SCHEDULERS[kind].class_name})
    written = scheduler_json(config)
    assert written.keys() - {"_class_name"} <= inspect.signature(type(reference)).parameters.keys()
    again = type(reference).from_config(written).config
    assert _options(again) == _options(reference.config)


def _options(config):
    return {name: value for name, value in config.items() if not name.startswith("_")}


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("other", ["EulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_choosing_another_scheduler_equals_from_config_of_diffusers(kind, other):
    file = getattr(diffusers, other)(beta_schedule="scaled_linear", steps_offset=1).config
    # diffusers ignores defaults of the other scheduler; older files do not contain them.
    set_by_file = {"_class_name": other, "beta_schedule": "scaled_linear", "steps_offset": 1}
    config = scheduler_config(set_by_file, kind=kind)
    reference = getattr(diffusers, SCHEDULERS[kind].class_name).from_config(file).config
    # clip_sample differs on purpose: a default would clip latents that were never clipped
    for name in scheduler_json(config).keys() - {"_class_name", "clip_sample"}:
        assert getattr(config, name) == reference[name], name


def test_add_noise_and_velocity():
    json = json_of("ddim")
    reference = reference_of(json)
    schedule = noise_schedule.make_noise_schedule(scheduler_config(json))
    random = np.random.default_rng(0)
    latents, noise = random.standard_normal((2, 5, *SHAPE[1:]), np.float32)
    timesteps = np.array([0, 1, 500, 981, 999], np.int32)
    for ours, theirs in (
        (noise_schedule.add_noise, reference.add_noise),
        (noise_schedule.velocity, reference.get_velocity),
    ):
        got = ours(schedule, jnp.asarray(latents), jnp.asarray(noise), jnp.asarray(timesteps))
        expected = theirs(
            torch.from_numpy(latents), torch.from_numpy(noise), torch.from_numpy(timesteps).long()
        )
        # one float32 rounding of the table, of two factors and of their sum
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2e-6)
