"""Trains the embedded model on rendered scenes: first the VAE, then text encoder and UNet together.

    python -m experiments.shapes.train --stage=vae --image_side=64 --minutes=10
    python -m experiments.shapes.train --stage=unet --image_side=64 --minutes=30
    python -m experiments.shapes.train --stage=unet --minutes=120
    python -m experiments.shapes.train --stage=export

A run that is stopped, or killed, goes on from its last checkpoint when it is started again; batches
and noise follow from the step alone. All devices of the machine share each batch. To train a
published model further, start a run with `--init_from=seediff_jax/assets/shapes`.

v-prediction (Salimans and Ho, arXiv 2202.00512) with min-SNR weighting (Hang et al., arXiv
2303.09556); 10 % of the captions are emptied for classifier-free guidance.
"""

import functools
import json
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import app, flags, logging
from flax import struct
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.shapes import recipe
from experiments.shapes.scenes import load_scenes
from seediff_jax import checkpoints, schedulers
from seediff_jax.model_config import ModelConfig, init_params, make_modules
from seediff_jax.models import config as configs
from seediff_jax.models.capture import NO_CAPTURE, published_capture
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.scheduler_configs import scheduler_config
from seediff_jax.tokenizer import load_tokenizer

_STAGE = flags.DEFINE_enum("stage", "unet", ["vae", "unet", "export"], "What to do.")
_RUN_DIR = flags.DEFINE_string("run_dir", "runs/shapes", "Scenes, checkpoints and the log.")
_EXPORT_DIR = flags.DEFINE_string("export_dir", "runs/shapes/export", "Folder of --stage=export.")
_INIT_FROM = flags.DEFINE_string("init_from", None, "A diffusers folder to start a new run from.")
_IMAGE_SIDE = flags.DEFINE_enum("image_side", "128", ["64", "128"], "Edge of the images, pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images a step.", lower_bound=1)
_NUM_SCENES = flags.DEFINE_integer("num_scenes", 20480, "Rendered scenes.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Of AdamW, after 100 steps of warm-up.")
_EMA_DECAY = flags.DEFINE_float("ema_decay", 0.998, "Of the averaged weights that are exported.")
_MINUTES = flags.DEFINE_float("minutes", 60, "Stop, with a checkpoint, after so long.")
_STEPS = flags.DEFINE_integer("steps", 10**9, "Stop, with a checkpoint, at this step.")
_CHECKPOINT_MINUTES = flags.DEFINE_float("checkpoint_minutes", 5, "Time between checkpoints.")

_KL_WEIGHT = 1e-4
_SNR_CAP = 5.0
_CAPTION_DROPOUT = 0.1

Params = dict[str, Any]


@struct.dataclass
class TrainState:
    """All that a checkpoint holds; `ema` averages `params` over about the last 500 steps."""

    step: jax.Array
    params: Params
    ema: Params
    optimizer: optax.OptState


def make_config(run_dir: pathlib.Path) -> ModelConfig:
    """The static half of the model; the latent scale is 1 until the VAE is trained."""
    recipe.write_tokenizer(run_dir / "tokenizer")
    scale_file = run_dir / "latent_scale.json"
    scale = json.loads(scale_file.read_text()) if scale_file.exists() else 1.0
    unet = configs.unet_config(recipe.UNET_JSON)
    return ModelConfig(
        text_encoder=configs.clip_text_config(recipe.text_encoder_json()),
        unet=unet,
        vae=configs.vae_config(recipe.VAE_JSON | {"scaling_factor": scale}),
        scheduler=scheduler_config(recipe.SCHEDULER_JSON),
        tokenizer=load_tokenizer(run_dir / "tokenizer"),
        capture=published_capture(unet),
    )


