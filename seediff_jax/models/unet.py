"""UNet2DCondition: (latents, timesteps, text_embeddings) -> (noise_pred, AttentionMaps).

Latent diffusion (Rombach et al., arXiv 2112.10752). Every block returns `(x, records)`, where
records has the head-summed attention of recorded layers by name; modules store nothing.

    conv_in -> down blocks -> mid block -> up blocks -> conv_out
                   |  skip connections  ->   |
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float, Real
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError
from seediff_jax.models.capture import (
    NO_CAPTURE,
    CaptureConfig,
    check_capture,
    layer_sizes,
)
from seediff_jax.models.conditioning import (
    NO_CONDITIONS,
    AddedEmbedding,
    Conditions,
    TimeEmbedding,
    check_conditions,
)
from seediff_jax.models.config import BlockPlan, UNetConfig, block_plans
from seediff_jax.models.layers import (
    Downsample,
    ResnetBlock,
    Upsample,
    conv3x3,
    group_norm,
)
from seediff_jax.models.transformer import Records, TokenColumns, Transformer


class Block(nn.Module):
    """ResNet blocks, the first of them followed by transformers, then a resize.

    Down blocks (which return every output as a skip), the mid block and up blocks (which
    concatenate a skip to every input) are all of this class.
    """

    plan: BlockPlan
    config: UNetConfig
    capture: CaptureConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(
        self,
        x: Array,
        time_embedding: Array,
        text: Array,
        columns: TokenColumns,
        skips: list[Array] | None = None,
    ) -> tuple[Array, list[Array], Records]:
        """`[b, h, w, c]` -> `[b, h', w', channels]`, all outputs in order, and records.

        `skips` is consumed from its end; an upsampled output gets the size of the skip that is then
        last.
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
                layer = f"{plan.name}.attentions.{i}"
                transformer = Transformer(
                    plan.num_heads,
                    plan.depth,
                    config,
                    layer,
                    self.capture,
                    self.dtype,
                    self.attention,
                    name=f"attentions_{i}",
                )
                x, new = transformer(x, text, columns)
                records |= new
            outputs.append(x)
        if plan.resize == "down":
            x = Downsample(plan.channels, self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        if plan.resize == "up":
            _, height, width, _ = skips[-1].shape
            x = Upsample(plan.channels, self.dtype, name="upsamplers_0")(x, height, width)
        return x, outputs, records


class UNet(nn.Module):
    """The denoiser of Stable Diffusion."""

    config: UNetConfig
    capture: CaptureConfig = NO_CAPTURE
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        latents: Float[Array, "b h w c"],
        timesteps: Real[Array, " b"],
        text_embeddings: Float[Array, "b l d"],
        columns: TokenColumns,
        conditions: Conditions = NO_CONDITIONS,
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        """Predicts noise or velocity; arguments and results are those of `predict_noise`."""
        config, dtype = self.config, self.dtype
        capture = self.capture if columns.weights.shape[0] else NO_CAPTURE
        _check_inputs(latents, text_embeddings, columns, config)
        if capture != NO_CAPTURE:
            check_capture(capture, config, latents.shape[1])
        check_conditions(conditions, config, latents.shape[0])
        embed_time = TimeEmbedding(config, dtype, name="time_embedding")
        embedding = embed_time(timesteps, conditions.guidance_scale)
        if config.addition_embed_type is not None:
            embed_added = AddedEmbedding(config, dtype, name="add_embedding")
            embedding += embed_added(conditions.pooled_text, conditions.sizes)
        text = text_embeddings.astype(dtype)
        if columns.watched is not None:
            columns = columns.replace(watched=columns.watched.astype(dtype))
        x = conv3x3(config.block_out_channels[0], dtype, "conv_in")(latents.astype(dtype))
        skips, records = [x], {}
        for plan in block_plans(config):
            name = plan.name.replace(".", "_")
            block = Block(plan, config, capture, dtype, self.attention, name=name)
            is_up = plan.name.startswith("up_blocks")
            x, outputs, new = block(x, embedding, text, columns, skips if is_up else None)
            skips += outputs if plan.name.startswith("down_blocks") else []
            records |= new
        x = nn.silu(group_norm(x, config.norm_num_groups, config.norm_eps, "conv_norm_out"))
        noise_pred = conv3x3(config.out_channels, dtype, "conv_out")(x)
        return noise_pred.astype(jnp.float32), _to_maps(
            records, capture, config, latents.shape[1:3]
        )


def _check_inputs(
    latents: Array, text_embeddings: Array, columns: TokenColumns, config: UNetConfig
) -> None:
    b, tokens, width = text_embeddings.shape
    rows = columns.weights.shape[0]
    needed = (
        ("latents", "channels", latents.shape[-1], config.in_channels),
        ("text_embeddings", "width", width, config.cross_attention_dim),
        ("text_embeddings", "batch size", b, latents.shape[0]),
        ("columns", "tokens", columns.weights.shape[1], tokens),
    )
    if columns.watched is not None:
        needed += (
            ("watched embeddings", "rows", columns.watched.shape[0], rows),
            ("watched embeddings", "width", columns.watched.shape[-1], config.cross_attention_dim),
            (
                "watched weights",
                "shape",
                columns.watched_weights.shape,
                (rows, columns.watched.shape[1], columns.weights.shape[2]),
            ),
        )
    for name, axis, given, wanted in needed:
        if given != wanted:
            raise UserError(f"{name} have {axis} {given}, expected {wanted}")
    if rows > b:
        raise UserError(f"columns have {rows} rows, the batch has {b}")


def _to_maps(
    records: Records, capture: CaptureConfig, config: UNetConfig, latent_size: tuple[int, int]
) -> AttentionMaps:
    sizes = layer_sizes(config, latent_size)
    kept = {name: records[name][:, None] for name in capture.kept_layers}
    records = {name: x.sum(axis=1) if name in kept else x for name, x in records.items()}
    levels = {sizes[name][0]: records[name] for name in capture.self_layers}
    if not capture.cross_layers:
        return AttentionMaps(jnp.zeros((0, 0, 0, 0), jnp.float32), levels, kept)
    seed = min(sizes[name] for name in capture.self_layers or capture.cross_layers)
    cross = [_resized(records[name], sizes[name], seed) for name in capture.cross_layers]
    return AttentionMaps(jnp.stack(cross, axis=1), levels, kept)


def _resized(record: Array, size: tuple[int, int], new_size: tuple[int, int]) -> Array:
    """`[r, n, k]` of a grid -> the same of another grid, linear between locations."""
    if size == new_size:
        return record
    rows, _, columns = record.shape
    field = record.reshape(rows, *size, columns)
    return jax.image.resize(field, (rows, *new_size, columns), "linear").reshape(rows, -1, columns)
