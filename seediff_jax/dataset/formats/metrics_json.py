"""metrics.json: the mean IoU of a run whose images have true masks, from counts in the records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.dataset.formats.base import Format, Read, Records, scratch_file
from seediff_jax.dataset.iou import mean_iou, name_ious

METRICS = "metrics.json"
COUNTS = "label_counts"
"""Entry of a record: `[truth, predicted, pixels]` for each pair of labels of its image."""


class Metrics(Format):
    """`metrics.json`: the mean IoU and the IoU of each label, from one confusion matrix."""

    name = "metrics"

    def write_run(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Sums the counts of all records."""
        del read, shards
        labels = ("background", *self.class_names)
        total, images = np.zeros((len(labels), len(labels)), np.int64), 0
        for record in records():
            for truth, predicted, pixels in record[COUNTS]:
                total[truth, predicted] += pixels
            images += 1
        with scratch_file(scratch, METRICS) as file:
            file.write_text(metrics_text(labels, total, images), encoding="utf-8")
        return {METRICS: file}


def label_counts(confusion: np.ndarray) -> list[list[int]]:
    """Turns a confusion matrix into the entry of a record, which has no zeros."""
    pairs = np.argwhere(confusion)
    return [[int(t), int(p), int(confusion[t, p])] for t, p in pairs]


def metrics_text(labels: Sequence[str], confusion: np.ndarray, images: int) -> str:
    """JSON: the mean IoU in 0..1, None if no label has one, and the IoU of each label."""
    ious = name_ious(labels, confusion)
    found: dict[str, Any] = {"mean_iou": None, "images": images, "iou": ious}
    if any(value is not None for value in ious.values()):
        found["mean_iou"] = mean_iou(confusion)
    return json.dumps(found, indent=1) + "\n"
