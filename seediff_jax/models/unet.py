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
from seediff_jax.models.config import UNetConfig
from seediff_jax.models.layers import (
    Attention,
    Downsample,
    ResnetBlock,
    Upsample,
    conv3x3,
    group_norm,
    layer_norm,
    timestep_embedding,
)

Records = dict[str, Array]


class FeedForward(nn.Module):
    """Gated GELU and a dense layer (Shazeer, arXiv 2002.05202)."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, n, c]` -> `[b, n, c]`."""
        width = x.shape[-1]
        y = nn.Dense(8 * width, dtype=self.dtype, name="net_0_proj")(x)
        y, gate = jnp.split(y, 2, axis=-1)
        # Exact erf form, as in torch; Linen's default is the tanh approximation.
        y = y * nn.gelu(gate, approximate=False)
        return nn.Dense(width, dtype=self.dtype, name="net_2")(y)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and residual."""

    num_heads: int
    layer: str
    capture: CaptureConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, text: Array, token_weights: Array) -> tuple[Array, Records]:
        """`[b, n, c]`, `[b, l, d]`, `[r, l, k]` -> `[b, n, c]` and records of the last r rows."""
        rows, records = token_weights.shape[0], {}

        def attend(name, y, context):
            recorded_rows = rows if self.capture.records(f"{self.layer}.{name}") else 0
            attention = Attention(self.num_heads, self.dtype, name=name)
            return attention(y, y if context is None else context, recorded_rows)

        y, probs = attend("attn1", layer_norm(x, 1e-5, "norm1"), None)
        x = x + y
        if probs is not None:
            records[f"{self.layer}.attn1"] = probs
        y, probs = attend("attn2", layer_norm(x, 1e-5, "norm2"), text)
        x = x + y
        if probs is not None:
            columns = jnp.einsum("bnl,blk->bnk", probs, token_weights, precision="highest")
            records[f"{self.layer}.attn2"] = columns
        return x + FeedForward(self.dtype, name="ff")(layer_norm(x, 1e-5, "norm3")), records


class Transformer(nn.Module):
    """Spatial transformer: an image as a sequence of its locations, row major."""

    num_heads: int
    depth: int
    config: UNetConfig
    layer: str
    capture: CaptureConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, text: Array, token_weights: Array) -> tuple[Array, Records]:
        """`[b, h, w, c]`, `[b, l, d]`, `[r, l, k]` -> `[b, h, w, c]` and records."""
        b, h, w, c = x.shape
        records: Records = {}
        # diffusers builds this one norm with 1e-6, all others of the UNet with the config's value.
        y = group_norm(x, self.config.norm_num_groups, 1e-6, "norm")
        y = self._project("proj_in", y).reshape(b, h * w, c)
        for i in range(self.depth):
            layer, name = f"{self.layer}.transformer_blocks.{i}", f"transformer_blocks_{i}"
            block = TransformerBlock(self.num_heads, layer, self.capture, self.dtype, name=name)
            y, new = block(y, text, token_weights)
            records |= new
        return x + self._project("proj_out", y.reshape(b, h, w, c)), records

    def _project(self, name: str, x: Array) -> Array:
        if self.config.use_linear_projection:
            return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
        return nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name=name)(x)


class Block(nn.Module):
    """ResNet blocks, each followed by a transformer where `depth` is not 0, then a resize.

    One class serves down blocks (which return every output as a skip), the mid block and up blocks
    (which concatenate a skip to every input).
    """

    channels: int
    num_resnets: int
    depth: int
    num_heads: int
    config: UNetConfig
    layer: str
    capture: CaptureConfig
    dtype: DTypeLike
    resize: str | None = None

    @nn.compact
    def __call__(self, x, time_embedding, text, token_weights, skips=None):
        """Returns `(x, outputs, records)`; `skips` is consumed from its end."""
        outputs, records = [], {}

        def attend(i, x):
            name, layer = f"attentions_{i}", f"{self.layer}.attentions.{i}"
            module = Transformer(
                self.num_heads, self.depth, self.config, layer, self.capture, self.dtype, name=name
            )
            x, new = module(x, text, token_weights)
            records.update(new)
            return x

        is_mid = self.layer == "mid_block"
        for i in range(self.num_resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips.pop()], axis=-1)
            resnet = ResnetBlock(
                self.channels,
                self.config.norm_num_groups,
                self.config.norm_eps,
                self.dtype,
                name=f"resnets_{i}",
            )
            x = resnet(x, time_embedding)
            # The mid block has a ResNet block before and after each transformer.
            if self.depth and not (is_mid and i == self.num_resnets - 1):
                x = attend(i, x)
            outputs.append(x)
        if self.resize == "down":
            x = Downsample(self.channels, self.dtype, name="downsamplers_0")(x)
            outputs.append(x)
        if self.resize == "up":
            _, height, width, _ = skips[-1].shape
            x = Upsample(self.channels, self.dtype, name="upsamplers_0")(x, height, width)
        return x, outputs, records


class TimeMlp(nn.Module):
    """Two dense layers on the sinusoidal timestep embedding."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, c]` -> `[b, width]`."""
        y = nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x.astype(self.dtype))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(nn.silu(y))


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
    ) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
        """Predicts the noise (or v, by the checkpoint's scheduler config).

        Args:
            latents: `[b, h, w, c]`, scaled as the scheduler asks.
            timesteps: int32 `[b]` in 0..999.
            text_embeddings: `[b, l, d]`.
            token_weights: float32 `[r, l, k]`: the last r rows of the batch are recorded, and their
                cross-attention is projected from tokens to k columns.

        Returns:
            float32 `[b, h, w, c]` and the AttentionMaps of the last r rows.

        Raises:
            ValueError: the latents have the wrong number of channels, or cannot be recorded because
                they are not square or so small that two recorded levels have the same side.
        """
        config, capture, dtype = self.config, self.capture, self.dtype
        _check_latents(latents, config, capture)
        widths = config.block_out_channels
        last = len(widths) - 1
        embedding = timestep_embedding(
            timesteps,
            widths[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        embedding = TimeMlp(4 * widths[0], dtype, name="time_embedding")(embedding)
        text = text_embeddings.astype(dtype)
        records: Records = {}

        def block(name, i, num_resnets, has_attention, resize=None):
            """Block `name`, whose width, heads and depth are those of entry i of the config."""
            depth = config.transformer_layers_per_block[i] if has_attention else 0
            heads, layer = config.num_attention_heads[i], name
            if name != "mid_block":
                layer = ".".join(name.rsplit("_", 1))
            return Block(
                widths[i],
                num_resnets,
                depth,
                heads,
                config,
                layer,
                capture,
                dtype,
                resize,
                name=name,
            )

        x = conv3x3(widths[0], dtype, "conv_in")(latents.astype(dtype))
        skips = [x]
        for i, kind in enumerate(config.down_block_types):
            resize = "down" if i < last else None
            has_attention = kind == "CrossAttnDownBlock2D"
            down = block(f"down_blocks_{i}", i, config.layers_per_block, has_attention, resize)
            x, outputs, new = down(x, embedding, text, token_weights)
            skips += outputs
            records |= new
        x, _, new = block("mid_block", last, 2, True)(x, embedding, text, token_weights)
        records |= new
        for i, kind in enumerate(config.up_block_types):
            resize = "up" if i < last else None
            has_attention = kind == "CrossAttnUpBlock2D"
            up = block(
                f"up_blocks_{i}", last - i, config.layers_per_block + 1, has_attention, resize
            )
            x, _, new = up(x, embedding, text, token_weights, skips)
            records |= new
        x = nn.silu(group_norm(x, config.norm_num_groups, config.norm_eps, "conv_norm_out"))
        noise_pred = conv3x3(config.out_channels, dtype, "conv_out")(x)
        return noise_pred.astype(jnp.float32), _to_maps(records, capture)


def _check_latents(latents: Array, config: UNetConfig, capture: CaptureConfig) -> None:
    _, height, width, channels = latents.shape
    if channels != config.in_channels:
        raise ValueError(f"latents have {channels} channels, this UNet takes {config.in_channels}")
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
