"""Operations on maps of image locations that every stage of the mask kernels shares.

Written for one map; `jax.vmap` adds classes and batch. Conventions are those of OpenCV, which the
published results were made with.
"""

import math

import jax.numpy as jnp
import numpy as np

from seediff_jax.array_typing import Array, Bool, Float, Int, typechecked
from seediff_jax.errors import UserError

_CUBIC_A = -0.75
_NUM_LEVELS = 256
# Sums of equal terms may differ in their last bits; stretching such a map would show only noise.
_CONSTANT_TOLERANCE = 8 * float(np.finfo(np.float32).eps)


@typechecked
def min_max(field: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """Stretches a map linearly to [0, 1]; a constant map becomes 0 everywhere.

    A map counts as constant when its values differ by no more than float32 rounding (1e-6 of the
    largest magnitude).
    """
    low, high = jnp.min(field), jnp.max(field)
    spread = high - low
    constant = spread <= _CONSTANT_TOLERANCE * jnp.maximum(jnp.abs(low), jnp.abs(high))
    stretched = (field - low) / jnp.where(constant, 1.0, spread)
    # A program that computes the map anew for each use may round it differently each time.
    return jnp.where(constant, 0.0, jnp.clip(stretched, 0, 1))


@typechecked
def otsu_foreground(soft: Float[Array, "*grid"]) -> Bool[Array, "*grid"]:
    """Marks the locations above Otsu's threshold of the squared map (method sections 2 and 4).

    The squares of the values, clipped to [0, 1], are truncated to 256 integer levels. As in
    OpenCV's THRESH_OTSU the first of several best thresholds wins, and foreground lies strictly
    above it: if all values have one level, a map of level 0 has no foreground, any other map is all
    foreground.
    """
    levels = jnp.floor(255 * jnp.clip(soft, 0, 1) ** 2).astype(jnp.int32)
    return levels > _otsu_threshold(_histogram(levels.ravel()))


@typechecked
def resize_cubic(
    field: Float[Array, "h w"], side: int | tuple[int, int]
) -> Float[Array, "new_h new_w"]:
    """Resizes a map as `cv2.resize(..., interpolation=cv2.INTER_CUBIC)` does.

    a = -0.75, half-pixel centres, replicated edges, no smoothing when shrinking. The result
    overshoots the range of the input at sharp edges. `side` is that of a square, or height and
    width; a UserError if it is below 1.
    """
    height, width = height_and_width(side)
    if height < 1 or width < 1:
        raise UserError(f"side={side} is not a size; use 1 or more")
    return _resize_rows(_resize_rows(field, height).T, width).T


def height_and_width(side: int | tuple[int, int]) -> tuple[int, int]:
    """Returns height and width, from a pair or from the side of a square."""
    return (side, side) if isinstance(side, int) else side


def grid_size(num_locations: int, image_side: int | tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of a level with `num_locations` and the aspect ratio of an image."""
    height, width = height_and_width(image_side)
    rows = round(math.sqrt(num_locations * height / width))
    if rows < 1 or num_locations % rows or rows * rows * width != num_locations * height:
        raise UserError(
            f"{num_locations} locations do not form a grid with the aspect ratio of an image of "
            f"{height} x {width} pixels"
        )
    return rows, num_locations // rows


def _histogram(levels: Int[Array, " n"]) -> Int[Array, " levels"]:
    """Counts the levels as a product of the one-hot codes of their two hexadecimal digits.

    A matrix product is fast under vmap on every backend, while a scatter is slow on TPUs; ones
    and zeros add up exactly at any matmul precision.
    """
    digits = jnp.arange(16)[None, :]
    high_digit = (levels[:, None] // 16 == digits).astype(jnp.float32)
    low_digit = (levels[:, None] % 16 == digits).astype(jnp.float32)
    return jnp.einsum("nh,nl->hl", high_digit, low_digit).reshape(_NUM_LEVELS).astype(jnp.int32)


def _otsu_threshold(histogram: Int[Array, " levels"]) -> Int[Array, ""]:
    """Finds the first level whose split has the largest between-class variance."""
    below = jnp.cumsum(histogram)
    below_sum = jnp.cumsum(histogram * jnp.arange(_NUM_LEVELS))
    low, high = below.astype(jnp.float32), (below[-1] - below).astype(jnp.float32)
    splits = (low > 0) & (high > 0)
    low_mean = below_sum.astype(jnp.float32) / jnp.maximum(low, 1)
    high_mean = (below_sum[-1] - below_sum).astype(jnp.float32) / jnp.maximum(high, 1)
    best = jnp.argmax(jnp.where(splits, low * high * (low_mean - high_mean) ** 2, 0))

    # In one map of a thousand float32 cannot tell the two best variances apart. So each split is
    # compared with `best` by the change of the within-class sum of squares, which depends only on
    # the few values between the two thresholds, where float32 is precise enough.
    moved = below - below[best]
    moved_mean = (below_sum - below_sum[best]).astype(jnp.float32) / jnp.where(
        moved == 0, 1, moved
    ).astype(jnp.float32)
    leaves_high = high[best] / jnp.maximum(high, 1) * (moved_mean - high_mean[best]) ** 2
    joins_low = low[best] / jnp.maximum(low, 1) * (moved_mean - low_mean[best]) ** 2
    gain = moved.astype(jnp.float32) * (leaves_high - joins_low)
    return jnp.argmax(jnp.where(splits, gain, -jnp.inf))


def _resize_rows(field: Float[Array, "h w"], num_rows: int) -> Float[Array, "rows w"]:
    """Resizes along the first axis: each new row is the sum of four weighted rows.

    A matrix product would sum in an order that depends on the number of vmapped maps, and so the
    results on how a batch is split over devices; here the order is fixed.
    """
    sources, weights = _cubic_taps(field.shape[0], num_rows)
    taps = zip(jnp.asarray(sources), jnp.asarray(weights), strict=True)
    return sum(weight[:, None] * field[source] for source, weight in taps)


def _cubic_taps(old_side: int, new_side: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists the 4 source indices (int32) and weights (float32) of each new position, `[4, new]`."""
    centres = (np.arange(new_side) + 0.5) * old_side / new_side - 0.5
    positions = np.floor(centres) + np.arange(-1, 3)[:, None]
    sources = np.clip(positions, 0, old_side - 1).astype(np.int32)
    return sources, _cubic(np.abs(centres - positions)).astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Evaluates Keys' cubic convolution kernel at distances in [0, 2]."""
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
