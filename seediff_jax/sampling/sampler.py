"""Sampling: tokens in, images and their averaged attention out, as one compiled program.

    token_ids -> text_embeddings -+
    rng_seed, indices -> latents -+-> scan over the UNet calls -> latents -> images
                                               |
                                               +-> AttentionMaps, mean over the calls

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598); attention is that of the conditional
half only (method section 1). Guidance scale, seed, indices and tokens are traced, so other values
run the same program.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.array_typing import Array, Bool, Float, Int, UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.models.attention import current_place
from seediff_jax.models.capture import layer_sizes
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.model import Model, decode_latents, encode_text, predict_noise
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.sampling.config import IMAGE_SIZE, SamplingConfig, SizeCondition
from seediff_jax.sampling.evidence import class_evidence
from seediff_jax.sampling.guidance import embed_prompts, guidance_segments, guide
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import (
    draw_rows,
    initial_latents,
    latent_size,
    seed_key,
    step_noise,
)
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.data_prediction import MixingSteps
from seediff_jax.schedulers.ddim_pndm import Steps
from seediff_jax.schedulers.noise_schedule import make_noise_schedule
from seediff_jax.schedulers.step import (
    init_scheduler_state,
    initial_noise_scale,
    is_stochastic,
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
    guidance_interval: tuple[float, ...] = (0.0, 1.0),
) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
    """Denoises latents and averages the attention of the UNet calls, except `capture.kept_layers`.

    Args:
        model: the model.
        latents: float32, standard normal noise.
        text_embeddings: of the prompts.
        negative_text_embeddings: of the negative prompts, u = b; or u = 0 for no guidance.
        columns: see `predict_noise`; of all b rows, or of none to record nothing.
        guidance_scale: weight of the prompts.
        num_steps: static.
        rng_seed: uint32 `[]`, read only by stochastic samplers, as are the indices.
        indices: int32, of the samples.
        conditions: of the prompts.
        negative_conditions: of the negative prompts.
        guidance_rescale: see `guide`.
        guidance_interval: static, see `guidance_segments`.

    Raises:
        UserError: no UNet call lies in `guidance_interval`.
    """
    scheduler, steps = model.scheduler_config, make_steps(model.scheduler_config, num_steps)
    schedule = make_noise_schedule(scheduler)
    segments = ((slice(None), False),)
    if negative_text_embeddings.shape[0]:
        segments = guidance_segments(guidance_interval, len(steps.timesteps))
    prompts = (text_embeddings, conditions)
    negative = (negative_text_embeddings, negative_conditions)
    both = jax.tree.map(lambda *rows: jnp.concatenate(rows), negative, prompts)

    def predict(
        guided: bool, latents: Array, timestep: Array, totals: dict[str, Array]
    ) -> tuple[Array, AttentionMaps]:
        text, conditions = both if guided else prompts
        inputs = jnp.concatenate([latents, latents]) if guided else latents
        timesteps = jnp.full(inputs.shape[0], timestep)
        recorded = columns.replace(totals=totals)
        noise_pred, maps = predict_noise(model, inputs, timesteps, text, recorded, conditions)
        if guided:
            noise_pred = guide(*jnp.split(noise_pred, 2), guidance_scale, guidance_rescale)
        return noise_pred, maps

    def call(guided: bool, carry, inputs: tuple[Steps | MixingSteps, Array | None, Array | None]):
        (latents, state, total), (step, number, weight) = carry, inputs
        levels = total.self_attention
        totals = {name: levels[side] for name, side in added.items() if side in levels}
        scaled = scale_input(scheduler, latents, step)
        noise_pred, maps = predict(guided, scaled, step.timesteps, totals)
        kept, maps = maps.kept, maps.replace(kept={})
        if weight is not None:
            maps = jax.tree.map(lambda leaf: weight * leaf, maps)
        noise = None
        if number is not None:
            noise = step_noise(model, rng_seed, indices, number, latents.shape[1:3])
        latents, state = scheduler_step(
            scheduler, schedule, state, latents, noise_pred, step, noise
        )
        summed = jax.tree.map(jnp.add, total, maps)
        if totals:  # the UNet has added them
            summed = summed.replace(self_attention=maps.self_attention)
        return (latents, state, summed), kept

    if (scale := initial_noise_scale(scheduler, num_steps)) != 1:
        latents = scale * latents
    first = functools.partial(predict, segments[0][1], totals={})
    _, maps = jax.eval_shape(first, latents, steps.timesteps[0])
    total = jax.tree.map(lambda leaf: _zeros(latents, leaf), maps.replace(kept={}))
    state = init_scheduler_state(scheduler, latents)
    state = jax.tree.map(lambda leaf: leaf + _zeros(latents, leaf), state)
    calls = len(steps.timesteps)
    recorded = np.array(model.capture.recorded_calls(calls), np.float32)
    xs = (
        steps,
        np.arange(calls, dtype=np.int32) if is_stochastic(scheduler) else None,
        None if recorded.all() else recorded,
    )
    # On TPUs a kernel adds to the sum in place. Elsewhere nothing is gained.
    added = {}
    is_tpu = current_place().platform == "tpu"
    if is_tpu and recorded.all() and not model.capture.kept_layers:
        sizes = layer_sizes(model.unet_config, latents.shape[1:3])
        added = {name: sizes[name][0] for name in model.capture.self_layers}
    carry, kept = (latents, state, total), []
    for part, guided in segments:
        of_part = jax.tree.map(lambda column, part=part: column[part], xs)
        carry, of_calls = jax.lax.scan(functools.partial(call, guided), carry, of_part)
        kept.append(of_calls)
    latents, _, total = carry
    maps = jax.tree.map(lambda leaf: leaf / float(recorded.sum()), total)
    return latents, maps.replace(kept=jax.tree.map(_along_calls, *kept))


def _along_calls(*parts: Array) -> Array:
    """`[calls, b, 1, ...]` of the parts of a run, in order -> `[b, all calls, ...]`."""
    return jnp.moveaxis(jnp.concatenate(parts)[:, :, 0], 0, 1)


def _zeros(latents: Array, like: Array | jax.ShapeDtypeStruct) -> Array:
    # Zeros on the devices of the latents: under jax.shard_map a loop may not start from a constant
    # and continue with values that differ between devices.
    return jnp.zeros_like(latents, like.dtype, like.shape)


STAGES = ("text_embeddings", "latents", "images", "attention", "evidence")
"""Stages, in order, whose values must be finite; a program may lack some of them."""

DECODE_BATCH = 4
"""Most images that the VAE decodes at a time, which bounds its memory."""


@struct.dataclass
class Samples:
    """Results of `sample`.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        latents: float32 `[b, h, w, c]`, from which the images were decoded.
        attention_maps: mean over the UNet calls, and all calls of `capture.kept_layers`;
            cross-attention has one column per class.
        is_finite: stage of STAGES -> bool `[b]`, whether all its values are finite.
    """

    images: Array
    latents: Array
    attention_maps: AttentionMaps
    is_finite: dict[str, Array]


@functools.partial(jax.jit, static_argnames="config")
@typechecked
def sample(
    model: Model,
    inputs: PairInputs,
    *,
    rng_seed: Array,
    guidance_scale: Float[Array, ""],
    guidance_rescale: Float[Array, ""] | None = None,
    size_condition: SizeCondition = IMAGE_SIZE,
    config: SamplingConfig,
) -> Samples:
    """Samples one image per row; it depends on seed, index and tokens, not on the batch.

    May run under `jax.shard_map`, with every array split along its batch axis.

    Args:
        model: its `capture` says which layers are recorded.
        inputs: the prompts, classes and indices.
        rng_seed: uint32 `[]`.
        guidance_scale: weight of the prompt, or what a latent consistency model reads.
        guidance_rescale: see `guide`; None and a number are different programs.
        size_condition: the size of the images that Stable Diffusion XL is told.
        config: static; its traced settings are not read, see `static_part`.

    Raises:
        UserError: the model's scheduler cannot make that number of steps.
    """
    model = with_attention(model, config)
    size = latent_size(model, config.height, config.width)
    latents = initial_latents(model, rng_seed, inputs.indices, size)
    embed = functools.partial(
        embed_prompts,
        model,
        image_size=tuple(model.vae_config.downsampling * side for side in size),
        size_condition=size_condition,
        guidance_scale=guidance_scale,
    )
    text, conditions = embed(inputs.token_ids)
    if inputs.negative_token_ids is not None:
        negative_text, negative_conditions = embed(inputs.negative_token_ids, is_negative=True)
    else:
        negative_text, negative_conditions = jax.tree.map(lambda x: x[:0], (text, conditions))
    columns = make_columns(model, inputs)

    def run(latents: Array) -> tuple[Array, AttentionMaps]:
        latents, maps = denoise(
            model,
            latents,
            text,
            negative_text,
            columns,
            guidance_scale,
            config.num_steps,
            rng_seed=rng_seed,
            indices=inputs.indices,
            conditions=conditions,
            negative_conditions=negative_conditions,
            guidance_rescale=guidance_rescale,
            guidance_interval=config.guidance_interval,
        )
        if inputs.evidence_token_ids is None:
            return latents, maps
        draws, scale = config.presence_draws, guidance_scale
        evidence = class_evidence(model, latents, inputs, rng_seed, draws, scale, size_condition)
        return latents, maps.replace(evidence=evidence)

    if config.dry_run:
        _, shapes = jax.eval_shape(run, latents)
        attention_maps = _random_maps(shapes, rng_seed, inputs.indices)
    else:
        latents, attention_maps = run(latents)
    images = decode_in_chunks(model, latents, DECODE_BATCH)
    stages = {"text_embeddings": text, "latents": latents, "images": images}
    if attention_maps.evidence is not None:
        stages["evidence"] = attention_maps.evidence
    return Samples(
        images=to_uint8(images),
        latents=latents,
        attention_maps=attention_maps,
        is_finite={name: rows_are_finite(values) for name, values in stages.items()},
    )


def rows_are_finite(*arrays: Array) -> Array:
    """Whether all values of each row are finite, in all arrays: bool `[b]`."""
    return functools.reduce(
        jnp.logical_and, (jnp.isfinite(each).all(axis=range(1, each.ndim)) for each in arrays)
    )


def with_attention(model: Model, config: SamplingConfig | SegmentConfig) -> Model:
    """Returns the model with the attention setting of the config; "auto" keeps the model's own."""
    if config.attention == "auto":
        return model
    return model.with_config(attention=config.attention)


