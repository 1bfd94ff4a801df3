"""Stages "vae" and "decoder": images <-> latents."""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from experiments.training.state import (
    Params,
    Schedule,
    init_state,
    read_average,
    read_step,
    run_steps,
)
from seediff_jax.models.model import ModelConfig, make_modules

_KL_WEIGHT = 1e-4
_SQUARED_WEIGHT = 5.0
_EDGE_WEIGHT = 0.5
_CROP = 64
_ENCODER = ("encoder", "quant_conv")


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 `[b, n, n, 3]` -> float32 `[b, side, side, 3]` in [-1, 1], by block means."""
    factor = images.shape[1] // side
    blocks = images.reshape(len(images), side, factor, side, factor, 3)
    return (blocks.mean(axis=(2, 4), dtype=np.float32) / 127.5 - 1).astype(np.float32)


def reconstruction_loss(found: jax.Array, images: jax.Array) -> jax.Array:
    """Absolute and squared error, and the absolute error of differences between neighbours."""
    error = found - images
    edges = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    squared = _SQUARED_WEIGHT * jnp.mean(error**2)
    return jnp.mean(jnp.abs(error)) + squared + _EDGE_WEIGHT * edges


def vae_loss(modules, params: Params, rng: jax.Array, images: jax.Array) -> jax.Array:
    """Reconstruction from a sample of the latents, and a slight pull to the normal distribution."""
    vae = {"params": params["vae"]}
    mean, log_variance = modules["vae"].apply(vae, images, method="encode")
    latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(rng, mean.shape)
    found = modules["vae"].apply(vae, latents, method="decode")
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return reconstruction_loss(found, images) + _KL_WEIGHT * kl


def decoder_loss(modules, encoder: Params, params: Params, rng, images: jax.Array) -> jax.Array:
    """Reconstruction with a frozen encoder; the latents are those that the UNet learns."""
    vae = {"params": encoder | params["vae"]}
    mean, _ = modules["vae"].apply(vae, images, method="encode")
    # The UNet's latents are not exact: 3 % of noise.
    noise = 0.03 * jnp.std(mean) * jax.random.normal(rng, mean.shape)
    latents = jax.lax.stop_gradient(mean + noise)
    return reconstruction_loss(modules["vae"].apply(vae, latents, method="decode"), images)


def _make_batch(images: np.ndarray, batch_size: int, step: int) -> tuple[np.ndarray]:
    """Crops at full size in even steps, whole scenes at half size in odd ones."""
    rng = np.random.default_rng((2, step))
    chosen = images[rng.integers(0, len(images), batch_size)]
    if step % 2:
        return (shrink(chosen, _CROP),)
    y, x = rng.integers(0, images.shape[1] - _CROP + 1, 2)
    return (shrink(chosen[:, y : y + _CROP, x : x + _CROP], _CROP),)


def read_vae(config: ModelConfig, params: Params, run_dir: pathlib.Path) -> Params:
    """The VAE's averaged weights so far: the decoder's of its own stage, if there was one."""
    vae = read_average(run_dir / "vae.npz", {"vae": params["vae"]})["vae"]
    decoder = {"vae": {key: vae[key] for key in vae if key not in _ENCODER}}
    return vae | read_average(run_dir / "decoder.npz", decoder)["vae"]


def train_vae(
    config: ModelConfig, params: Params, run_dir: pathlib.Path, images, held_out, *,
    batch_size: int, schedule: Schedule, decoder_only: bool
) -> int:  # fmt: skip
    """Trains the VAE, or its decoder alone; returns the last step.

    Logs the PSNR on the held-out images, unless there was nothing left to train.
    """
    path = run_dir / ("decoder.npz" if decoder_only else "vae.npz")
    if read_step(path) >= schedule.steps:
        return schedule.steps
    modules = make_modules(config)
    make_batch = functools.partial(_make_batch, images, batch_size)
    if decoder_only:
        vae = read_average(run_dir / "vae.npz", {"vae": params["vae"]})["vae"]
        encoder = {key: vae[key] for key in _ENCODER}
        loss = functools.partial(decoder_loss, modules, encoder)
        start = {"vae": {key: vae[key] for key in vae if key not in _ENCODER}}
        state = run_steps(init_state(start, schedule), loss, make_batch, path, schedule)
    else:
        loss = functools.partial(vae_loss, modules)
        start = {"vae": params["vae"]}
        state = run_steps(init_state(start, schedule), loss, make_batch, path, schedule)
    vae = read_vae(config, params, run_dir)
    latents = encode(modules, vae, held_out, 128)
    if not decoder_only:
        write_latent_scale(run_dir, float(1 / latents.std()))
    for side in (128, 64):
        logging.info("VAE at %d pixels: %.2f dB PSNR", side, psnr(modules, vae, held_out, side))
    return int(state.step)


def write_latent_scale(run_dir: pathlib.Path, scale: float) -> None:
    """Writes what latents are multiplied by, to have a standard deviation of one."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "latent_scale.json").write_text(json.dumps(round(scale, 5)))


def psnr(modules, vae_params: Params, images: np.ndarray, side: int) -> float:
    """Peak signal to noise ratio of the images after a round trip."""
    decode = jax.jit(lambda x: modules["vae"].apply({"params": vae_params}, x, method="decode"))
    latents = encode(modules, vae_params, images, side)
    found = [np.clip(decode(latents[i : i + 32]), -1, 1) for i in range(0, len(images), 32)]
    error = np.concatenate(found) - shrink(images, side)
    return float(-10 * np.log10(np.mean(error**2) / 4))


def encode(modules, vae_params: Params, images: np.ndarray, side: int) -> np.ndarray:
    """uint8 images -> means of their latents, not yet scaled, float32."""

    @jax.jit
    def encode_some(some):
        return modules["vae"].apply({"params": vae_params}, some, method="encode")[0]

    parts = [shrink(images[i : i + 64], side) for i in range(0, len(images), 64)]
    return np.concatenate([np.asarray(encode_some(part)) for part in parts])


def load_latents(config: ModelConfig, params: Params, run_dir: pathlib.Path, images, side: int):
    """Latents of the scenes, not yet scaled: encoded once for each encoder and image side."""
    vae = read_average(run_dir / "vae.npz", {"vae": params["vae"]})["vae"]
    total = sum(float(np.abs(x).sum(dtype=np.float64)) for x in jax.tree.leaves(vae["encoder"]))
    file = run_dir / f"latents_{side}px_{len(images)}_{total:.6f}.npy"
    if not file.exists():
        aside = file.with_suffix(".part.npy")
        np.save(aside, encode(make_modules(config), vae, images, side).astype(np.float16))
        os.replace(aside, file)
    return np.load(file)
