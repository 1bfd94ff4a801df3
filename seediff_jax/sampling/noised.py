"""The attention of given images: a few UNet calls on their noised latents, as one program.

    images -> encode_images -> latents -+-> add_noise -> scan over timesteps (and mirrored copies)
    rng_seed, indices -> noise ---------+                    |
    token_ids -> text_embeddings ----------------------------+-> AttentionMaps, mean over the calls

DiffSegmenter (arXiv 2309.02773) and others read attention in this way. Here the mask kernels for
generated images turn it into masks. Seed, indices, tokens and timesteps are traced.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from seediff_jax.array_typing import Array, Int, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError
from seediff_jax.models.model import Model, encode_images, predict_noise
from seediff_jax.sampling.evidence import class_evidence
from seediff_jax.sampling.guidance import embed_prompts
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import step_noise
from seediff_jax.sampling.sampler import (
    DECODE_BATCH,
    Samples,
    in_chunks,
    make_columns,
    rows_are_finite,
    with_attention,
)
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.noise_schedule import add_noise, make_noise_schedule


@functools.partial(jax.jit, static_argnames="config")
@typechecked
def attend(
    model: Model,
    inputs: PairInputs,
    *,
    rng_seed: Array,
    timesteps: Int[Array, " t"],
    config: SegmentConfig,
) -> Samples:
    """Reads the attention of one image per row, averaged over timesteps and mirrored copies.

    The noise of call t of a row depends on the seed, its index and t, not on the batch. A mirrored
    copy gets the same noise and its maps are mirrored back, so a mirrored image has mirrored maps.
    May run under `jax.shard_map`, with every array split along its batch axis.

    Args:
        model: its `capture` says which layers are recorded; all calls are.
        inputs: with uint8 images of a size that the networks take.
        rng_seed: uint32 `[]`.
        timesteps: int32, each in 0..T-1 of the noise schedule.
        config: static; its traced settings are not read.

    Returns:
        Samples with the given images and their clean latents.

    Raises:
        UserError: the model's capture has `kept_layers`.
    """
    if model.capture.kept_layers:
        raise UserError(
            "capture.kept_layers works with `generate` only; for given images call "
            "`predict_noise`, which returns these layers"
        )
    model, images = with_attention(model, config), inputs.images
    b, size = images.shape[0], images.shape[1:3]
    scale = jnp.asarray(config.guidance_scale, jnp.float32)
    text, conditions = embed_prompts(model, inputs.token_ids, size, config.size_condition, scale)
    columns = make_columns(model, inputs)
    copies = [images, images[:, :, ::-1]] if config.mirror else [images]
    pixels = jnp.concatenate(copies).astype(jnp.float32) / 127.5 - 1
    encoded = in_chunks(functools.partial(encode_images, model), pixels, DECODE_BATCH)
    latents = encoded.reshape(len(copies), b, *encoded.shape[1:])
    schedule, grid = make_noise_schedule(model.scheduler_config), latents.shape[2:4]

    def call(total: AttentionMaps | None, number: Array) -> tuple[AttentionMaps, None]:
        copy, step = number % len(copies), number // len(copies)
        timestep = jnp.full(b, timesteps[step])
        noise = step_noise(model, rng_seed, inputs.indices, step, grid)
        noised = add_noise(schedule, latents[copy], noise, timestep)
        _, maps = predict_noise(model, noised, timestep, text, columns, conditions)
        if config.mirror:
            mirrored = mirror_maps(maps, grid)
            maps = jax.tree.map(lambda own, other: jnp.where(copy == 1, other, own), maps, mirrored)
        return maps if total is None else jax.tree.map(jnp.add, total, maps), None

    calls = len(copies) * timesteps.shape[0]
    shapes, _ = jax.eval_shape(functools.partial(call, None), jnp.zeros((), jnp.int32))
    # Zeros on the devices of the latents, as the start of a loop under jax.shard_map has to be.
    start = jax.tree.map(lambda leaf: jnp.zeros_like(latents, leaf.dtype, leaf.shape), shapes)
    total, _ = lax.scan(call, start, jnp.arange(calls, dtype=jnp.int32))
    maps = jax.tree.map(lambda leaf: leaf / calls, total)
    if inputs.evidence_token_ids is not None:
        draws = config.presence_draws
        own, *mirrored = lax.map(
            lambda copy: class_evidence(model, copy, inputs, rng_seed, draws, scale), latents
        )
        evidence = (own + jnp.flip(mirrored[0], axis=2)) / 2 if mirrored else own
        maps = maps.replace(evidence=evidence)
    return Samples(
        images=images,
        latents=latents[0],
        attention_maps=maps,
        is_finite={
            "text_embeddings": rows_are_finite(text),
            "latents": rows_are_finite(*latents),
            "attention": rows_are_finite(*jax.tree.leaves(maps)),
        },
    )


@typechecked
def mirror_maps(maps: AttentionMaps, size: tuple[int, int]) -> AttentionMaps:
    """Mirrors locations left to right: what the maps of a mirrored image say about the image.

    Args:
        maps: of any batch.
        size: height and width of the image, or of its latents.
    """

    def grid(num_locations: int) -> tuple[int, int]:
        rows = round((num_locations * size[0] / size[1]) ** 0.5)
        return rows, num_locations // rows

    def mirror(leaf: Array, axis: int) -> Array:
        """Mirrors the locations along an axis."""
        shape = (*leaf.shape[:axis], *grid(leaf.shape[axis]), *leaf.shape[axis + 1 :])
        return jnp.flip(leaf.reshape(shape), axis + 1).reshape(leaf.shape)

    return AttentionMaps(
        cross_attention=mirror(maps.cross_attention, 2),
        self_attention={
            side: mirror(mirror(leaf, 1), 2) for side, leaf in maps.self_attention.items()
        },
    )


def require_timesteps(model: Model, config: SegmentConfig) -> None:
    """Raises a UserError unless the model's noise schedule has all timesteps."""
    last = model.scheduler_config.num_train_timesteps - 1
    if max(config.timesteps) > last:
        raise UserError(
            f"timesteps={','.join(map(str, config.timesteps))} must lie in 0..{last}, the noise "
            "schedule of the model"
        )
