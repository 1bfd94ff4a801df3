"""The whole data flow: prompts and class names in, images with their masks out.

    prompts, classes -> tokens -> [ sample ] -> images, AttentionMaps -> [ make_masks ] -> Pairs

The two brackets are two compiled programs: another threshold never compiles the UNet again.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from flax import struct

from seediff_jax.arrays import Array, UInt8
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.batch_masks import make_masks
from seediff_jax.guidance import IMAGE_SIZE, SizeCondition
from seediff_jax.masks import MaskConfig
from seediff_jax.model import Model
from seediff_jax.pair_inputs import PairInputs, pair_inputs
from seediff_jax.pair_settings import REFINED_THRESHOLD, PairScalars, PairSettings, require_range
from seediff_jax.sampling import SampleConfig, Samples, require_finite, sample

PUBLISHED = MaskConfig()
"""The published way to masks."""


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
    `guidance_scale` of 1 or less and the first `guidance_rescale` above 0.

    Args:
        model: the model; `model.replace(scheduler_config=...)` chooses another sampler.
        prompts: b texts.
        classes: the class names of each prompt, in the order of their labels from 1 on.
        rng_seed: 0 to 2**32 - 1.
        first_index: index of the first sample.
        num_steps: denoising steps.
        guidance_scale: weight of the prompt, 0 or more; up to 1 the prompt alone is denoised, as by
            diffusers.
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
    settings = PairSettings(
        rng_seed=rng_seed,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        size_condition=size_condition,
        mask_config=mask_config,
        threshold=threshold,
        uncertain=uncertain,
        refine_iterations=refine_iterations,
        dilations=dilations,
        refined_threshold=refined_threshold,
    )
    require_capture(model, mask_config.method)
    inputs = pair_inputs(
        model,
        prompts,
        classes,
        _indices(first_index, len(prompts)),
        negative_prompt=negative_prompt,
        unnamed_classes=unnamed_classes,
        synonyms=synonyms,
        num_classes=num_classes,
    )
    samples = _sample(model, inputs, settings)
    soft_masks, label_maps, seed_counts = mask_samples(settings.scalars(), samples, settings)
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
    settings = PairSettings(
        rng_seed=rng_seed,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        negative_prompt=negative_prompt,
        height=height,
        width=width,
        size_condition=size_condition,
    )
    indices = _indices(first_index, len(prompts))
    inputs = pair_inputs(model, prompts, None, indices, negative_prompt=negative_prompt)
    return _sample(model, inputs, settings).images


def sample_inputs(
    model: Model,
    scalars: PairScalars,
    inputs: PairInputs,
    config: SampleConfig,
    size_condition: SizeCondition = IMAGE_SIZE,
) -> Samples:
    """Runs the first program on prepared inputs; arguments from the fourth on are static."""
    return sample(
        model,
        inputs.token_ids,
        inputs.negative_token_ids,
        inputs.class_token_mask,
        inputs.indices,
        rng_seed=scalars.rng_seed,
        guidance_scale=scalars.guidance_scale,
        guidance_rescale=scalars.guidance_rescale,
        size_condition=size_condition,
        config=config,
        unnamed_token_ids=inputs.unnamed_token_ids,
        unnamed_token_mask=inputs.unnamed_token_mask,
    )


def mask_samples(
    scalars: PairScalars, samples: Samples, settings: PairSettings
) -> tuple[Array, Array, Array]:
    """Runs the second program on samples, see `make_masks`; `settings` is static."""
    return make_masks(
        samples.images,
        samples.attention_maps,
        scalars.threshold,
        scalars.uncertain,
        scalars.refined_threshold,
        mask_config=settings.mask_config,
        refine_iterations=settings.refine_iterations,
        dilations=settings.dilations,
    )


def require_capture(model: Model, method: str) -> None:
    """Raises a ValueError unless the model records what masks of a method are made of."""
    needed = ("cross_layers",) if method == "cross_attention" else ("cross_layers", "self_layers")
    for name in needed:
        if not getattr(model.capture, name):
            raise ValueError(
                f"the model's capture has no {name}; masks by {method!r} need at least one of "
                "them: add it, or choose the capture 'published'"
            )


def _sample(model: Model, inputs: PairInputs, settings: PairSettings) -> Samples:
    """Runs the first program and checks what it made."""
    config = settings.sample_config(model, capture=inputs.class_token_mask.shape[1] > 0)
    samples = sample_inputs(model, settings.scalars(), inputs, config, settings.size_condition)
    require_finite(samples, inputs.indices)
    return samples


def _indices(first: int, count: int) -> np.ndarray:
    require_range("first_index", first, 2**31 - count)
    return np.arange(first, first + count, dtype=np.int32)
