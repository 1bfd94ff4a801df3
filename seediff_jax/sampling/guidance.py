"""Embeds prompts and their conditions for the UNet, and combines its two predictions.

    token_ids, size_condition, guidance_scale -> embed_prompts -> text_embeddings, Conditions
    negative and conditional prediction -> guide -> prediction

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) calls the UNet for two prompts. Latent
consistency models (arXiv 2310.04378) call it once and read the guidance scale instead.
"""

import math

import jax.numpy as jnp

from seediff_jax.array_typing import Array, Float, Int, typechecked
from seediff_jax.errors import UserError, shown
from seediff_jax.models.conditioning import NUM_SIZES, Conditions
from seediff_jax.models.model import Model, encode_text_and_pool
from seediff_jax.sampling.config import SamplingConfig, SizeCondition
from seediff_jax.sampling.segment_config import SegmentConfig


def uses_guidance(model: Model, config: SamplingConfig | SegmentConfig) -> bool:
    """Whether the UNet is also called for the negative prompt; nothing else decides this.

    Never for a latent consistency model, which reads the guidance scale instead.
    """
    return config.guidance_scale > 1 and model.unet_config.time_cond_proj_dim is None


def require_guidance(model: Model, config: SamplingConfig) -> None:
    """Refuses guidance settings for a latent consistency model, which has no guidance.

    Raises:
        UserError: a guidance setting differs from its default.
    """
    if model.unet_config.time_cond_proj_dim is None:
        return
    usual = SamplingConfig()
    for name in ("negative_prompt", "guidance_rescale", "guidance_interval"):
        if (value := getattr(config, name)) != getattr(usual, name):
            raise UserError(
                f"{name}={shown(str(value), 200)} has no effect: this latent consistency model "
                "reads guidance_scale instead of being guided"
            )


def guidance_segments(
    interval: tuple[float, ...], num_calls: int
) -> tuple[tuple[slice, bool], ...]:
    """Splits the UNet calls of a run into segments with guidance and without.

    Args:
        interval: part of the run in which there is guidance; a call belongs to it if its middle
            does.
        num_calls: number of UNet calls.

    Returns:
        Up to three slices of the calls, in order, and whether there is guidance in each.

    Raises:
        UserError: no call lies in the interval.
    """
    first, last = (min(num_calls, math.ceil(part * num_calls - 0.5)) for part in interval)
    if first == last:
        raise UserError(
            f"none of {num_calls} UNet calls lies in guidance_interval="
            f"{','.join(f'{part:g}' for part in interval)}; use more steps, or a longer interval"
        )
    segments = ((0, first, False), (first, last, True), (last, num_calls, False))
    return tuple((slice(start, end), guided) for start, end, guided in segments if start < end)


@typechecked
def embed_prompts(
    model: Model,
    token_ids: Int[Array, "b *encoders l"],
    image_size: tuple[int, int],
    size_condition: SizeCondition,
    guidance_scale: Float[Array, ""],
    *,
    is_negative: bool = False,
) -> tuple[Float[Array, "b l d"], Conditions]:
    """Embeds prompts, with all conditions that this model's UNet reads.

    Args:
        model: the model.
        token_ids: see `encode_text`.
        image_size: height and width in pixels.
        size_condition: read by Stable Diffusion XL.
        guidance_scale: read by latent consistency models.
        is_negative: whether these are negative prompts; the empty one is then embedded as zeros if
            the model's `force_zeros_for_empty_prompt` says so.
    """
    text, pooled = encode_text_and_pool(model, token_ids)
    if is_negative and model.config.force_zeros_for_empty_prompt:
        empty = jnp.asarray(model.tokenizer.encode([""]))
        is_empty = jnp.all(token_ids[:, 0] == empty, axis=-1, keepdims=True)
        text = jnp.where(is_empty[:, None], 0.0, text)
        pooled = jnp.where(is_empty, 0.0, pooled)
    b, sizes = len(token_ids), None
    if model.unet_config.pooled_text_dim:
        numbers = size_condition.numbers(*image_size)
        row = jnp.stack([jnp.asarray(number, jnp.int32) for number in numbers])
        sizes = jnp.broadcast_to(row[None], (b, NUM_SIZES))
    reads_scale = model.unet_config.time_cond_proj_dim is not None
    scales = jnp.broadcast_to(guidance_scale, b) if reads_scale else None
    return text, Conditions(pooled_text=pooled, sizes=sizes, guidance_scale=scales)


@typechecked
def guide(
    negative: Float[Array, "b h w c"],
    conditional: Float[Array, "b h w c"],
    guidance_scale: Float[Array, ""],
    guidance_rescale: Float[Array, ""] | None = None,
) -> Float[Array, "b h w c"]:
    """Moves the prediction of a prompt away from that of the negative prompt.

    Args:
        negative: float32, of the negative prompt.
        conditional: float32, of the prompt.
        guidance_scale: 1 gives `conditional`.
        guidance_rescale: in 0..1, how far the standard deviation of the result returns to that of
            `conditional`, which guidance increases (arXiv 2305.08891, section 3.4); None is 0.
    """
    guided = negative + guidance_scale * (conditional - negative)
    if guidance_rescale is None:
        return guided
    axes = (1, 2, 3)
    before, after = (jnp.std(x, axis=axes, keepdims=True) for x in (conditional, guided))
    return guided * (guidance_rescale * (before / after) + (1 - guidance_rescale))
