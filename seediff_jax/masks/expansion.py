"""Expands seeds to a soft mask at the finest level (method sections 3 and 4).

    seeds [n0], self_attention {side: [n, n]} -> soft mask [side, side]

The seeds spread over the seed level by the affinity of its locations. Each finer level upsamples
the map and removes what resembles the background. If the image is not square, the key of a level is
its height; its width follows from the number of its locations.

Kernels are written for one example and one class; `jax.vmap` adds classes and batch, without
copying the attention of an image per class.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from seediff_jax.array_typing import Array, Bool, Float, typechecked
from seediff_jax.errors import UserError
from seediff_jax.masks.config import AFFINITIES
from seediff_jax.masks.image_ops import min_max, otsu_foreground, resize_cubic

_Operator = Callable[[Array], Array]


def _cosine(self_attention: Float[Array, "n n"]) -> _Operator:
    """Returns x -> Â (Â^T x), with Â the rows of A divided by their L2 norm."""
    inverse_norm = _reciprocal(jnp.sqrt(jnp.sum(self_attention**2, axis=1)))

    def apply(field):
        pooled = jnp.einsum("n,nm->m", field * inverse_norm, self_attention, precision="highest")
        return inverse_norm * jnp.einsum("m,nm->n", pooled, self_attention, precision="highest")

    return apply


def _transition(self_attention: Float[Array, "n n"]) -> _Operator:
    """Returns x -> A_row x, with A_row the rows of A divided by their sum."""
    inverse_sum = _reciprocal(jnp.sum(self_attention, axis=1))

    def apply(field):
        return inverse_sum * jnp.einsum("m,nm->n", field, self_attention, precision="highest")

    return apply


_SINKHORN_ROUNDS = 15


def _sinkhorn(self_attention: Float[Array, "n n"]) -> _Operator:
    """Returns x -> B x, B = D_r A D_c with rows and columns of sum 1 (Sinkhorn and Knopp, 1967)."""

    def rows_of(columns):
        sums = jnp.einsum("m,nm->n", columns, self_attention, precision="highest")
        return _reciprocal(sums)

    def scale(_, columns):
        rows = rows_of(columns)
        return _reciprocal(jnp.einsum("n,nm->m", rows, self_attention, precision="highest"))

    columns = _reciprocal(jnp.sum(self_attention, axis=0))
    columns = jax.lax.fori_loop(1, _SINKHORN_ROUNDS, scale, columns)
    rows = rows_of(columns)

    def apply(field):
        spread = jnp.einsum("m,nm->n", columns * field, self_attention, precision="highest")
        return rows * spread

    return apply


# The field is the first operand of every product above: in that order XLA makes the same dot for
# any number of classes and images, so results do not depend on how a batch is split over devices.
_OPERATORS = dict(zip(AFFINITIES, (_cosine, _transition, _sinkhorn), strict=True))


@typechecked
def spread(
    field: Float[Array, " n"],
    self_attention: Float[Array, "n n"],
    *,
    affinity: str = "cosine",
    power: int = 1,
) -> Float[Array, " n"]:
    """Applies an affinity `power` times to a field of one level (method section 3).

    With A the self-attention, one application is

        "cosine"      x <- Â (Â^T x), Â = A with rows of L2 norm 1: to 1_S, the summed cosine
                      similarity of every location to the seeds S
        "transition"  x <- A_row x, A_row = A with rows of sum 1: `power` steps of a random walk
        "sinkhorn"    x <- A_both x, A_both = A with rows and columns of sum 1, after 15 rounds of
                      Sinkhorn's scaling: locations that all others attend to weigh no more

    as matrix-vector products: neither a power of A nor a normalised copy of it is formed. After
    each application the field is scaled to a largest magnitude of 1 (zeros stay zero), so that no
    power overflows.
    """
    if affinity not in AFFINITIES:
        raise UserError(f"affinity={affinity!r} is not supported; use one of {AFFINITIES}")
    if not isinstance(power, int) or power < 1:
        raise UserError(f"power={power!r} is not supported; use an integer of at least 1")
    apply = _OPERATORS[affinity](self_attention)

    def application(_, field):
        field = apply(field)
        return field * _reciprocal(jnp.max(jnp.abs(field)))

    return jax.lax.fori_loop(0, power, application, field)


@typechecked
def refine_level(
    coarse: Float[Array, "h w"],
    self_attention: Float[Array, "n n"],
    side: int | tuple[int, int],
    *,
    affinity: str = "cosine",
    power: int = 1,
    background: bool = True,
) -> Float[Array, "finer_h finer_w"]:
    """Refines a soft mask at the next finer level, given as side or height and width (section 4).

    The background of a simply prompted image is uniform, so similarity to it is more reliable
    than similarity to the object: what resembles the background is removed.
    """
    upsampled = resize_cubic(coarse, side)
    soft = min_max(upsampled)
    if not background:
        return soft
    outside = (~otsu_foreground(upsampled)).astype(soft.dtype).ravel()
    similarity = min_max(spread(outside, self_attention, affinity=affinity, power=power))
    return min_max(soft * (1 - similarity.reshape(soft.shape)))


@typechecked
def expand(
    seeds: Bool[Array, " n0"],
    self_attention: Mapping[int, Float[Array, "_ _"]],
    *,
    affinity: str = "cosine",
    power: int = 1,
    background: bool = True,
) -> Float[Array, "h w"]:
    """Grows seeds to a soft mask in [0, 1] at the finest level (method sections 3 and 4).

    Without seeds the mask is 0 everywhere.

    Args:
        seeds: locations of the class at the coarsest level of `self_attention`.
        self_attention: float32 `[n, n]` of each level, keyed by side (height); the scale of a
            matrix or of its rows does not matter.
        affinity: one of AFFINITIES, used at every level.
        power: how many times the affinity is applied at every level; 1 is the published setting.
        background: whether finer levels remove what resembles the background, or only upsample.

    Raises:
        UserError: unknown affinity, power below 1, or sizes that do not match the sides.
    """
    (height, width), *finer = require_levels(seeds.size, self_attention)
    options = {"affinity": affinity, "power": power}
    field = spread(seeds.astype(jnp.float32), self_attention[height], **options)
    soft = min_max(field).reshape(height, width)
    for size in finer:
        level = self_attention[size[0]]
        soft = refine_level(soft, level, size, background=background, **options)
    return soft


def require_levels(
    num_seed_locations: int, self_attention: Mapping[int, Array]
) -> list[tuple[int, int]]:
    """Returns height and width of the levels, coarse to fine.

    Raises:
        UserError: a level does not have the number of locations that its key requires, levels have
            different proportions (halves may be rounded up), or the seeds are not of the coarsest
            level.
    """
    if not self_attention:
        raise UserError("self_attention has no level; give {side: [side**2, side**2]}")
    sizes = []
    for height, level in sorted(self_attention.items()):
        width = level.shape[0] // height
        if level.shape != (height * width, height * width) or not width:
            raise UserError(
                f"self_attention[{height}] is {list(level.shape)}; a level of side {height} needs "
                f"{[height**2, height**2]}, a level of {height} x w locations [n, n] with "
                f"n = {height} * w"
            )
        sizes.append((height, width))
    first_height, first_width = sizes[0]
    for height, width in sizes:
        # Halves are rounded up, so the last location of the coarsest level may be a partial one.
        if (
            height * (first_width - 1) >= width * first_height
            or width * (first_height - 1) >= height * first_width
        ):
            raise UserError(
                f"self_attention has levels of {first_height} x {first_width} and {height} x "
                f"{width} locations; levels of one image need the same proportions"
            )
    if num_seed_locations != first_height * first_width:
        raise UserError(
            f"the coarsest level of self_attention has {first_height} x {first_width} locations "
            f"and needs {first_height * first_width} seeds, got {num_seed_locations}"
        )
    return sizes


def _reciprocal(values: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """Returns 1 / values, and 0 where a value is 0."""
    return jnp.where(values > 0, 1 / jnp.where(values > 0, values, 1.0), 0.0)