def vae_loss(modules, params: Params, rng: jax.Array, images: jax.Array) -> jax.Array:
    """Reconstruction from a sample of the latents, and a slight pull to the normal distribution."""
    vae = {"params": params["vae"]}
    mean, log_variance = modules["vae"].apply(vae, images, method="encode")
    latents = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(rng, mean.shape)
    error = modules["vae"].apply(vae, latents, method="decode") - images
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(log_variance) - 1 - log_variance)
    return jnp.mean(jnp.abs(error)) + jnp.mean(error**2) + _KL_WEIGHT * kl


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
    noisy = schedulers.add_noise(schedule, latents, noise, timesteps)
    nothing_recorded = TokenColumns(jnp.zeros((0, token_ids.shape[1], 1)))
    predicted, _ = modules["unet"].apply(
        {"params": params["unet"]}, noisy, timesteps, text.last, nothing_recorded
    )
    target = schedulers.velocity(schedule, latents, noise, timesteps)
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    weight = (jnp.minimum(snr, _SNR_CAP) / (snr + 1))[timesteps]
    return jnp.mean(weight * jnp.mean((predicted - target) ** 2, axis=(1, 2, 3)))


def make_train_step(loss, optimizer, ema_decay: float):
    """Returns `(state, *batch) -> (state, loss)`; the loss is given `(params, rng, *batch)`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, *batch):
        rng = jax.random.fold_in(jax.random.key(1), state.step)
        value, gradient = jax.value_and_grad(loss)(state.params, rng, *batch)
        updates, moments = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        # A short memory at first, so that the average does not drag random weights along.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
        return TrainState(state.step + 1, params, ema, moments), value

    return train_step


def run_steps(state: TrainState, train_step, make_batch, folder: pathlib.Path) -> TrainState:
    """Trains until --minutes or --steps is reached; resumes from, and writes, checkpoints."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
        if manager.latest_step() is not None:
            state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))
            logging.info("resumed %s at step %d", folder, int(state.step))
        state = jax.device_put(state, whole)
        step, start, saved, shown, losses = int(state.step), time.time(), time.time(), 0, []
        while step < _STEPS.value and time.time() - start < 60 * _MINUTES.value:
            batch = jax.device_put(make_batch(step), split)
            state, loss = train_step(state, *batch)
            losses.append(float(loss))
            step, shown = step + 1, shown + _BATCH_SIZE.value
            if step % 50 == 0:
                rate = shown / (time.time() - start)
                logging.info("step %d loss %.5f %.1f images/s", step, np.mean(losses), rate)
                losses.clear()
            if time.time() - saved > 60 * _CHECKPOINT_MINUTES.value:
                manager.save(step, args=ocp.args.StandardSave(state))
                saved = time.time()
        if manager.latest_step() != step:
            manager.save(step, args=ocp.args.StandardSave(state))
    return state


def init_state(params: Params, optimizer) -> TrainState:
    """A state at step 0 with the average equal to the params."""
    return TrainState(
        jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params)
    )


def make_optimizer() -> optax.GradientTransformation:
    """AdamW with clipped gradients and a short warm-up."""
    rate = optax.linear_schedule(0.0, _LEARNING_RATE.value, 100)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))


def restore_ema(folder: pathlib.Path, params: Params) -> Params:
    """The averaged weights of the latest checkpoint of a stage, or `params` without one."""
    with ocp.CheckpointManager(folder.absolute()) as manager:
        if manager.latest_step() is None:
            return params
        state = init_state(params, make_optimizer())
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state)).ema


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 `[b, 128, 128, 3]` -> float32 `[b, side, side, 3]` in [-1, 1], by block means."""
    factor = images.shape[1] // side
    blocks = images.reshape(len(images), side, factor, side, factor, 3)
    return (blocks.mean(axis=(2, 4), dtype=np.float32) / 127.5 - 1).astype(np.float32)


def train_vae(config: ModelConfig, params: Params, run_dir: pathlib.Path, images) -> None:
    """Trains the VAE on images, or on crops of 64 pixels, and measures the latents' scale."""
    modules, side = make_modules(config), int(_IMAGE_SIDE.value)

    def make_batch(step):
        rng = np.random.default_rng((2, step))
        y, x = rng.integers(0, images.shape[1] - side + 1, 2)
        chosen = images[rng.integers(0, len(images), _BATCH_SIZE.value)]
        return (shrink(chosen[:, y : y + side, x : x + side], side),)

    loss = functools.partial(vae_loss, modules)
    train_step = make_train_step(loss, make_optimizer(), _EMA_DECAY.value)
    state = init_state({"vae": params["vae"]}, make_optimizer())
    state = run_steps(state, train_step, make_batch, run_dir / "vae")
    latents = encode(modules, state.ema["vae"], images[:512], 128)
    (run_dir / "latent_scale.json").write_text(json.dumps(round(float(1 / latents.std()), 5)))
    decode = jax.jit(
        lambda x: modules["vae"].apply({"params": state.ema["vae"]}, x, method="decode")
    )
    error = np.clip(decode(latents[:64]), -1, 1) - shrink(images[:64], 128)
    logging.info("VAE reconstructs with %.2f dB PSNR", -10 * np.log10(np.mean(error**2) / 4))


