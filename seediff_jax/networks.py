"""What a Model computes: its networks, each compiled with the model as its first argument.

    token_ids -> encode_text -> text_embeddings -> predict_noise -> noise_pred, AttentionMaps
    images -> encode_images -> latents -> decode_latents -> images

The weights can be sharded.
"""

from typing import Any

import jax
import jax.numpy as jnp

from seediff_jax.arrays import Array, Float, Int, Real, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.model_config import make_modules
from seediff_jax.model_state import Model
from seediff_jax.models.conditioning import NO_CONDITIONS, Conditions
from seediff_jax.models.transformer import TokenColumns


@jax.jit
@typechecked
def encode_text(model: Model, token_ids: Int[Array, "b *encoders l"]) -> Float[Array, "b l d"]:
    """Embeds token ids as float32 `[b, l, d]`.

    Args:
        model: the model.
        token_ids: int32 `[b, l]` of `model.tokenizer`; `[b, 2, l]` for Stable Diffusion XL, whose
            two text encoders have a tokenizer each (`prompt_tokens.encode_prompts`).

    Raises:
        ValueError: there are more tokens than the text encoder has positions, or they are not for
            as many text encoders as the model has.
    """
    return encode_text_and_pool(model, token_ids)[0]


@jax.jit
@typechecked
def encode_text_and_pool(
    model: Model, token_ids: Int[Array, "b *encoders l"]
) -> tuple[Float[Array, "b l d"], Float[Array, "b p"] | None]:
    """Embeds token ids as `encode_text` does, and pools them where the UNet reads that.

    Stable Diffusion 1 and 2 read the last states of their text encoder. XL reads the penultimate
    states of both, side by side, and what the second pools (arXiv 2307.01952, section 2.1).
    """
    config, longest = model.config, model.text_config.max_position_embeddings
    if token_ids.shape[-1] > longest:
        raise ValueError(f"{token_ids.shape[-1]} tokens given, the text encoder reads {longest}")
    if token_ids.shape[1:-1] != ((2,) if config.is_xl else ()):
        needed = "[b, 2, l]" if config.is_xl else "[b, l]"
        raise ValueError(f"token ids have shape {token_ids.shape}, this model needs {needed}")

    def encode(name, token_ids):
        return _module(model, name).apply(_variables(model, name), token_ids)

    if not config.is_xl:
        return encode("text_encoder", token_ids).last, None
    first = encode("text_encoder", token_ids[:, 0])
    second = encode("text_encoder_2", token_ids[:, 1])
    return jnp.concatenate([first.penultimate, second.penultimate], axis=-1), second.pooled


@jax.jit
@typechecked
def predict_noise(
    model: Model,
    latents: Float[Array, "b h w c"],
    timesteps: Real[Array, " b"],
    text_embeddings: Float[Array, "b l d"],
    columns: TokenColumns | None = None,
    conditions: Conditions = NO_CONDITIONS,
) -> tuple[Float[Array, "b h w c"], AttentionMaps]:
    """One UNet call.

    Args:
        model: the model; its `capture` says which layers are recorded.
        latents: float32 `[b, h, w, c]`, of any height and width, scaled as the VAE's
            (`encode_images`).
        timesteps: int32 or float32 `[b]`, in 0..T-1 of the noise schedule.
        text_embeddings: float32 `[b, l, d]`, from `encode_text`.
        columns: which rows are recorded, and the columns that their cross-attention is projected
            on. By default all rows and one column a token.
        conditions: what the UNets of Stable Diffusion XL and of latent consistency models read
            beside the text, see Conditions.

    Returns:
        float32 `[b, h, w, c]`, what the scheduler's `prediction_type` says, and the AttentionMaps
        of the recorded rows.

    Raises:
        ValueError: axes or conditions do not fit the model or one another; latents that are to
            be recorded are so small that two recorded levels have one height.
    """
    if columns is None:
        b, tokens, _ = text_embeddings.shape
        columns = TokenColumns(jnp.broadcast_to(jnp.eye(tokens)[None], (b, tokens, tokens)))
    variables = _variables(model, "unet")
    return _module(model, "unet").apply(
        variables, latents, timesteps, text_embeddings, columns, conditions
    )


@jax.jit
@typechecked
def decode_latents(model: Model, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    """Turns latents, scaled as the UNet's, into float32 images `[b, H, W, 3]`.

    Their range is [-1, 1], which the decoder may overshoot a little; nothing is clipped here.

    Raises:
        ValueError: the latents have the wrong number of channels.
    """
    channels = model.vae_config.latent_channels
    if latents.shape[-1] != channels:
        raise ValueError(f"latents have {latents.shape[-1]} channels, this VAE takes {channels}")
    latents = latents / model.vae_config.scaling_factor
    return _module(model, "vae").apply(_variables(model, "vae"), latents, method="decode")


@jax.jit
@typechecked
def encode_images(model: Model, images: Float[Array, "b H W 3"]) -> Float[Array, "b h w c"]:
    """Turns images in [-1, 1] into the mean of their latents, scaled as the UNet's, float32.

    Raises:
        ValueError: height or width is no multiple of the VAE's downsampling.
    """
    _, height, width, _ = images.shape
    factor = model.vae_config.downsampling
    if height % factor or width % factor:
        raise ValueError(f"images are {height} x {width}, needed are multiples of {factor}")
    mean, _ = _module(model, "vae").apply(_variables(model, "vae"), images, method="encode")
    return mean * model.vae_config.scaling_factor


def _module(model: Model, name: str):
    return make_modules(model.config, model.dtype)[name]


def _variables(model: Model, name: str) -> dict[str, Any]:
    return {"params": model.params[name]}
