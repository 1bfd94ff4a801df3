"""The whole data flow: prompts and class names in, images with their masks out.

    prompts, classes -> tokens -> [ sample ] -> images, AttentionMaps -> [ make_masks ] -> Pairs

The two brackets are two compiled programs: another threshold never compiles the UNet again.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from seediff_jax.arrays import Array, Float, Int, UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.class_columns import ClassColumns, class_columns
from seediff_jax.guidance import IMAGE_SIZE, SizeCondition
from seediff_jax.image_ops import min_max
from seediff_jax.label_maps import IGNORE_INDEX, label_map
from seediff_jax.masks import PUBLISHED_THRESHOLDS, MaskConfig, class_soft_mask
from seediff_jax.model import Model
from seediff_jax.noise import latent_size
from seediff_jax.prompt_tokens import encode_prompts
from seediff_jax.refinement import refine
from seediff_jax.sampling import SampleConfig, Samples, require_finite, sample
from seediff_jax.seeds import find_seeds, seed_map

PUBLISHED = MaskConfig()
REFINED_THRESHOLD = 0.8
"""The published way to masks, and threshold of a mask after refinement (method section 6)."""


@struct.dataclass
class Pairs:
    """Images with their masks; c is the longest list of classes, shorter ones are padded.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        soft_masks: float32 `[b, c, H, W]` in [0, 1], refined where that was asked for; 0 for the
            padding.
        label_maps: uint8 `[b, H, W]`: 0 background, k + 1 the k-th class of the image, 255 ignore.
        attention_maps: what the masks were made of; `cross_attention` has one column a class.
        seed_counts: int32 `[b, c]`, seed locations of each class; 0 says that nothing was found.
    """

    images: Array
    soft_masks: Array
    label_maps: Array
    attention_maps: AttentionMaps
    seed_counts: Array


def generate(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    *,
    rng_seed: int = 0,
    first_index: int = 0,
    num_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    size_condition: SizeCondition = IMAGE_SIZE,
    mask_config: MaskConfig = PUBLISHED,
    threshold: float | None = None,
    uncertain: float | None = None,
    refine_iterations: int = 0,
    dilations: Sequence[int] = (1,),
    refined_threshold: float = REFINED_THRESHOLD,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    num_classes: int | None = None,
    unnamed_classes: Sequence[Sequence[str]] | None = None,
) -> Pairs:
    """Generates an image for each prompt, and its masks of the classes that the prompt names.

    Sample `first_index + i` depends on `rng_seed`, that index, its prompt and the settings, not on
    the batch that it is part of. Only another shape (prompts, classes, images) or another
    `num_steps`, `mask_config`, `refine_iterations` or `dilations` compiles again, and so does a
    `guidance_scale` of exactly 1 and the first `guidance_rescale` above 0.

    Args:
        model: the model; `model.replace(scheduler_config=...)` chooses another sampler.
        prompts: b texts.
        classes: the class names of each prompt, in the order of their labels from 1 on.
        rng_seed: 0 to 2**32 - 1.
        first_index: index of the first sample.
        num_steps: denoising steps.
        guidance_scale: weight of the prompt; 1 is no guidance.
        guidance_rescale: how far, in 0..1, guidance gives up the contrast that it adds, see
            `guidance.guide`.
        negative_prompt: what images are guided away from; for Stable Diffusion XL, an empty one is
            embedded as zeros where the checkpoint says so, as diffusers does without one.
        height: of the images in pixels; None is the side that the model was trained for.
        width: the same.
        size_condition: what Stable Diffusion XL is told of the size of the images.
        mask_config: how masks are made.
        threshold: a pixel belongs to a class above it; None is the published value of the method.
        uncertain: pixels in [uncertain, threshold) are ignored; None is the published value of the
            method where `threshold` is None too, and else ignores nothing.
        refine_iterations: steps of pixel-adaptive refinement on the image; then `uncertain` is
            measured on its result, against `refined_threshold`.
        dilations: distances of the neighbours in that refinement.
        refined_threshold: a pixel belongs to a class above it after refinement.
        synonyms: words that name a class, see `class_names.find_mentions`.
        unnamed_classes: further classes of each prompt, to look for though the prompt does not name
            them; their labels follow those of `classes`, see `class_columns`.
        num_classes: c, to which the lists of classes are padded, so that batches with lists of
            other lengths run the same programs; by default the length of the longest.

    Raises:
        ValueError: a prompt is too long or does not name a class, or a setting is out of range.
        FloatingPointError: a stage of sampling gave values that are not finite.
    """
    threshold, uncertain = _applied_thresholds(
        mask_config, threshold, uncertain, refined_threshold if refine_iterations else None
    )
    _require_masks_possible(model, refine_iterations, dilations)
    columns = _pad_classes(
        class_columns(model, prompts, classes, unnamed_classes, synonyms), num_classes
    )
    if columns.token_mask.shape[1] >= IGNORE_INDEX:
        raise ValueError(
            f"{columns.token_mask.shape[1]} classes, a label map holds {IGNORE_INDEX - 1}"
        )
    samples = _sample(
        model,
        prompts,
        columns,
        rng_seed=rng_seed,
        first_index=first_index,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        latent_size=latent_size(model, height, width),
        size_condition=size_condition,
    )
    soft_masks, label_maps, seed_counts = make_masks(
        samples.images,
        samples.attention_maps,
        np.float32(threshold),
        np.float32(uncertain),
        np.float32(refined_threshold),
        mask_config=mask_config,
        refine_iterations=refine_iterations,
        dilations=tuple(dilations),
    )
    return Pairs(samples.images, soft_masks, label_maps, samples.attention_maps, seed_counts)


def generate_images(
    model: Model,
    prompts: Sequence[str],
    *,
    rng_seed: int = 0,
    first_index: int = 0,
    num_steps: int = 50,
    guidance_scale: float = 7.5,
    guidance_rescale: float = 0.0,
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    size_condition: SizeCondition = IMAGE_SIZE,
) -> UInt8[Array, "b H W 3"]:
    """Generates the images of `generate`, and records no attention.

    Raises:
        ValueError: a prompt is too long, or a setting is out of range.
        FloatingPointError: a stage of sampling gave values that are not finite.
    """
    no_classes = ClassColumns(np.zeros((len(prompts), 0, model.tokenizer.max_length), bool))
    samples = _sample(
        model,
        prompts,
        no_classes,
        rng_seed=rng_seed,
        first_index=first_index,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        latent_size=latent_size(model, height, width),
        size_condition=size_condition,
    )
    return samples.images


@functools.partial(jax.jit, static_argnames=("mask_config", "refine_iterations", "dilations"))
@typechecked
def make_masks(
    images: UInt8[Array, "b H W 3"],
    attention_maps: AttentionMaps,
    threshold: Float[Array, ""],
    uncertain: Float[Array, ""],
    refined_threshold: Float[Array, ""],
    *,
    mask_config: MaskConfig,
    refine_iterations: int = 0,
    dilations: tuple[int, ...] = (1,),
) -> tuple[Float[Array, "b c H W"], UInt8[Array, "b H W"], Int[Array, "b c"]]:
    """Makes soft masks, label maps and seed counts, as in Pairs, of a batch.

    The second compiled program. May run under `jax.shard_map`, every array with a batch axis split
    along it; the last three arguments are static.

    Args:
        images: colours in 0..255.
        attention_maps: float32, `cross_attention` with one column a class.
        threshold: see `label_map`.
        uncertain: see `label_map`; equal to the threshold, it ignores nothing.
        refined_threshold: takes the place of `threshold` for refined masks.
        mask_config: how soft masks are made.
        refine_iterations: 0 for no refinement.
        dilations: see `refine`.
    """
    image_size = images.shape[1:3]

    def one_class(cross_attention, self_attention):
        seeds = find_seeds(seed_map(cross_attention))
        soft = class_soft_mask(cross_attention, self_attention, image_size, mask_config)
        return soft, jnp.sum(seeds, dtype=jnp.int32)

    def one_image(image, maps):
        per_class = jax.vmap(one_class, in_axes=(-1, None))
        soft_masks, seed_counts = per_class(maps.cross_attention, maps.self_attention)
        if not refine_iterations:
            return soft_masks, label_map(soft_masks, threshold, uncertain), seed_counts
        labels = label_map(soft_masks, threshold)
        classes = jnp.arange(1, soft_masks.shape[0] + 1, dtype=jnp.uint8)

        def refined(binary):
            soft = refine(image, binary, iterations=refine_iterations, dilations=dilations)
            return min_max(soft)

        binary = labels[None] == classes[:, None, None]
        soft_masks = jax.vmap(refined)(binary.astype(jnp.float32))
        return soft_masks, label_map(soft_masks, refined_threshold, uncertain), seed_counts

    return jax.vmap(one_image)(images, attention_maps)


def _sample(
    model: Model,
    prompts: Sequence[str],
    columns: ClassColumns,
    *,
    rng_seed: int,
    first_index: int,
    num_steps: int,
    guidance_scale: float,
    guidance_rescale: float,
    negative_prompt: str,
    latent_size: tuple[int, int],
    size_condition: SizeCondition,
) -> Samples:
    """Checks the settings, runs the first program and checks what it made."""
    count = len(prompts)
    _require_range("rng_seed", rng_seed, 2**32 - 1)
    _require_range("first_index", first_index, 2**31 - count)
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale} is not a finite number")
    if not 0 <= guidance_rescale <= 1:
        raise ValueError(f"guidance_rescale={guidance_rescale} must lie in 0..1")
    size_condition.require_valid()
    token_ids = encode_prompts(model, prompts)
    negative_token_ids = encode_prompts(model, [negative_prompt]).repeat(count, axis=0)
    indices = np.arange(first_index, first_index + count, dtype=np.int32)
    texts = columns.texts
    samples = sample(
        model,
        token_ids,
        negative_token_ids,
        columns.token_mask,
        indices,
        rng_seed=np.uint32(rng_seed),
        guidance_scale=np.float32(guidance_scale),
        guidance_rescale=np.float32(guidance_rescale) if guidance_rescale else None,
        size_condition=size_condition,
        config=SampleConfig(
            num_steps=num_steps,
            use_guidance=guidance_scale != 1,
            capture=columns.token_mask.shape[1] > 0,
            latent_size=latent_size,
        ),
        unnamed_token_ids=None if texts is None else encode_prompts(model, texts),
        unnamed_token_mask=columns.text_token_mask,
    )
    require_finite(samples, indices)
    return samples


def _pad_classes(columns: ClassColumns, num_classes: int | None) -> ClassColumns:
    count = columns.token_mask.shape[1]
    missing = 0 if num_classes is None else num_classes - count
    if missing < 0:
        raise ValueError(f"num_classes={num_classes}, but a prompt has {count} classes")
    padding = ((0, 0), (0, missing), (0, 0))
    text_mask = columns.text_token_mask
    return columns._replace(
        token_mask=np.pad(columns.token_mask, padding),
        text_token_mask=None if text_mask is None else np.pad(text_mask, padding),
    )


def _require_range(name: str, value: int, last: int) -> None:
    if not isinstance(value, (int, np.integer)) or not 0 <= value <= last:
        raise ValueError(f"{name}={value!r} must be a whole number in 0..{last}")


def _require_masks_possible(model: Model, refine_iterations: int, dilations: Sequence[int]) -> None:
    _require_range("refine_iterations", refine_iterations, 2**31 - 1)
    if not dilations or min(dilations) < 1:
        raise ValueError(f"dilations={dilations} must hold at least one distance, each 1 or more")
    for name in ("cross_layers", "self_layers"):
        if not getattr(model.capture, name):
            raise ValueError(f"the model's capture has no {name}; masks need at least one of them")


def _applied_thresholds(
    mask_config: MaskConfig,
    threshold: float | None,
    uncertain: float | None,
    refined_threshold: float | None,
) -> tuple[float, float]:
    """The thresholds with their published values, and the last one again where nothing is ignored.

    Raises:
        ValueError: one of them is out of range.
    """
    if threshold is None:
        threshold, published = PUBLISHED_THRESHOLDS[mask_config.method]
        uncertain = published if uncertain is None else uncertain
    applied = {"threshold": threshold}
    if refined_threshold is not None:
        applied["refined_threshold"] = refined_threshold
    for name, value in applied.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must lie in 0..1")
    last_name, last = applied.popitem()
    uncertain = last if uncertain is None else uncertain
    if not 0 <= uncertain <= last:
        raise ValueError(f"uncertain={uncertain} must lie in 0..{last}, the {last_name}")
    return threshold, uncertain
