"""Runs diffusers' schedulers and ours step by step, with the same predictions and noise."""

import contextlib
import sys
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import scheduler_config

STABLE_DIFFUSION = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
SHAPE = (2, 8, 8, 4)


def reference_of(json):
    options = {name: value for name, value in json.items() if name != "_class_name"}
    return getattr(diffusers, json["_class_name"])(**options)


def own_noise(reference, draw):
    """Makes a scheduler of diffusers draw its noise with `draw()`, a torch tensor."""
    module = sys.modules[type(reference).__module__]
    if not hasattr(module, "randn_tensor"):
        return contextlib.nullcontext()
    return mock.patch.object(module, "randn_tensor", lambda *_, **__: draw())


def run_ours(config, num_steps, latents, noise_preds, noises):
    """Returns the UNet's input and the latents of each call."""
    schedule = noise_schedule.make_noise_schedule(config)
    noises = jnp.asarray(noises) if schedulers.is_stochastic(config) else None

    def body(carry, inputs):
        (latents, state), (noise_pred, step, noise) = carry, inputs
        scaled = schedulers.scale_input(config, latents, step)
        arguments = (config, schedule, state, latents, noise_pred, step, noise)
        latents, state = schedulers.scheduler_step(*arguments)
        return (latents, state), (scaled, latents)

    latents = jnp.asarray(latents) * schedulers.initial_noise_scale(config, num_steps)
    carry = (latents, schedulers.init_scheduler_state(config, latents))
    inputs = (jnp.asarray(noise_preds), schedulers.make_steps(config, num_steps), noises)
    return jax.lax.scan(body, carry, inputs)[1]


def assert_trajectories_equal(json, num_steps, timestep_tolerance=0.0):
    """Compares timesteps, the UNet's input and the latents after each call."""
    reference = reference_of(json)
    reference.set_timesteps(num_steps)
    config = scheduler_config(json)
    timesteps = schedulers.make_steps(config, num_steps).timesteps
    expected = reference.timesteps.numpy()
    np.testing.assert_allclose(timesteps, expected, rtol=0, atol=timestep_tolerance)

    random = np.random.default_rng(num_steps)
    latents = random.standard_normal(SHAPE, np.float32)
    noise_preds, noises = random.standard_normal((2, len(timesteps), *SHAPE), np.float32)
    got_inputs, got = run_ours(config, num_steps, latents, noise_preds, noises)

    scale = reference.init_noise_sigma
    np.testing.assert_allclose(
        schedulers.initial_noise_scale(config, num_steps), float(scale), rtol=1e-5
    )
    sample, largest = torch.from_numpy(latents) * scale, 0.0
    for index, timestep in enumerate(reference.timesteps):
        inputs = reference.scale_model_input(sample, timestep)
        with own_noise(reference, lambda index=index: torch.from_numpy(noises[index])):
            sample = reference.step(torch.from_numpy(noise_preds[index]), timestep, sample)
        sample = sample.prev_sample
        for ours, theirs in ((got_inputs[index], inputs), (got[index], sample)):
            theirs = theirs.numpy()
            difference = np.abs(np.asarray(ours) - theirs).max() / theirs.std()
            largest = max(largest, float(difference))
    # Updates whose factors are float32: two codes that round differently differ by up to 5e-6.
    assert largest < 1e-5, (json, num_steps, largest)