def make_columns(model: Model, inputs: PairInputs) -> TokenColumns:
    """One column per class, for all rows; without classes nothing is recorded."""
    if not inputs.class_token_mask.shape[1]:
        return TokenColumns(class_token_weights(inputs.class_token_mask[:0]))
    columns = TokenColumns(class_token_weights(inputs.class_token_mask))
    if inputs.unnamed_token_ids is None:
        return columns
    return columns.replace(
        watched=encode_text(model, inputs.unnamed_token_ids),
        watched_weights=class_token_weights(inputs.unnamed_token_mask),
    )


@typechecked
def class_token_weights(class_token_mask: Bool[Array, "b c l"]) -> Float[Array, "b l c"]:
    """Weights that make a class's column the mean of its tokens' columns (method section 7)."""
    mask = class_token_mask.astype(jnp.float32)
    weights = mask / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1)
    return weights.swapaxes(1, 2)


@typechecked
def decode_in_chunks(
    model: Model, latents: Float[Array, "b h w c"], decode_batch: int
) -> Float[Array, "b H W 3"]:
    """Decodes images in equal chunks, as large as possible up to `decode_batch`."""
    return in_chunks(functools.partial(decode_latents, model), latents, decode_batch)


def in_chunks(function: Callable[[Array], Array], rows: Array, most: int) -> Array:
    """Applies a function of a batch to equal chunks of rows, as large as possible up to `most`."""
    b = rows.shape[0]
    chunk = max(size for size in range(1, min(b, most) + 1) if b % size == 0)
    results = jax.lax.map(function, rows.reshape(b // chunk, chunk, *rows.shape[1:]))
    return results.reshape(b, *results.shape[2:])


@typechecked
def to_uint8(images: Float[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
    """Turns images in [-1, 1] into colours in 0..255; values outside are clipped."""
    return jnp.round(127.5 * (jnp.clip(images, -1, 1) + 1)).astype(jnp.uint8)


def _random_maps(shapes: AttentionMaps, rng_seed: Array, indices: Array) -> AttentionMaps:
    """Draws numbers in [0, 1) in place of attention, one key per sample."""

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        return draw_rows(jax.random.uniform, seed_key(rng_seed), indices, leaf.shape[1:])

    return jax.tree.map(draw, shapes)


def require_finite(samples: Samples, indices: np.ndarray) -> None:
    """Checks on the host that every stage of sampling gave finite values.

    Raises:
        FloatingPointError: naming the first stage that did not, and the `indices` of the samples.
    """
    for stage in (name for name in STAGES if name in samples.is_finite):
        is_finite = np.asarray(samples.is_finite[stage])
        if not is_finite.all():
            raise FloatingPointError(
                f"{stage} of the samples {indices[~is_finite].tolist()} are not finite; check the "
                "weights, or use float32 or bfloat16 instead of float16"
            )
