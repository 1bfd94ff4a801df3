"""The compiled mask kernels equal the same operations run one by one.

Some releases of XLA are reported to compile large fused reductions wrongly.
"""

import jax
import numpy as np
import pytest

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import class_scores, make_masks, seed_maps
from tests.helpers.random_attention import random_attention

BATCH_SIZE, NUM_CLASSES = 4, 8
CONFIGS = {
    "seediff": MaskConfig(),
    "random walk": MaskConfig(affinity="transition", power=2),
    "exponentiation": MaskConfig(method="exponentiation"),
    "refinement": MaskConfig(refine_iterations=2, dilations=(1, 3)),
}


def random_batch(sides, image_side):
    """Images and attention of a batch."""
    cases = [random_attention(seed, sides, NUM_CLASSES) for seed in range(BATCH_SIZE)]
    cross_attention = np.stack([cross for cross, _ in cases])
    levels = {side: np.stack([levels[side] for _, levels in cases]) for side in sides}
    shape = (BATCH_SIZE, image_side, image_side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return images, AttentionMaps(cross_attention, levels)


def run_kernels(images, maps, config):
    """All results of the kernels, as NumPy arrays."""
    soft_masks, labels, counts, presence = make_masks(
        images, maps, config.thresholds, config=config
    )
    scores = class_scores(soft_masks, labels)
    results = soft_masks, labels, counts, scores, seed_maps(maps.cross_attention), presence
    return jax.tree.map(np.asarray, results)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("sides", "image_side"),
    [
        ((8, 16), 64),
        pytest.param((16, 32, 64), 512, marks=pytest.mark.slow),
        pytest.param((64, 96), 768, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_masks_equal_those_of_single_operations(sides, image_side, config):
    batch = random_batch(sides, image_side)
    compiled = run_kernels(*batch, config)
    with jax.disable_jit():
        single = run_kernels(*batch, config)
    soft_masks, labels, counts, scores, maps, presence = single
    assert len(np.unique(labels)) > 4 and counts.min() > 0
    # Fused operations round differently; the bound is that of the whole method.
    np.testing.assert_allclose(compiled[0], soft_masks, atol=1e-4)
    np.testing.assert_allclose(compiled[4], maps, atol=1e-6)
    assert np.mean(compiled[1] == labels) >= 0.999
    np.testing.assert_array_equal(compiled[2], counts)
    np.testing.assert_allclose(compiled[3], scores, atol=1e-3)
    np.testing.assert_allclose(compiled[5], presence, atol=1e-4)
