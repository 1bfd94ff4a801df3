"""Tells before compilation which implementation of attention each layer of a UNet uses.

ModelConfig, size of the latents, Place -> calls of attention -> choose -> counts
"""

import collections
from collections.abc import Iterator

import jax.numpy as jnp
from jax.typing import DTypeLike

from seediff_jax.models.attention_choice import Layer, Place, choose
from seediff_jax.models.config import block_plans
from seediff_jax.models.model import ModelConfig


def plan_attention(
    config: ModelConfig,
    dtype: DTypeLike,
    latent_size: tuple[int, int],
    place: Place,
    *,
    is_guided: bool = True,
) -> dict[tuple[str, Layer], int]:
    """Counts the calls of attention in one UNet call by implementation and shape.

    A layer that is recorded makes two calls where there is guidance: only the rows of the prompt
    are recorded.

    Args:
        config: of the model; its `attention` is the requested implementation.
        dtype: of the model.
        latent_size: height and width of the latents.
        place: the device.
        is_guided: whether the UNet is also called for the negative prompt.

    Raises:
        UserError: the requested implementation cannot be used; the message says why.
    """
    layers = _layers(config, jnp.dtype(dtype).name, latent_size, is_guided)
    return collections.Counter((choose(one, place, config.attention), one) for one in layers)


def describe_attention(counts: dict[tuple[str, Layer], int]) -> str:
    """Describes in one line which implementation computes which layers."""
    parts: dict[str, list[str]] = {}
    for (name, layer), count in counts.items():
        recorded = " recorded" if layer.is_recorded else ""
        text = f"{layer.queries}x{layer.keys}{recorded} ({count})"
        parts.setdefault(name, []).append(text)
    return "; ".join(f"{name} for {', '.join(texts)}" for name, texts in parts.items())


def _layers(
    config: ModelConfig, dtype: str, latent_size: tuple[int, int], is_guided: bool
) -> Iterator[Layer]:
    sizes, text = [latent_size], config.tokenizer.max_length
    while len(sizes) < len(config.unet.block_out_channels):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    for plan in block_plans(config.unet):
        height, width = sizes[plan.level]
        shape = (dtype, plan.num_heads, plan.channels // plan.num_heads, height * width)
        for i in range(plan.num_transformers):
            for j in range(plan.depth):
                block = f"{plan.name}.attentions.{i}.transformer_blocks.{j}"
                for name, keys in (("attn1", height * width), ("attn2", text)):
                    is_recorded = config.capture.records(f"{block}.{name}")
                    if is_recorded:
                        yield Layer(*shape, keys, True)
                    if is_guided or not is_recorded:
                        yield Layer(*shape, keys)
