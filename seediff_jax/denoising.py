"""Denoising: from noise to the latents of images, and the attention of the UNet calls on the way.

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598); attention is that of the conditional
half alone (method section 1).
"""

import jax
import jax.numpy as jnp
import numpy as np

from seediff_jax.arrays import Array, Float, Int, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.guidance import guide
from seediff_jax.model import Model, predict_noise
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.noise import step_noise
from seediff_jax.schedulers import (
    MixingSteps,
    Steps,
    init_scheduler_state,
    initial_noise_scale,
    is_stochastic,
    make_noise_schedule,
    make_steps,
    scale_input,
    scheduler_step,
)


@typechecked
def denoise(
    model: Model,
    latents: Float[Array, "b h w c"],
    text_embeddings: Float[Array, "b l d"],
    negative_text_embeddings: Float[Array, "u l d"],
    columns: TokenColumns,
    guidance_scale: Float[Array, ""],
    num_steps: int,
    *,
    rng_seed: Array,
    indices: Int[Array, " b"],
    conditions: Conditions = NO_CONDITIONS,
    negative_conditions: Conditions = NO_CONDITIONS,
    guidance_rescale: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
    """Takes noise to latents of images and averages the attention of the UNet calls.

    Args:
        model: the model.
        latents: float32, standard normal noise.
        text_embeddings: of the prompts.
        negative_text_embeddings: of what to guide away from, u = b; or u = 0 for no guidance.
        columns: see `predict_noise`; of all b rows, or of none to record nothing.
        guidance_scale: weight of the prompts.
        num_steps: static.
        rng_seed: uint32 `[]`, read by stochastic samplers alone, as are the indices.
        indices: int32, of the samples.
        conditions: of the prompts.
        negative_conditions: of what to guide away from.
        guidance_rescale: see `guide`.
    """
    scheduler, steps = model.scheduler_config, make_steps(model.scheduler_config, num_steps)
    schedule = make_noise_schedule(scheduler)
    guided = negative_text_embeddings.shape[0] > 0
    text = jnp.concatenate([negative_text_embeddings, text_embeddings])
    conditions = jax.tree.map(lambda *rows: jnp.concatenate(rows), negative_conditions, conditions)

    def predict(latents: Array, timestep: Array) -> tuple[Array, AttentionMaps]:
        inputs = jnp.concatenate([latents, latents]) if guided else latents
        timesteps = jnp.full(inputs.shape[0], timestep)
        noise_pred, maps = predict_noise(model, inputs, timesteps, text, columns, conditions)
        if guided:
            noise_pred = guide(*jnp.split(noise_pred, 2), guidance_scale, guidance_rescale)
        return noise_pred, maps

    def call(carry, inputs: tuple[Steps | MixingSteps, Array | None, Array | None]):
        (latents, state, total), (step, number, weight) = carry, inputs
        noise_pred, maps = predict(scale_input(scheduler, latents, step), step.timesteps)
        if weight is not None:
            maps = jax.tree.map(lambda leaf: weight * leaf, maps)
        noise = None
        if number is not None:
            noise = step_noise(model, rng_seed, indices, number, latents.shape[1:3])
        latents, state = scheduler_step(
            scheduler, schedule, state, latents, noise_pred, step, noise
        )
        return (latents, state, jax.tree.map(jnp.add, total, maps)), None

    if (scale := initial_noise_scale(scheduler, num_steps)) != 1:
        latents = scale * latents
    _, maps = jax.eval_shape(predict, latents, steps.timesteps[0])
    total = jax.tree.map(lambda leaf: _zeros(latents, leaf), maps)
    state = init_scheduler_state(scheduler, latents)
    state = jax.tree.map(lambda leaf: leaf + _zeros(latents, leaf), state)
    calls = len(steps.timesteps)
    recorded = np.array(model.capture.recorded_calls(calls), np.float32)
    xs = (
        steps,
        np.arange(calls, dtype=np.int32) if is_stochastic(scheduler) else None,
        None if recorded.all() else recorded,
    )
    (latents, _, total), _ = jax.lax.scan(call, (latents, state, total), xs)
    return latents, jax.tree.map(lambda leaf: leaf / float(recorded.sum()), total)


def _zeros(latents: Array, like: Array | jax.ShapeDtypeStruct) -> Array:
    # Zeros that belong to the devices of the latents: under jax.shard_map a loop may not start from
    # a constant where it goes on with values that differ between devices.
    return jnp.zeros_like(latents, like.dtype, like.shape)
