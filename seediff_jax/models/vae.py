"""AutoencoderKL: images <-> latents (Rombach et al., arXiv 2112.10752, section 3.1)."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from seediff_jax.array_typing import Array, Float
from seediff_jax.models.attention import Attention
from seediff_jax.models.config import VaeConfig
from seediff_jax.models.layers import Downsample, ResnetBlock, Upsample, conv3x3, group_norm

# All norms of diffusers' VAE blocks use this value; it is not in the JSON config.
_EPSILON = 1e-6
# The encoder pads below and to the right only, unlike the UNet.
_ENCODER_PADDING = ((0, 1), (0, 1))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all locations, residual."""

    num_groups: int
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` -> `[b, h, w, c]`."""
        b, h, w, c = x.shape
        y = group_norm(x, self.num_groups, _EPSILON, "group_norm").reshape(b, h * w, c)
        attention = Attention(1, self.dtype, use_bias=True, choice=self.attention, name="attention")
        return x + attention(y, y)[0].reshape(x.shape)


class MidBlock(nn.Module):
    """ResNet block, attention, ResNet block."""

    config: VaeConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` -> `[b, h, w, c]`."""
        groups, channels = self.config.norm_num_groups, x.shape[-1]
        x = ResnetBlock(channels, groups, _EPSILON, self.dtype, name="resnets_0")(x)
        if self.config.mid_block_add_attention:
            x = AttentionBlock(groups, self.dtype, self.attention, name="attentions_0")(x)
        return ResnetBlock(channels, groups, _EPSILON, self.dtype, name="resnets_1")(x)


class Stage(nn.Module):
    """ResNet blocks and an optional resize."""

    channels: int
    num_resnets: int
    config: VaeConfig
    dtype: DTypeLike
    resize: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[b, h, w, c]` -> `[b, h', w', channels]`."""
        for i in range(self.num_resnets):
            groups, name = self.config.norm_num_groups, f"resnets_{i}"
            x = ResnetBlock(self.channels, groups, _EPSILON, self.dtype, name=name)(x)
        if self.resize == "down":
            name = "downsamplers_0"
            return Downsample(self.channels, self.dtype, _ENCODER_PADDING, name=name)(x)
        if self.resize == "up":
            _, h, w, _ = x.shape
            return Upsample(self.channels, self.dtype, name="upsamplers_0")(x, 2 * h, 2 * w)
        return x


class Encoder(nn.Module):
    """Images to the moments of the latent distribution."""

    config: VaeConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """`[b, H, W, 3]` -> `[b, h, w, 2 * latent_channels]`."""
        config, widths = self.config, self.config.block_out_channels
        x = conv3x3(widths[0], self.dtype, "conv_in")(images)
        for i, channels in enumerate(widths):
            resize, name = ("down" if i < len(widths) - 1 else None), f"down_blocks_{i}"
            x = Stage(channels, config.layers_per_block, config, self.dtype, resize, name=name)(x)
        x = MidBlock(config, self.dtype, self.attention, name="mid_block")(x)
        x = nn.silu(group_norm(x, config.norm_num_groups, _EPSILON, "conv_norm_out"))
        return conv3x3(2 * config.latent_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Latents to images."""

    config: VaeConfig
    dtype: DTypeLike
    attention: str

    @nn.compact
    def __call__(self, latents: Array) -> Array:
        """`[b, h, w, latent_channels]` -> `[b, H, W, 3]`."""
        config, widths = self.config, self.config.block_out_channels[::-1]
        x = conv3x3(widths[0], self.dtype, "conv_in")(latents)
        x = MidBlock(config, self.dtype, self.attention, name="mid_block")(x)
        for i, channels in enumerate(widths):
            resize, name = ("up" if i < len(widths) - 1 else None), f"up_blocks_{i}"
            count = config.layers_per_block + 1
            x = Stage(channels, count, config, self.dtype, resize, name=name)(x)
        x = nn.silu(group_norm(x, config.norm_num_groups, _EPSILON, "conv_norm_out"))
        return conv3x3(config.out_channels, self.dtype, "conv_out")(x)


class AutoencoderKL(nn.Module):
    """Encoder and decoder; latents here are NOT yet multiplied by `scaling_factor`."""

    config: VaeConfig
    dtype: DTypeLike = jnp.float32
    attention: str = "auto"

    def setup(self):
        """Creates the four submodules under diffusers' names."""
        config = self.config
        self.encoder = Encoder(config, self.dtype, self.attention)
        self.decoder = Decoder(config, self.dtype, self.attention)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv(2 * config.latent_channels, (1, 1), dtype=self.dtype)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv(config.latent_channels, (1, 1), dtype=self.dtype)

    def encode(
        self, images: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Images in [-1, 1] -> mean and log-variance of the latents, float32 `[b, h, w, c]`.

        The log-variance is clipped to [-30, 20], as diffusers does.
        """
        moments = self.encoder(images.astype(self.dtype))
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Latents `[b, h, w, c]` -> float32 images `[b, H, W, 3]`, about [-1, 1], not clipped."""
        latents = latents.astype(self.dtype)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """Encodes to the mean and decodes; initialises every parameter."""
        return self.decode(self.encode(images)[0])
