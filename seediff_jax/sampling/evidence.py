"""Whether an image shows a class: does the name of the class help to denoise the image?

    latents -> add_noise -> UNet calls for no text and for the name of each class
    -> how the name changes the prediction, and how much of that change is right -> evidence

A diffusion model classifies an image by the text with which it denoises best (Li et al., arXiv
2303.16203; Clark and Jaini, arXiv 2303.15233). Here each class is compared with no text, and each
location is kept apart, so that `masks.label_maps` can ask about the mask of the class alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from seediff_jax.array_typing import Array, Float, typechecked
from seediff_jax.models.model import Model, predict_noise
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.sampling.config import IMAGE_SIZE, SizeCondition
from seediff_jax.sampling.guidance import embed_prompts
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import step_noise
from seediff_jax.schedulers.noise_schedule import add_noise, make_noise_schedule, velocity

_NOISIEST = 0.8  # beyond it, images hardly depend on what they showed
_FIRST_DRAW = 2**30  # no sampling run has so many UNet calls


def evidence_timesteps(num_timesteps: int, draws: int) -> np.ndarray:
    """Timesteps of the draws, int32 `[draws]`: the middles of equal parts of the noise schedule.

    The last fifth of the schedule is left out.
    """
    middles = (np.arange(draws) + 0.5) / draws
    return (_NOISIEST * num_timesteps * middles).astype(np.int32)


@typechecked
def class_evidence(
    model: Model,
    latents: Float[Array, "b h w c0"],
    inputs: PairInputs,
    rng_seed: Array,
    draws: int,
    guidance_scale: Float[Array, ""],
    size_condition: SizeCondition = IMAGE_SIZE,
) -> Float[Array, "b h w c 2"]:
    """Measures at each location what the name of each class explains of given latents.

    Let y be what the UNet should predict of noised latents, e0 what it predicts without a text,
    and e what it predicts with the name of a class. The evidence is the sum of (y - e0)(e - e0)
    and the sum of (e - e0)^2, over channels and draws of noise. Their ratio over any region is
    the least-squares coefficient of the change e - e0: 1 where the change is right, and about 0
    where it has nothing to do with the image. Above 1/2, the name lowers the error.

    Args:
        model: its UNet is called `(1 + c) * draws` times.
        latents: of clean images, float32.
        inputs: with `evidence_token_ids`.
        rng_seed: uint32 `[]`, of the noise, which also depends on the indices.
        draws: number of draws of noise, static.
        guidance_scale: read by latent consistency models.
        size_condition: read by Stable Diffusion XL.

    Returns:
        float32, the two sums; in the mean over each image, the second one is 1. Both are 0 for a
        name without effect.
    """
    factor, grid = model.vae_config.downsampling, latents.shape[1:3]
    embed = functools.partial(
        embed_prompts,
        model,
        image_size=tuple(factor * side for side in grid),
        size_condition=size_condition,
        guidance_scale=guidance_scale,
    )
    texts = jnp.moveaxis(inputs.evidence_token_ids, 1, 0)
    nothing, names = embed(texts[0], is_negative=True), lax.map(embed, texts[1:])
    prompts = jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), nothing, names)
    scheduler, unrecorded = model.scheduler_config, TokenColumns(jnp.zeros((0, texts.shape[-1], 1)))
    schedule = make_noise_schedule(scheduler)
    predicts_velocity = scheduler.prediction_type == "v_prediction"
    timesteps = jnp.asarray(evidence_timesteps(scheduler.num_train_timesteps, draws))

    def draw(total: Array, number: Array) -> tuple[Array, None]:
        timestep = jnp.full(latents.shape[0], timesteps[number])
        noise = step_noise(model, rng_seed, inputs.indices, _FIRST_DRAW + number, grid)
        noised = add_noise(schedule, latents, noise, timestep)
        target = velocity(schedule, latents, noise, timestep) if predicts_velocity else noise

        def predict(prompt):
            text, conditions = prompt
            return predict_noise(model, noised, timestep, text, unrecorded, conditions)[0]

        predictions = lax.map(predict, prompts)
        change, error = predictions[1:] - predictions[:1], target[None] - predictions[:1]
        right, size = jnp.sum(error * change, axis=-1), jnp.sum(change**2, axis=-1)
        return total + jnp.stack([right, size], axis=-1), None

    count = texts.shape[0] - 1
    # Zeros on the devices of the latents, as the start of a loop under jax.shard_map has to be.
    start = jnp.zeros_like(latents, shape=(count, latents.shape[0], *grid, 2))
    total, _ = lax.scan(draw, start, jnp.arange(draws, dtype=jnp.int32))
    mean = jnp.mean(total[..., 1:], axis=(2, 3), keepdims=True)
    evidence = total / jnp.where(mean > 0, mean, 1)
    return jnp.moveaxis(evidence, 0, 3)
