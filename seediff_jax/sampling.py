"""Sampling: tokens in, images and their averaged attention out, as one compiled program.

    token_ids -> text_embeddings -+
    rng_seed, indices -> latents -+-> scan over the UNet calls -> latents -> images
                                               |
                                               +-> AttentionMaps, mean over the calls

Classifier-free guidance (Ho and Salimans, arXiv 2207.12598); attention is that of the conditional
half alone (method section 1). Guidance scale, seed, indices and tokens are traced: other values of
them run the same program.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.arrays import Array, Bool, Float, Int, UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.denoising import denoise
from seediff_jax.guidance import IMAGE_SIZE, SizeCondition, embed_prompts
from seediff_jax.model import Model, decode_latents, encode_text
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.noise import initial_latents

STAGES = ("text_embeddings", "latents", "images")
"""Stages of sampling, in order, that are watched for values that are not finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What makes another program of sampling; hashable, a static argument of `jax.jit`.

    Attributes:
        num_steps: denoising steps; PNDM makes one UNet call more.
        use_guidance: whether the negative prompt is denoised beside the prompt; without, neither
            it nor the guidance scale is read. A latent consistency model never reads the former
            and always the latter.
        capture: whether attention is recorded; without, the AttentionMaps are empty.
        latent_size: height and width of the latents; None is the side in the UNet's config.
        decode_batch: most images that the VAE decodes at once, which bounds its memory.
        dry: no UNet call is made; noise is decoded, and random numbers stand in for attention.

    Raises:
        ValueError: num_steps or decode_batch below 1.
    """

    num_steps: int = 50
    use_guidance: bool = True
    capture: bool = True
    latent_size: tuple[int, int] | None = None
    decode_batch: int = 4
    dry: bool = False

    def __post_init__(self):
        for name in ("num_steps", "decode_batch"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number from 1 on")


@struct.dataclass
class Samples:
    """What sampling makes.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        latents: float32 `[b, h, w, c]`, of which the images were decoded.
        attention_maps: mean over the UNet calls; `cross_attention` has one column a class.
        is_finite: bool `[b]` for each of STAGES, whether all its values are finite.
    """

    images: Array
    latents: Array
    attention_maps: AttentionMaps
    is_finite: dict[str, Array]


@functools.partial(jax.jit, static_argnames="config")
@typechecked
def sample(
    model: Model,
    token_ids: Int[Array, "b *encoders l"],
    negative_token_ids: Int[Array, "b *encoders l"],
    class_token_mask: Bool[Array, "b c l"],
    indices: Int[Array, " b"],
    *,
    rng_seed: Array,
    guidance_scale: Float[Array, ""],
    guidance_rescale: Float[Array, ""] | None = None,
    size_condition: SizeCondition = IMAGE_SIZE,
    config: SampleConfig,
    unnamed_token_ids: Int[Array, "b *encoders l"] | None = None,
    unnamed_token_mask: Bool[Array, "b c l"] | None = None,
) -> Samples:
    """Samples an image a row. Sample i depends on `rng_seed`, i and its tokens, not on the batch.

    May run under `jax.shard_map`, every array with a batch axis split along it.

    Args:
        model: its `capture` says which layers are recorded.
        token_ids: int32, of the prompts, from `encode_prompts`.
        negative_token_ids: int32, of what to guide away from.
        class_token_mask: the tokens of each class; a class without any gets zero attention.
        indices: int32, which samples of the seed these are, from 0.
        rng_seed: uint32 `[]`.
        guidance_scale: 1 is no guidance.
        guidance_rescale: see `guide`; None makes another program than a number.
        size_condition: what Stable Diffusion XL is told of the size of the images.
        config: static.
        unnamed_token_ids: int32, of texts that name classes which the prompts do not; images do not
            depend on them.
        unnamed_token_mask: the tokens of each class in these texts.

    Raises:
        ValueError: the model's scheduler cannot make so many steps.
    """
    latents = initial_latents(model, rng_seed, indices, config.latent_size)
    image_size = tuple(model.vae_config.downsampling * side for side in latents.shape[1:3])
    embed = functools.partial(
        embed_prompts,
        model,
        image_size=image_size,
        size_condition=size_condition,
        guidance_scale=guidance_scale,
    )
    text, conditions = embed(token_ids)
    if config.use_guidance and conditions.guidance_scale is None:
        negative_text, negative_conditions = embed(negative_token_ids, is_negative=True)
    else:
        negative_text, negative_conditions = jax.tree.map(lambda x: x[:0], (text, conditions))
    if not config.capture:
        class_token_mask = class_token_mask[:0]
    columns = TokenColumns(class_token_weights(class_token_mask))
    if unnamed_token_ids is not None and config.capture:
        columns = columns.replace(
            watched=encode_text(model, unnamed_token_ids),
            watched_weights=class_token_weights(unnamed_token_mask),
        )
    run = functools.partial(
        denoise,
        model,
        num_steps=config.num_steps,
        rng_seed=rng_seed,
        indices=indices,
        conditions=conditions,
        negative_conditions=negative_conditions,
        guidance_rescale=guidance_rescale,
    )
    arguments = (latents, text, negative_text, columns, guidance_scale)
    if config.dry:
        _, shapes = jax.eval_shape(run, *arguments)
        attention_maps = _random_maps(shapes, rng_seed, indices)
    else:
        latents, attention_maps = run(*arguments)
    images = decode_in_chunks(model, latents, config.decode_batch)
    stages = zip(STAGES, (text, latents, images), strict=True)
    return Samples(
        images=to_uint8(images),
        latents=latents,
        attention_maps=attention_maps,
        is_finite={
            name: jnp.isfinite(values).all(axis=range(1, values.ndim)) for name, values in stages
        },
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
    """Decodes the largest equal chunks of at most `decode_batch` images, one after the other."""
    b = latents.shape[0]
    chunk = max(size for size in range(1, min(b, decode_batch) + 1) if b % size == 0)
    chunks = latents.reshape(b // chunk, chunk, *latents.shape[1:])
    images = jax.lax.map(functools.partial(decode_latents, model), chunks)
    return images.reshape(b, *images.shape[2:])


@typechecked
def to_uint8(images: Float[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
    """Turns images in [-1, 1] into colours in 0..255; what lies beyond is clipped."""
    return jnp.round(127.5 * (jnp.clip(images, -1, 1) + 1)).astype(jnp.uint8)


def _random_maps(shapes: AttentionMaps, rng_seed: Array, indices: Array) -> AttentionMaps:
    """Numbers in [0, 1) in the place of attention, a key a sample."""

    def draw(leaf: jax.ShapeDtypeStruct) -> Array:
        def row(index):
            key = jax.random.fold_in(jax.random.key(rng_seed), index)
            return jax.random.uniform(key, leaf.shape[1:], leaf.dtype)

        return jax.vmap(row)(indices)

    return jax.tree.map(draw, shapes)


def require_finite(samples: Samples, indices: np.ndarray) -> None:
    """Checks on the host that every stage of sampling gave finite values.

    Args:
        samples: from `sample`.
        indices: int `[b]`, the names of the samples in the message.

    Raises:
        FloatingPointError: naming the first stage that did not, and the samples.
    """
    for stage in STAGES:
        is_finite = np.asarray(samples.is_finite[stage])
        if not is_finite.all():
            raise FloatingPointError(
                f"{stage} of the samples {indices[~is_finite].tolist()} are not finite; check the "
                "weights, or use float32 or bfloat16 instead of float16"
            )
