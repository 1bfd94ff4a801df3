"""From the cross-attention of one class to its seeds (method section 2).

    cross_attention [layers, n0] -> seed_map [n0] -> seeds [n0]

The seed level is the coarsest recorded level, where the class is located best. Kernels are written
for one example and one class; `jax.vmap` adds classes and batch.
"""

import jax
import jax.numpy as jnp

from seediff_jax.array_typing import Array, Bool, Float, typechecked
from seediff_jax.masks.image_ops import min_max, otsu_foreground

_VARIANCE_FLOOR = 1e-4
_FLAT_LAYER_WEIGHT = 0.01


@typechecked
def seed_map(cross_attention: Float[Array, "layers n0"]) -> Float[Array, " n0"]:
    """Merges the cross-attention layers of one class into one map in [0, 1].

    Every layer is min-max normalised. A layer that is almost flat (unbiased variance of at most
    1e-4) has weight 0.01, because stretching it would amplify noise.

    Args:
        cross_attention: float32 probabilities, summed over heads; the variance rule depends on it.
    """
    varies = jnp.var(cross_attention, axis=-1, ddof=1) > _VARIANCE_FLOOR
    weights = jnp.where(varies, 1.0, _FLAT_LAYER_WEIGHT)
    return min_max(jnp.sum(weights[:, None] * jax.vmap(min_max)(cross_attention), axis=0))


@typechecked
def find_seeds(seed_map: Float[Array, " n0"]) -> Bool[Array, " n0"]:
    """Marks the locations that surely show the class: those above Otsu's threshold.

    A constant map, which `seed_map` returns as zeros, has no seed. `jnp.sum` of the result is the
    number of seeds.
    """
    return otsu_foreground(seed_map)