def encode(modules, vae_params: Params, images: np.ndarray, side: int) -> np.ndarray:
    """uint8 images -> means of their latents, not yet scaled, float32."""

    @jax.jit
    def encode_some(some):
        return modules["vae"].apply({"params": vae_params}, some, method="encode")[0]

    parts = [shrink(images[i : i + 64], side) for i in range(0, len(images), 64)]
    return np.concatenate([np.asarray(encode_some(part)) for part in parts])


def load_latents(modules, params: Params, run_dir: pathlib.Path, images) -> np.ndarray:
    """Latents of the scenes, not yet scaled: encoded once for each VAE and image side."""
    vae_params = restore_ema(run_dir / "vae", {"vae": params["vae"]})["vae"]
    total = sum(float(np.abs(x).sum(dtype=np.float64)) for x in jax.tree.leaves(vae_params))
    file = run_dir / f"latents_{_IMAGE_SIDE.value}px_{len(images)}_{total:.6f}.npy"
    if not file.exists():
        aside = file.with_suffix(".part.npy")
        np.save(aside, encode(modules, vae_params, images, int(_IMAGE_SIDE.value)))
        os.replace(aside, file)
    return np.load(file)


def train_unet(config: ModelConfig, params: Params, run_dir: pathlib.Path, images, captions):
    """Trains text encoder and UNet on the latents of all scenes."""
    modules = make_modules(config)
    modules["unet"] = modules["unet"].clone(capture=NO_CAPTURE)
    latents = load_latents(modules, params, run_dir, images) * config.vae.scaling_factor
    token_ids, empty_ids = config.tokenizer.encode(captions), config.tokenizer.encode([""])

    def make_batch(step):
        chosen = np.random.default_rng((3, step)).integers(0, len(latents), _BATCH_SIZE.value)
        return latents[chosen], token_ids[chosen]

    schedule = schedulers.make_noise_schedule(config.scheduler)

    def loss(params, rng, latents, token_ids):
        return unet_loss(modules, schedule, params, rng, latents, token_ids, empty_ids)

    train_step = make_train_step(loss, make_optimizer(), _EMA_DECAY.value)
    trained = {key: params[key] for key in ("text_encoder", "unet")}
    run_steps(init_state(trained, make_optimizer()), train_step, make_batch, run_dir / "unet")


def export(config: ModelConfig, params: Params, run_dir: pathlib.Path, folder: pathlib.Path):
    """Writes the averaged weights as a diffusers folder in float16."""
    trained = {key: params[key] for key in ("text_encoder", "unet")}
    weights = restore_ema(run_dir / "unet", trained) | restore_ema(
        run_dir / "vae", {"vae": params["vae"]}
    )
    checkpoints.write_folder(folder, config, jax.device_get(weights), np.float16)
    logging.info("wrote %s", folder)


def main(_) -> None:
    """Runs one stage."""
    if _BATCH_SIZE.value % jax.device_count():
        raise app.UsageError(
            f"--batch_size={_BATCH_SIZE.value} is not a multiple of {jax.device_count()} devices"
        )
    run_dir = pathlib.Path(_RUN_DIR.value)
    config = make_config(run_dir)
    params = init_params(config, jax.random.key(0))
    if _INIT_FROM.value:
        params = checkpoints.read_params(pathlib.Path(_INIT_FROM.value), config)
    if _STAGE.value == "export":
        return export(config, params, run_dir, pathlib.Path(_EXPORT_DIR.value))
    images, captions = load_scenes(run_dir / "scenes.npz", _NUM_SCENES.value)
    if _STAGE.value == "vae":
        return train_vae(config, params, run_dir, images)
    return train_unet(config, params, run_dir, images, captions)


if __name__ == "__main__":
    app.run(main)
