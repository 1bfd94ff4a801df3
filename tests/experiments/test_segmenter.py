"""The segmenter's metric and augmentation."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.segmenter.augment import augment, distort, resize_pair
from experiments.segmenter.config import LAPTOP
from seediff_jax.dataset.iou import class_iou, confusion_matrix, mean_iou, sum_matrices
from seediff_jax.errors import UserError

_SMALL = dataclasses.replace(LAPTOP, num_labels=3, crop=32, batch_size=8, steps=4)


# The metric


def test_mean_iou_is_that_of_an_explicit_loop_over_the_whole_set():
    rng = np.random.default_rng(0)
    shapes = [(5, 7), (1, 1), (12, 3)]
    truths = [rng.choice([0, 1, 2, 3, 255], shape).astype(np.uint8) for shape in shapes]
    found = [rng.integers(0, 4, shape).astype(np.uint8) for shape in shapes]
    ious = []
    for k in range(4):
        hits = union = 0
        for truth, labels in zip(truths, found, strict=True):
            for t, p in zip(truth.flat, labels.flat, strict=True):
                if t != 255:
                    hits += t == k and p == k
                    union += t == k or p == k
        ious.append(hits / union)
    confusion = sum_matrices(zip(truths, found, strict=True), 4)
    np.testing.assert_allclose(class_iou(confusion), ious, rtol=1e-12)
    assert mean_iou(confusion) == pytest.approx(np.mean(ious), rel=1e-12)


@pytest.mark.parametrize(
    ("truth", "predicted", "expected"),
    [
        ([0, 1, 1, 255], [0, 1, 0, 2], [0.5, 0.5, None]),  # 2 stands on an ignored pixel only
        ([0, 0], [1, 1], [0, 0, None]),  # predicted, and nowhere in the truth
        ([1, 1], [0, 0], [0, 0, None]),  # in the truth, and never predicted
        ([255, 255], [0, 1], [None, None, None]),
        ([2, 2], [2, 2], [None, None, 1]),
    ],
)
def test_classes_without_truth_or_prediction(truth, predicted, expected):
    confusion = confusion_matrix(np.array(truth), np.array(predicted), 3)
    values = [None if np.isnan(x) else x for x in class_iou(confusion)]
    assert values == expected
    named = [x for x in expected if x is not None]
    np.testing.assert_equal(mean_iou(confusion), np.mean(named) if named else np.nan)


def test_one_matrix_over_the_set_is_not_the_mean_over_images():
    truths = [np.zeros(100, int), np.ones(1, int)]
    found = [np.zeros(100, int), np.zeros(1, int)]
    confusion = sum_matrices(zip(truths, found, strict=True), 2)
    assert mean_iou(confusion) == pytest.approx((100 / 101 + 0) / 2)


def test_a_prediction_of_another_size_or_with_an_unknown_label_is_refused():
    with pytest.raises(UserError, match=r"\[2, 3\] has a truth of shape \[3, 2\]"):
        confusion_matrix(np.zeros((3, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(UserError, match="truth has label 7; labels are 0 to 1"):
        confusion_matrix(np.full(2, 7), np.zeros(2, int), 2)


# Augmentation


def _halves(height=40, width=60):
    """Red with label 1 on the left, green with label 2 on the right."""
    labels = np.full((height, width), 2, np.uint8)
    labels[:, : width // 3] = 1
    image = np.zeros((height, width, 3), np.uint8)
    image[labels == 1, 0] = image[labels == 2, 1] = 255
    return image, labels


@pytest.mark.parametrize("scales", [(0.4, 0.9), (1.0, 1.0), (1.1, 2.0)])
def test_colours_and_labels_stay_together(scales):
    config = dataclasses.replace(_SMALL, scales=scales, photometric=False)
    seen = set()
    for seed in range(30):
        pixels, labels = augment(*_halves(), config, np.random.default_rng(seed))
        assert pixels.shape == (32, 32, 3) and labels.shape == (32, 32)
        beyond = labels == 255
        np.testing.assert_array_equal(pixels[beyond], 0)
        # Where bilinear colours are pure, the nearest label is that of the colour.
        for label, channel in ((1, 0), (2, 1)):
            pure = (pixels[..., channel] == 1) & (pixels[..., 1 - channel] == -1)
            assert set(np.unique(labels[pure])) <= {label}
        seen |= {(bool(beyond.any()), int(labels[0, 0]))}
    assert {first for _, first in seen} >= {1, 2}  # flipped, or cut
    assert {pads for pads, _ in seen} == ({True} if scales[1] < 1 else {False})


def test_the_same_generator_gives_the_same_example():
    pairs = [augment(*_halves(), _SMALL, np.random.default_rng(5)) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, *pairs)


def test_scaling_keeps_the_ratio():
    image, labels = resize_pair(*_halves(40, 60), 20)
    assert image.shape == (20, 30, 3) and labels.shape == (20, 30)


def test_crops_with_too_much_of_one_class_are_drawn_again():
    labels = np.zeros((64, 64), np.uint8)
    labels[:28, :28] = 1
    image = np.zeros((64, 64, 3), np.uint8)
    shares = {}
    for max_share in (1.0, 0.9):
        config = dataclasses.replace(_SMALL, scales=(2.0, 2.0), max_share=max_share)
        draws = [augment(image, labels, config, np.random.default_rng(s))[1] for s in range(60)]
        shares[max_share] = np.mean([(drawn == 0).mean() > 0.9 for drawn in draws])
    assert shares[1.0] > 0.3
    assert shares[0.9] < 0.05  # ten draws, of which four in ten do


def test_photometric_distortion_changes_colours_within_their_range():
    image = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    drawn = [distort(image, np.random.default_rng(seed)) for seed in range(200)]
    assert min(map(np.min, drawn)) >= 0 and max(map(np.max, drawn)) <= 255
    assert len({tuple(pixels[0, 0]) for pixels in drawn}) > 150
    assert any((pixels == image).all() for pixels in drawn)  # each change in half of the cases
