"""Label maps and scores from the soft masks of all classes, for a batch (method sections 5 and 7).

    images, AttentionMaps -> [ make_masks ] -> soft masks, label maps -> [ class_scores ]

The second compiled program. The kernels work on one image and one class and are vmapped twice.
"""

import functools

import jax
import jax.numpy as jnp

from seediff_jax.array_typing import Array, Bool, Float, Int, UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError
from seediff_jax.masks.config import (
    BACKGROUND,
    IGNORE_INDEX,
    LEAST_EVIDENCE,
    MaskConfig,
    Thresholds,
)
from seediff_jax.masks.image_ops import min_max
from seediff_jax.masks.methods import class_soft_mask, cross_attention_mask
from seediff_jax.masks.refinement import refine
from seediff_jax.masks.seeds import find_seeds, seed_map


@typechecked
def label_map(
    soft_masks: Float[Array, "c H W"],
    threshold: float | int | Float[Array, ""],
    uncertain: float | int | Float[Array, ""] | None = None,
) -> UInt8[Array, "H W"]:
    """Labels each pixel with the class of its largest soft mask, where that is above `threshold`.

    The first of equally large masks wins. `threshold` and `uncertain` may be traced, so that
    another value does not recompile.

    Args:
        soft_masks: values in [0, 1], one map per class.
        threshold: above it a pixel has label k + 1, otherwise BACKGROUND.
        uncertain: pixels whose largest mask lies in [uncertain, threshold) are IGNORE_INDEX; None
            ignores nothing.

    Raises:
        UserError: no class, or more classes than labels below IGNORE_INDEX.
    """
    num_classes = soft_masks.shape[0]
    if not 0 < num_classes < IGNORE_INDEX:
        raise UserError(
            f"soft_masks has {num_classes} classes; a label map holds 1 to {IGNORE_INDEX - 1}"
        )
    largest = jnp.max(soft_masks, axis=0)
    winner = jnp.argmax(soft_masks, axis=0) + 1
    labels = jnp.where(largest > threshold, winner, BACKGROUND)
    if uncertain is not None:
        ignored = (largest >= uncertain) & (largest < threshold)
        labels = jnp.where(ignored, IGNORE_INDEX, labels)
    return labels.astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames="config")
@typechecked
def make_masks(
    images: UInt8[Array, "b H W 3"],
    attention_maps: AttentionMaps,
    thresholds: Thresholds,
    *,
    config: MaskConfig,
) -> tuple[Float[Array, "b c H W"], UInt8[Array, "b H W"], Int[Array, "b c"], Float[Array, "b c"]]:
    """Makes soft masks, label maps, seed counts and presence of a batch; the second program.

    The presence of a class is what `explained` finds in the evidence. Without evidence it is the
    correlation of its soft mask, before refinement, with its enlarged seed map: where an image
    shows a class, both lie on its object; where it does not, the seeds are scattered, and
    self-attention spreads them elsewhere. Classes below `thresholds.presence` get a soft mask of 0.

    May run under `jax.shard_map`, with every array split along its batch axis.

    Args:
        images: colours in 0..255.
        attention_maps: float32, `cross_attention` with one column per class.
        thresholds: of float32 `[]`, from `MaskConfig.thresholds`.
        config: static; its thresholds are not read, see `settings.static_part`.
    """
    image_size = images.shape[1:3]
    threshold, uncertain, refined_threshold, min_presence = thresholds

    if has_evidence := attention_maps.evidence is not None:
        min_presence = jnp.where(jnp.isnan(min_presence), LEAST_EVIDENCE, min_presence)

    def one_class(cross_attention, self_attention, evidence):
        seeds = find_seeds(seed_map(cross_attention))
        soft = class_soft_mask(cross_attention, self_attention, image_size, config)
        # Columns of padding are 0; a user's own method may turn them into anything.
        soft = jnp.where(jnp.any(cross_attention != 0), soft, 0)
        if has_evidence:
            presence = explained(evidence, soft)
        else:
            enlarged = cross_attention_mask(cross_attention, self_attention, image_size)
            presence = correlation(soft, enlarged)
        if has_evidence or config.only_method != "cross_attention":  # its correlation is always 1
            soft = jnp.where(presence < min_presence, 0, soft)  # keeps values that are not finite
        return soft, jnp.sum(seeds, dtype=jnp.int32), presence

    def one_image(image, maps):
        per_class = jax.vmap(one_class, in_axes=(-1, None, -2))
        soft_masks, *counts = per_class(maps.cross_attention, maps.self_attention, maps.evidence)
        if not config.refine_iterations:
            return soft_masks, label_map(soft_masks, threshold, uncertain), *counts
        labels = label_map(soft_masks, threshold)
        classes = jnp.arange(1, soft_masks.shape[0] + 1, dtype=jnp.uint8)

        def refined(binary):
            iterations, dilations = config.refine_iterations, config.dilations
            return min_max(refine(image, binary, iterations=iterations, dilations=dilations))

        binary = labels[None] == classes[:, None, None]
        soft_masks = jax.vmap(refined)(binary.astype(jnp.float32))
        return soft_masks, label_map(soft_masks, refined_threshold, uncertain), *counts

    return jax.vmap(one_image)(images, attention_maps)


