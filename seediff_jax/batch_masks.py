"""Label maps and all that is known of them, for a batch: the second compiled program.

    images, AttentionMaps -> [ make_masks ] -> soft masks, label maps -> [ class_scores ]

The kernels of one image and one class, vmapped twice; needs no model.
"""

import functools

import jax
import jax.numpy as jnp

from seediff_jax.arrays import Array, Float, Int, UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.image_ops import min_max
from seediff_jax.label_maps import label_map
from seediff_jax.masks import MaskConfig, class_soft_mask
from seediff_jax.refinement import refine
from seediff_jax.seeds import find_seeds, seed_map


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


@jax.jit
@typechecked
def class_scores(
    soft_masks: Float[Array, "b c H W"], label_maps: UInt8[Array, "b H W"]
) -> Float[Array, "b c"]:
    """Mean soft mask of each class over its own pixels, in [0, 1]; 0 where it has none.

    How sure a mask is of itself; low values tell of masks that are worth a look.
    """
    classes = jnp.arange(1, soft_masks.shape[1] + 1, dtype=jnp.uint8)
    own = label_maps[:, None] == classes[None, :, None, None]
    total = jnp.sum(jnp.where(own, soft_masks, 0), axis=(2, 3))
    count = jnp.sum(own, axis=(2, 3), dtype=jnp.float32)
    return total / jnp.maximum(count, 1)


@jax.jit
@typechecked
def seed_maps(cross_attention: Float[Array, "b layers n0 c"]) -> Float[Array, "b c n0"]:
    """The seed map of each class, in [0, 1], see `seed_map`."""
    return jax.vmap(jax.vmap(seed_map, in_axes=-1))(cross_attention)
