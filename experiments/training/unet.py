"""Stage "unet": text encoder and UNet together, on the latents of the scenes.

v-prediction (Salimans and Ho, arXiv 2202.00512) with min-SNR weighting (Hang et al., arXiv
2303.09556); 10 % of the captions are emptied for classifier-free guidance.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from experiments.training.state import (
    Params,
    Schedule,
    init_state,
    read_average,
    read_step,
    run_steps,
)
from experiments.training.vae import load_latents
from seediff_jax.models.capture import NO_CAPTURE
from seediff_jax.models.model import ModelConfig, make_modules
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.schedulers.noise_schedule import add_noise, make_noise_schedule, velocity

_SNR_CAP = 5.0
_CAPTION_DROPOUT = 0.1


def unet_loss(modules, schedule, params: Params, rng, latents, token_ids, empty_ids) -> jax.Array:
    """Error of the predicted velocity at random timesteps, weighted by min-SNR."""
    rng_time, rng_noise, rng_drop = jax.random.split(rng, 3)
    count = latents.shape[0]
    # One timestep in each of `count` equal parts of the schedule: a less noisy mean of the loss.
    parts = (jnp.arange(count, dtype=jnp.float32) + jax.random.uniform(rng_time, (count,))) / count
    timesteps = (parts * schedule.alphas_cumprod.shape[0]).astype(jnp.int32)
    noise = jax.random.normal(rng_noise, latents.shape)
    dropped = jax.random.uniform(rng_drop, (count, 1)) < _CAPTION_DROPOUT
    text = modules["text_encoder"].apply(
        {"params": params["text_encoder"]}, jnp.where(dropped, empty_ids, token_ids)
    )
    noisy = add_noise(schedule, latents, noise, timesteps)
    nothing_recorded = TokenColumns(jnp.zeros((0, token_ids.shape[1], 1)))
    predicted, _ = modules["unet"].apply(
        {"params": params["unet"]}, noisy, timesteps, text.last, nothing_recorded
    )
    target = velocity(schedule, latents, noise, timesteps)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weight = (jnp.minimum(snr, _SNR_CAP) / (snr + 1))[timesteps]
    return jnp.mean(weight * jnp.mean((predicted - target) ** 2, axis=(1, 2, 3)))


def read_unet(params: Params, run_dir: pathlib.Path, kind: str = "unet") -> Params:
    """The averaged weights of text encoder and UNet so far, of the stage "unet" or "inner"."""
    trained = {key: params[key] for key in ("text_encoder", "unet")}
    return read_average(run_dir / f"{kind}.npz", trained)


def train_unet(
    config: ModelConfig, params: Params, run_dir: pathlib.Path, images, captions, *,
    side: int, batch_size: int, schedule: Schedule, dtype: DTypeLike = jnp.float32,
    kind: str = "unet",
) -> int:  # fmt: skip
    """Trains text encoder and UNet on the latents of all scenes; returns the last step."""
    path = run_dir / f"{kind}.npz"
    if read_step(path) >= schedule.steps:
        return schedule.steps
    modules = make_modules(config, dtype)
    modules["unet"] = modules["unet"].clone(capture=NO_CAPTURE)
    stored = load_latents(config, params, run_dir, images, side)
    token_ids, empty_ids = config.tokenizer.encode(captions), config.tokenizer.encode([""])

    def make_batch(step):
        chosen = np.random.default_rng((3, step)).integers(0, len(stored), batch_size)
        return stored[chosen].astype(np.float32) * config.vae.scaling_factor, token_ids[chosen]

    noise_schedule = make_noise_schedule(config.scheduler)

    def loss(params, rng, latents, token_ids):
        return unet_loss(modules, noise_schedule, params, rng, latents, token_ids, empty_ids)

    trained = {key: params[key] for key in ("text_encoder", "unet")}
    state = init_state(trained, schedule)
    return int(run_steps(state, loss, make_batch, path, schedule).step)
