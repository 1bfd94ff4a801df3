"""UNet2DCondition: (latents, timesteps, text_embeddings) -> (noise_pred, AttentionMaps).

Latent diffusion (Rombach et al., arXiv 2112.10752). Every block returns `(x, records)`, where
records maps the recorded layers' names to their head-summed attention; modules store nothing.

    conv_in -> down blocks -> mid block -> up blocks -> conv_out
                   |  skip connections  ->   |
"""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.arrays import Array, Float, Int
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.models.capture import NO_CAPTURE, CaptureConfig, check_capture
from seediff_jax.models.conditioning import (
    NO_CONDITIONS,
    AddedEmbedding,
    Conditions,
    TimeEmbedding,
    check_conditions,
)
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.layers import (
    Downsample,
    ResnetBlock,
    Upsample,
    conv3x3,
    group_norm,
)
from seediff_jax.models.plan import BlockPlan, block_plans
from seediff_jax.models.transformer import Records, Transformer


class Block(nn.Module):
    """ResNet blocks, the first of them followed by transformers, then a resize.

    One class serves down blocks (which return every output as a skip), the mid block and up blocks
    (which concatenate a skip to every input).
    """

    plan: BlockPlan
    config: UNetConfig
    capture: CaptureConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Array,
        time_embedding: Array,
        text: Array,
        token_weights: Array,
        skips: list[Array] | None = None,
    ) -> tuple[Array, list[Array], Records]:
        """`[b, h, w, c]` -> `[b, h', w', channels]`, all outputs in order, and records.

        `skips` is consumed from its end; what is then last has the size of an upsampled output.
        """
        plan, config, outputs, records = self.plan, self.config, [], {}
        for i in range(plan.num_resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            resnet = ResnetBlock(
                plan.channels,
                config.norm_num_groups,
                config.norm_eps,
                self.dtype,
                name=f"resnets_{i}",
            )
            x = resnet(x, time_embedding)
            if i < plan.num_transformers:
                x, new = self._transformer(i)(x, text, token_weights)
                records |= new
            outputs.append(x)
        if plan.resize == "down":
            x = Downsample(plan.channels, self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        if plan.resize == "up":
            _, height, width, _ = skips[-1].shape
            x = Upsample(plan.channels, self.dtype, name="upsamplers_0")(x, height, width)
        return x, outputs, records

    def _transformer(self, i: int) -> Transformer:
        return Transformer(
            self.plan.num_heads,
            self.plan.depth,
            self.config,
            f"{self.plan.name}.attentions.{i}",
            self.capture,
            self.dtype,
            name=f"attentions_{i}",
        )


class UNet(nn.Module):
    """The denoiser of Stable Diffusion."""

    config: UNetConfig
    capture: CaptureConfig = NO_CAPTURE
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Int[Array, " b"],
        text_embeddings: Float[Array, "b l d"],
        token_weights: Float[Array, "r l k"],
        conditions: Conditions = NO_CONDITIONS,
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        """Predicts the noise (or v, by the checkpoint's scheduler config).

        Args:
            latents: `[b, h, w, c]`, scaled as the scheduler asks.
            timesteps: int32 `[b]` in 0..999.
            text_embeddings: `[b, l, d]`.
            token_weights: float32 `[r, l, k]`: the last r rows of the batch are recorded, and their
                cross-attention is projected from tokens to k columns; r = 0 records nothing.
            conditions: what else this UNet reads, see Conditions.

        Returns:
            float32 `[b, h, w, c]` and the AttentionMaps of the last r rows.

        Raises:
            ValueError: axes or conditions do not fit the config, or the latents cannot be recorded
                because they are not square or so small that two recorded levels have one side.
        """
        config, dtype = self.config, self.dtype
        capture = self.capture if token_weights.shape[0] else NO_CAPTURE
        _check_inputs(latents, text_embeddings, token_weights, config)
        _check_recorded(latents, capture, config)
        check_conditions(conditions, config, latents.shape[0])
        embed_time = TimeEmbedding(config, dtype, name="time_embedding")
        embedding = embed_time(timesteps, conditions.guidance_scale)
        if config.addition_embed_type is not None:
            embed_added = AddedEmbedding(config, dtype, name="add_embedding")
            embedding += embed_added(conditions.pooled_text, conditions.sizes)
        text = text_embeddings.astype(dtype)
        x = conv3x3(config.block_out_channels[0], dtype, "conv_in")(latents.astype(dtype))
        skips, records = [x], {}
        for plan in block_plans(config):
            block = Block(plan, config, capture, dtype, name=plan.name.replace(".", "_"))
            is_up = plan.name.startswith("up_blocks")
            x, outputs, new = block(x, embedding, text, token_weights, skips if is_up else None)
            skips += outputs if plan.name.startswith("down_blocks") else []
            records |= new
        x = nn.silu(group_norm(x, config.norm_num_groups, config.norm_eps, "conv_norm_out"))
        noise_pred = conv3x3(config.out_channels, dtype, "conv_out")(x)
        return noise_pred.astype(jnp.float32), _to_maps(records, capture)


def _check_inputs(
    latents: Array, text_embeddings: Array, token_weights: Array, config: UNetConfig
) -> None:
    b, tokens, width = text_embeddings.shape
    rows = token_weights.shape[0]
    needed = (
        ("latents", "channels", latents.shape[-1], config.in_channels),
        ("text_embeddings", "width", width, config.cross_attention_dim),
        ("text_embeddings", "batch size", b, latents.shape[0]),
        ("token_weights", "tokens", token_weights.shape[1], tokens),
    )
    for name, axis, given, wanted in needed:
        if given != wanted:
            raise ValueError(f"{name} have {axis} {given}, needed {wanted}")
    if rows > b:
        raise ValueError(f"token_weights have {rows} rows, the batch has {b}")


def _check_recorded(latents: Array, capture: CaptureConfig, config: UNetConfig) -> None:
    _, height, width, _ = latents.shape
    if capture != NO_CAPTURE:
        if height != width:
            raise ValueError(
                f"latents are {height} x {width}; attention is recorded of squares only"
            )
        check_capture(capture, config, height)


def _to_maps(records: Records, capture: CaptureConfig) -> AttentionMaps:
    cross = [records[name] for name in capture.cross_layers]
    maps = {math.isqrt(records[name].shape[1]): records[name] for name in capture.self_layers}
    empty = jnp.zeros((0, 0, 0, 0), jnp.float32)
    return AttentionMaps(jnp.stack(cross, axis=1) if cross else empty, maps)
