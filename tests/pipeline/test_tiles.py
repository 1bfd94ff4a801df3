"""Crops of large images and the masks that are joined from them."""

import cv2
import numpy as np
import pytest

from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import class_scores, label_map
from seediff_jax.pipeline.tiles import cut, join, label_pixels, make_boxes, mean_scores
from seediff_jax.sampling.segment_config import SegmentConfig


def boxes_of(height, width, side=None, overlap=0.25):
    return make_boxes((height, width), SegmentConfig(tile_side=side, tile_overlap=overlap))


def test_an_image_without_an_edge_above_the_tile_is_one_box():
    assert boxes_of(500, 300) == boxes_of(500, 300, 500) == [(0, 0, 500, 300)]


def test_a_longer_edge_alone_is_cut():
    assert boxes_of(30, 100, 40, 0.25) == [
        (0, 0, 30, 100), (0, 0, 30, 40), (0, 30, 30, 70), (0, 60, 30, 100)
    ]  # fmt: skip


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_cover_the_image_and_overlap_enough(overlap):
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width, side = (int(x) for x in random.integers((8, 8, 8), (200, 200, 64)))
        boxes = boxes_of(height, width, side, overlap)[1:]
        if max(height, width) <= side:
            assert not boxes
            continue
        covered = np.zeros((height, width), int)
        for box in boxes:
            covered[box.slices] += 1
            assert box.bottom - box.top == min(side, height)
            assert box.right - box.left == min(side, width)
        assert covered.min() == 1 or overlap > 0 and covered.min() >= 1
        for first, last in (("top", "bottom"), ("left", "right")):
            ends = sorted({(getattr(b, first), getattr(b, last)) for b in boxes})
            for (_, end), (start, _) in zip(ends, ends[1:], strict=False):
                assert end - start >= np.floor(overlap * side) - 1  # places are whole pixels


def test_a_crop_of_the_networks_size_is_not_touched_and_others_are_resized():
    image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8)
    box = boxes_of(40, 60, 30)[2]
    np.testing.assert_array_equal(cut(image, box, (30, 30)), image[box.slices])
    flat = np.full((40, 60, 3), 77, np.uint8)
    resized = cut(flat, boxes_of(40, 60)[0], (16, 24))
    assert resized.shape == (16, 24, 3) and (resized == 77).all()


def test_a_mask_is_resized_as_opencv_does():
    soft = np.random.default_rng(2).random((2, 8, 12), np.float32)
    found = join(soft[None], boxes_of(33, 50))
    expected = [cv2.resize(one, (50, 33), interpolation=cv2.INTER_LINEAR) for one in soft]
    # OpenCV weighs neighbours in steps of 1/2048.
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_tiles_are_joined_as_a_loop_over_pixels_does():
    boxes = boxes_of(12, 20, 12, 0.25)
    assert [box[1::2] for box in boxes[1:]] == [(0, 12), (8, 20)]
    soft = np.random.default_rng(3).random((3, 1, 12, 12), np.float32)
    whole = join(soft[:1], boxes[:1])[0]
    total, weights = np.zeros((12, 20)), np.zeros((12, 20))
    for tile, left in ((soft[1, 0], 0), (soft[2, 0], 8)):
        low, high = whole[:, left : left + 12].min(), whole[:, left : left + 12].max()
        for y in range(12):
            for x in range(12):
                weight = min(y + 0.5, 11.5 - y) * min(x + 0.5, 11.5 - x)
                total[y, left + x] += weight * (low + (high - low) * tile[y, x])
                weights[y, left + x] += weight
    np.testing.assert_allclose(join(soft, boxes)[0], total / weights, atol=1e-6)


def test_a_tile_without_the_object_adds_none():
    boxes = boxes_of(8, 16, 8, 0.0)
    whole = np.zeros((1, 8, 8), np.float32)
    whole[:, :, :2] = 1  # at the left
    empty = np.random.default_rng(4).random((1, 8, 8), np.float32)  # stretched to [0, 1], too
    found = join(np.stack([whole, whole, empty]), boxes)
    assert found[:, :, 10:].max() == 0 and found[:, :, 0].min() == 1


@pytest.mark.parametrize(
    "config",
    [
        MaskConfig(),
        MaskConfig(uncertain=0.2),
        MaskConfig(method="exponentiation"),
        MaskConfig(refine_iterations=3, refined_threshold=0.7, uncertain=0.4),
    ],
)
def test_labels_and_scores_are_those_of_the_kernels(config):
    soft = np.random.default_rng(5).random((3, 9, 7), np.float32) ** 2
    threshold, uncertain, refined, _ = config.thresholds
    last = refined if config.refine_iterations else threshold
    labels = label_pixels(soft, config)
    np.testing.assert_array_equal(labels, label_map(soft, last, uncertain))
    expected = class_scores(soft[None], labels[None])[0]
    np.testing.assert_allclose(mean_scores(soft, labels), expected, atol=1e-6)
