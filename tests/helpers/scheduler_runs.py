"""Runs a sampler with a function in place of the UNet."""

import jax

from seediff_jax.schedulers import noise_schedule
from seediff_jax.schedulers import step as schedulers
from seediff_jax.schedulers.config import SchedulerConfig

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = SchedulerConfig(kind="ddim", **BETAS)
PLMS = SchedulerConfig(kind="pndm", skip_prk_steps=True, **BETAS)
RUNGE_KUTTA = SchedulerConfig(kind="pndm", **BETAS)
SHAPE = (2, 4, 4, 3)


def normal(index, shape=SHAPE):
    return jax.random.normal(jax.random.key(index), shape)


def sample(config, latents, predict, num_steps):
    """Runs all steps from `latents`; `predict(inputs, step)` takes the place of the UNet."""
    schedule = noise_schedule.make_noise_schedule(config)

    def body(carry, inputs):
        (latents, state), (step, key) = carry, inputs
        noise_pred = predict(schedulers.scale_input(config, latents, step), step)
        noise = None
        if schedulers.is_stochastic(config):
            noise = jax.random.normal(key, latents.shape)
        arguments = (config, schedule, state, latents, noise_pred, step, noise)
        return schedulers.scheduler_step(*arguments), None

    @jax.jit
    def run(latents, steps):
        state = schedulers.init_scheduler_state(config, latents)
        keys = jax.random.split(jax.random.key(99), len(steps.timesteps))
        return jax.lax.scan(body, (latents, state), (steps, keys))[0][0]

    return run(latents, schedulers.make_steps(config, num_steps))
