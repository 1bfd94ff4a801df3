"""The networks that judge generated images, and the scores of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import judges
from experiments.training.mask_scores import METHODS, PUBLISHED, Scores, iou
from experiments.training.scenes import Scene
from seediff_jax import AttentionMaps

_CLASSES = ("cat", "dog")


def _render(seed, *, side=128, num_objects=None):
    """A bright square (cat) or a dark stripe (dog) on grey."""
    rng, k = np.random.default_rng(seed), seed % 2
    label_map = np.zeros((side, side), np.uint8)
    top, left = rng.integers(0, side // 2, 2)
    if k:
        label_map[:, left : left + side // 4] = 2
    else:
        label_map[top : top + side // 2, left : left + side // 2] = 1
    image = np.where(label_map[..., None] > 0, 20 if k else 240, 128).astype(np.uint8)
    image = np.broadcast_to(image, (side, side, 3))
    return Scene(image, label_map, f"a {_CLASSES[k]}", (_CLASSES[k],))


@pytest.fixture(autouse=True)
def standard_promotion():
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_classifier_tells_two_simple_classes_apart():
    classify = judges.train_classifier(_render, _CLASSES, steps=40, count=64, side=64)
    assert judges.classifier_accuracy(classify, _render, _CLASSES, 32, side=64) > 0.9


@pytest.mark.slow
def test_segmenter_gives_pixels_to_the_background_or_the_image_s_classes_alone():
    segment = judges.train_segmenter(_render, _CLASSES, steps=60, count=64, side=64)
    scenes = judges.held_out_scenes(_render, 8, side=64)
    images = np.stack([scene.image for scene in scenes])
    found = segment(images, [scene.classes for scene in scenes])
    values = [
        iou(label == k, scene.label_map == k)
        for label, scene in zip(found, scenes, strict=True)
        for k in [_CLASSES.index(scene.classes[0]) + 1]
    ]
    assert np.mean(values) > 0.7
    assert set(np.unique(segment(images, [("dog",)] * 8))) <= {0, 2}


def test_scores_are_those_of_masks_made_of_the_attention():
    # One layer attends to the left half; the self-attention joins each half with itself.
    side, fine = 4, 8
    left = (np.arange(side) < side // 2).astype(np.float32)
    cross = jnp.asarray(np.tile(left, side)[None, None, :, None])

    def halves(n):
        same = np.tile(np.arange(n) < n // 2, n)
        return jnp.asarray((same[:, None] == same[None]).astype(np.float32) / (n * n / 2))[None]

    maps = AttentionMaps(cross, {side: halves(side), fine: halves(fine)})
    truth = np.zeros((32, 32), np.uint8)
    truth[:, :16] = 2
    scores = Scores(_CLASSES)
    scores.add(np.zeros((1, 32, 32, 3), np.uint8), maps, [truth], [("dog",)])
    table = scores.table()
    assert set(table) == set(METHODS)
    assert table[PUBLISHED]["mean"] == table[PUBLISHED]["dog"] > 0.8
    assert "cat" not in table[PUBLISHED]


def test_iou_of_an_object_that_is_nowhere_is_zero():
    nothing = np.zeros((4, 4), bool)
    assert iou(nothing, nothing) == 0
    assert iou(~nothing, ~nothing) == 1
