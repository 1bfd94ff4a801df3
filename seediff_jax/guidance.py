"""From token ids to what the UNet is told of a prompt, and from its two answers to one.

    token_ids, size_condition, guidance_scale -> embed_prompts -> text_embeddings, Conditions
    negative and conditional prediction -> guide -> prediction

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598) asks the UNet twice. Latent consistency
models (arXiv 2310.04378) are asked once and read the guidance scale instead.
"""

import jax.numpy as jnp
from flax import struct

from seediff_jax.arrays import Array, Float, Int, typechecked
from seediff_jax.model import Model, encode_text_and_pool
from seediff_jax.models.conditioning import NUM_SIZES, Conditions


@struct.dataclass
class SizeCondition:
    """What Stable Diffusion XL is told of an image's size, in pixels; other models ignore it.

    It was trained on the sizes of its images before they were scaled and cropped, and draws images
    that look as if they had them (arXiv 2307.01952, section 2.2).

    Attributes:
        original: height and width before scaling; None is the size of the image.
        crop: how much was cut off at the top and at the left.
        target: height and width after cropping; None is the size of the image.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def require_valid(self) -> None:
        """Raises a ValueError unless these are pairs of whole numbers from 0 on."""
        for name in ("original", "crop", "target"):
            pair = getattr(self, name) or (0, 0)
            is_pair = isinstance(pair, tuple) and len(pair) == 2
            if not is_pair or not all(isinstance(n, int) and n >= 0 for n in pair):
                raise ValueError(f"size_condition.{name}={pair!r} must be two numbers from 0 on")

    def numbers(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers for an image of this size, in the order that the UNet reads."""
        return (*(self.original or (height, width)), *self.crop, *(self.target or (height, width)))


IMAGE_SIZE = SizeCondition()
"""An image of its own size, not cropped."""


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
    """Embeds prompts, with all that this model's UNet reads beside them.

    Args:
        model: the model.
        token_ids: see `encode_text`.
        image_size: height and width in pixels.
        size_condition: read by Stable Diffusion XL.
        guidance_scale: read by latent consistency models.
        is_negative: whether these are negative prompts, of which the empty one is embedded as zeros
            where the model's `force_zeros_for_empty_prompt` says so.
    """
    text, pooled = encode_text_and_pool(model, token_ids)
    if is_negative and model.force_zeros_for_empty_prompt:
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
        guidance_rescale: how far, in 0..1, the result goes back to the standard deviation of
            `conditional`, which guidance increases (arXiv 2305.08891, section 3.4); None is 0.
    """
    guided = negative + guidance_scale * (conditional - negative)
    if guidance_rescale is None:
        return guided
    axes = (1, 2, 3)
    before, after = (jnp.std(x, axis=axes, keepdims=True) for x in (conditional, guided))
    return guided * (guidance_rescale * (before / after) + (1 - guidance_rescale))
