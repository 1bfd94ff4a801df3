"""Stages of masks and other masks of the same images, against the plain NumPy reference."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.strips import method_strip
from seediff_jax.errors import UserError
from seediff_jax.masks.config import MaskConfig
from seediff_jax.pipeline.generate import Pairs, Texts
from tests import reference
from tests.helpers.random_attention import random_attention

SIDES, SIZE = (4, 8), 16
CLASSES = ("cat", "sofa")
CROSS, SELF = random_attention(5, SIDES)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return Pairs(
        images=rng.integers(0, 255, (1, SIZE, SIZE, 3), np.uint8),
        soft_masks=np.zeros((1, 2, SIZE, SIZE), np.float32),
        label_maps=np.zeros((1, SIZE, SIZE), np.uint8),
        attention_maps=AttentionMaps(CROSS[None], {side: SELF[side][None] for side in SIDES}),
        seed_counts=np.zeros((1, 2), np.int32),
        presence=np.zeros((1, 2), np.float32),
        texts=Texts(("a cat on a sofa",), (CLASSES,)),
    )


def test_stages_are_seed_map_seeds_and_the_mask_of_each_level(pairs):
    found = pairs.stages(0)
    assert [(each.name, each.label) for each in found] == [("cat", 1), ("sofa", 2)]
    for k, each in enumerate(found):
        seed_map = reference.seed_map(CROSS[..., k])
        seeds = reference.find_seeds(seed_map.astype(np.float32)).ravel()
        np.testing.assert_allclose(each.seed_map, seed_map, atol=1e-6)
        np.testing.assert_array_equal(each.seeds, seeds)
        coarse, fine = each.levels
        # float32 sums over 16 and 64 locations, stretched to [0, 1] level by level
        np.testing.assert_allclose(coarse, reference.expand(seeds, {4: SELF[4]}), atol=1e-5)
        np.testing.assert_allclose(fine, reference.expand(seeds, SELF), atol=1e-4)


def test_a_method_without_levels_has_one_soft_mask(pairs):
    (level,) = pairs.stages(0, MaskConfig(method="cross_attention"))[1].levels
    expected = reference.cross_attention_mask(CROSS[..., 1].astype(np.float64), SIZE)
    np.testing.assert_allclose(level, expected, atol=1e-5)  # float32, as above


def test_stages_follow_the_affinity(pairs):
    masks = MaskConfig(affinity="sinkhorn", power=2, background=False)
    options = {"affinity": "sinkhorn", "power": 2, "background": False}
    for k, each in enumerate(pairs.stages(0, masks)):
        coarse, fine = each.levels
        first = reference.expand(each.seeds, {4: SELF[4]}, **options)
        np.testing.assert_allclose(coarse, first, atol=1e-5)  # float32, as above
        np.testing.assert_allclose(fine, reference.expand(each.seeds, SELF, **options), atol=1e-4)
        assert (each.seeds == pairs.stages(0)[k].seeds).all()


def left_half(cross_attention, self_attention, image_side):
    """A method of one's own."""
    height, width = image_side
    return jnp.zeros((height, width)).at[:, : width // 2].set(1)


@pytest.mark.parametrize("method", [left_half, f"{__name__}:left_half"])
def test_a_method_of_ones_own_has_the_soft_mask_that_it_returns(pairs, method):
    for each in pairs.stages(0, MaskConfig(method=method)):
        (level,) = each.levels
        np.testing.assert_array_equal(level, np.tile(np.repeat([1, 0], SIZE // 2), (SIZE, 1)))


def test_stages_of_several_methods_are_refused(pairs):
    with pytest.raises(UserError, match="seediff,cross_attention: only one is possible here"):
        pairs.stages(0, MaskConfig(method=("seediff", "cross_attention")))


def test_a_strip_is_that_of_the_named_class(pairs):
    stages = pairs.stages(0)[1]
    expected = method_strip(pairs[0].image, pairs[0].label_map, stages)
    np.testing.assert_array_equal(np.asarray(pairs.strip(0, "Sofa")), np.asarray(expected))
    other = method_strip(pairs[0].image, pairs[0].label_map, dataclasses.replace(stages, name="x"))
    assert (np.asarray(other) != np.asarray(expected)).any()
    with pytest.raises(UserError, match="'dog' is not a class of this image"):
        pairs.strip(0, "dog")
    with pytest.raises(IndexError):
        pairs.strip(1, "cat")


@pytest.mark.parametrize(
    "masks",
    [MaskConfig(), MaskConfig(threshold=0.3), MaskConfig(method="exponentiation", threshold=0.7)],
)
def test_other_masks_follow_from_the_same_attention(pairs, masks):
    got = pairs.remask(masks)
    assert got.images is pairs.images and got.attention_maps is pairs.attention_maps
    make = {"seediff": reference.soft_mask, "exponentiation": reference.exponentiation_mask}
    soft = np.stack(
        [make[masks.method](CROSS[..., k].astype(np.float64), SELF, SIZE) for k in range(2)]
    )
    np.testing.assert_allclose(got.soft_masks[0], soft, atol=1e-4)  # float32, as above
    labels = reference.label_map(np.asarray(got.soft_masks[0]), masks.resolved.threshold)
    np.testing.assert_array_equal(got.label_maps[0], labels)
    counts = [each.seeds.sum() for each in pairs.stages(0)]
    np.testing.assert_array_equal(got.seed_counts[0], counts)
    seed_masks = [
        reference.cross_attention_mask(CROSS[..., k].astype(np.float64), SIZE) for k in range(2)
    ]
    expected = [
        max(0, np.corrcoef(one.ravel(), other.ravel())[0, 1])
        for one, other in zip(soft, seed_masks, strict=True)
    ]
    np.testing.assert_allclose(got.presence[0], expected, atol=1e-4)  # float32, as above
    # The class of less presence has no pixels where a value between the two is asked for.
    least = int(np.argmin(expected))
    between = dataclasses.replace(masks, min_presence=float(np.mean(got.presence)))
    without = pairs.remask(between)
    assert not np.asarray(without.soft_masks[0, least]).any()
    np.testing.assert_array_equal(without.presence, got.presence)
    np.testing.assert_array_equal(without.soft_masks[0, 1 - least], got.soft_masks[0, 1 - least])
