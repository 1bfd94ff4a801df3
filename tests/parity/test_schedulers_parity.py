"""Every call of a sampling run, add_noise and velocity against diffusers' schedulers."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seediff_jax import schedulers

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SAMPLERS = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False},
    "plms": {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
    "runge_kutta": {"_class_name": "PNDMScheduler", "skip_prk_steps": False},
}
SHAPE = (2, 8, 8, 4)


def json_of(sampler, **options):
    return {**STABLE_DIFFUSION, **SAMPLERS[sampler], **options}


def reference_of(json):
    options = {name: value for name, value in json.items() if name != "_class_name"}
    return getattr(diffusers, json["_class_name"])(**options)


def assert_trajectories_equal(json, num_steps):
    """Feeds both chains the same random predictions and compares the latents after every call."""
    reference = reference_of(json)
    reference.set_timesteps(num_steps)
    config = schedulers.scheduler_config(json)
    schedule, steps = (
        schedulers.make_noise_schedule(config),
        schedulers.make_steps(config, num_steps),
    )
    np.testing.assert_array_equal(steps.timesteps, reference.timesteps.numpy())

    random = np.random.default_rng(num_steps)
    latents = random.standard_normal(SHAPE, np.float32)
    noise_preds = random.standard_normal((len(steps.timesteps), *SHAPE), np.float32)

    def body(carry, inputs):
        latents, state = carry
        latents, state = schedulers.scheduler_step(config, schedule, state, latents, *inputs)
        return (latents, state), latents

    state = schedulers.init_scheduler_state(config, jnp.asarray(latents))
    carry = (jnp.asarray(latents), state)
    got = jax.lax.scan(body, carry, (jnp.asarray(noise_preds), steps))[1]

    sample = torch.from_numpy(latents)
    for index, timestep in enumerate(reference.timesteps):
        noise_pred = torch.from_numpy(noise_preds[index])
        sample = reference.step(noise_pred, timestep, sample).prev_sample
        # 50 updates whose factors are float32: two codes that round differently differ by 5e-6
        tolerance = 1e-5 * sample.numpy().std()
        np.testing.assert_allclose(got[index], sample.numpy(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 4, 7, 25, 50])
def test_trajectory_with_the_config_of_stable_diffusion(sampler, num_steps, prediction_type):
    json = json_of(sampler, prediction_type=prediction_type)
    if sampler == "runge_kutta" and num_steps < 4:  # neither can make three steps out of fewer
        with pytest.raises(ValueError):
            reference_of(json).set_timesteps(num_steps)
        with pytest.raises(ValueError):
            schedulers.make_steps(schedulers.scheduler_config(json), num_steps)
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


def test_trailing_spacing_leaves_out_the_timestep_minus_one_that_diffusers_adds():
    json = json_of("ddim", timestep_spacing="trailing")
    reference = reference_of(json)
    reference.set_timesteps(61)
    steps = schedulers.make_steps(schedulers.scheduler_config(json), 61)
    assert reference.timesteps.tolist() == [*steps.timesteps.tolist(), -1]


@pytest.mark.parametrize("class_name", ["DDIMScheduler", "PNDMScheduler"])
def test_defaults_are_those_of_diffusers(class_name):
    config = schedulers.scheduler_config({"_class_name": class_name})
    reference = getattr(diffusers, class_name)().config
    shared = vars(config).keys() & reference.keys()
    assert {"set_alpha_to_one", "beta_schedule", "timestep_spacing"} < shared
    assert {name: getattr(config, name) for name in shared} == {
        name: reference[name] for name in shared
    }


@pytest.mark.parametrize("class_name", ["DDIMScheduler", "PNDMScheduler"])
def test_override_of_another_scheduler_is_what_diffusers_makes_of_its_config(class_name):
    euler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1).config
    kind = {"DDIMScheduler": "ddim", "PNDMScheduler": "pndm"}[class_name]
    set_by_file = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}
    config = schedulers.scheduler_config({**set_by_file, "steps_offset": 1}, kind=kind)
    reference = getattr(diffusers, class_name).from_config(euler).config
    # clip_sample differs on purpose: DDIM's default would clip latents that were never clipped
    for name in (vars(config).keys() & reference.keys()) - {"clip_sample"}:
        assert getattr(config, name) == reference[name], name


def test_add_noise_and_velocity():
    json = json_of("ddim")
    reference = reference_of(json)
    schedule = schedulers.make_noise_schedule(schedulers.scheduler_config(json))
    random = np.random.default_rng(0)
    latents, noise = random.standard_normal((2, 5, *SHAPE[1:]), np.float32)
    timesteps = np.array([0, 1, 500, 981, 999], np.int32)
    for ours, theirs in (
        (schedulers.add_noise, reference.add_noise),
        (schedulers.velocity, reference.get_velocity),
    ):
        got = ours(schedule, jnp.asarray(latents), jnp.asarray(noise), jnp.asarray(timesteps))
        expected = theirs(
            torch.from_numpy(latents), torch.from_numpy(noise), torch.from_numpy(timesteps).long()
        )
        # one float32 rounding of the table, of two factors and of their sum
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=2e-6)