@typechecked
def correlation(first: Float[Array, "*grid"], second: Float[Array, "*grid"]) -> Float[Array, ""]:
    """Pearson's correlation of two maps, in [0, 1]; 0 if it is negative or a map is constant."""
    first, second = first - jnp.mean(first), second - jnp.mean(second)
    squares = jnp.sum(first**2) * jnp.sum(second**2)
    inverse = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return jnp.clip(jnp.sum(first * second) * inverse, 0, 1)


@typechecked
def explained(evidence: Float[Array, "h w 2"], soft_mask: Float[Array, "H W"]) -> Float[Array, ""]:
    """How much of the change that the name of a class makes is right, on its object, in [0, 1].

    It is the least-squares coefficient of `sampling.evidence.class_evidence`, with the soft mask
    as weight; 0 for a name without effect.
    """
    h, w, _ = evidence.shape
    height, width = soft_mask.shape
    weights = soft_mask.reshape(h, height // h, w, width // w).mean(axis=(1, 3))
    right, size = jnp.sum(weights[..., None] * evidence, axis=(0, 1))
    return jnp.clip(jnp.where(size > 0, right / jnp.where(size > 0, size, 1), 0 * right), 0, 1)


@jax.jit
@typechecked
def class_scores(
    soft_masks: Float[Array, "b c H W"], label_maps: UInt8[Array, "b H W"]
) -> Float[Array, "b c"]:
    """Mean soft mask of each class over its own pixels, in [0, 1]; 0 without any.

    This is the confidence of a mask; low values mark masks that are worth a look.
    """
    classes = jnp.arange(1, soft_masks.shape[1] + 1, dtype=jnp.uint8)
    own = label_maps[:, None] == classes[None, :, None, None]
    total = jnp.sum(jnp.where(own, soft_masks, 0), axis=(2, 3))
    count = jnp.sum(own, axis=(2, 3), dtype=jnp.float32)
    return total / jnp.maximum(count, 1)


@jax.jit
@typechecked
def finite_masks(soft_masks: Float[Array, "b c H W"]) -> Bool[Array, " b"]:
    """Whether all soft masks of each image are finite."""
    return jnp.isfinite(soft_masks).all(axis=(1, 2, 3))


@jax.jit
@typechecked
def seed_maps(cross_attention: Float[Array, "b layers n0 c"]) -> Float[Array, "b c n0"]:
    """The seed map of each class, in [0, 1], see `seed_map`."""
    return jax.vmap(jax.vmap(seed_map, in_axes=-1))(cross_attention)
