"""From the soft masks of all classes of an image to its label map (method sections 5 and 7)."""

import jax.numpy as jnp

from seediff_jax.arrays import Array, Float, UInt8, typechecked

BACKGROUND = 0
"""Label of pixels that belong to no class; class k of the image has label k + 1."""

IGNORE_INDEX = 255
"""Label of pixels that are left out of training and evaluation."""


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
        soft_masks: values in [0, 1], one map a class.
        threshold: label k + 1 strictly above it, BACKGROUND otherwise.
        uncertain: IGNORE_INDEX where the largest mask lies in [uncertain, threshold); None, the
            default, ignores nothing.

    Raises:
        ValueError: no class, or more classes than labels below IGNORE_INDEX.
    """
    num_classes = soft_masks.shape[0]
    if not 0 < num_classes < IGNORE_INDEX:
        raise ValueError(
            f"soft_masks has {num_classes} classes; a label map holds 1 to {IGNORE_INDEX - 1}"
        )
    largest = jnp.max(soft_masks, axis=0)
    winner = jnp.argmax(soft_masks, axis=0) + 1
    labels = jnp.where(largest > threshold, winner, BACKGROUND)
    if uncertain is not None:
        ignored = (largest >= uncertain) & (largest < threshold)
        labels = jnp.where(ignored, IGNORE_INDEX, labels)
    return labels.astype(jnp.uint8)
