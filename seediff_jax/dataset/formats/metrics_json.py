"""metrics.json: the mean IoU of a run whose images have true masks, from counts in the records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.dataset.formats.base import Format, Made, Read, Records, write_lines
from seediff_jax.dataset.iou import mean_iou, name_ious

METRICS = "metrics.json"
COUNTS = "label_counts"
"""Entry of a record: `[truth, predicted, pixels]` for each pair of labels of its image."""


class Metrics(Format):
    """`metrics.json`: the mean IoU and the IoU of each label, from one confusion matrix.

    `other_methods` has the same for the methods of a run after the first, by name.

    Args:
        class_names: of the run.
        other_methods: names of the methods after the first.
    """

    name = "metrics"

    def __init__(self, class_names: Sequence[str], other_methods: Sequence[str] = ()):
        super().__init__(class_names)
        self._others = tuple(other_methods)

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Sums the counts of all records."""
        del read, shards
        labels = ("background", *self.class_names)
        totals = np.zeros((1 + len(self._others), len(labels), len(labels)), np.int64)
        images = 0
        for record in records():
            others = (record["other_methods"][name] for name in self._others)
            for total, facts in zip(totals, (record, *others), strict=True):
                for truth, predicted, pixels in facts[COUNTS]:
                    total[truth, predicted] += pixels
            images += 1
        first, *others = (_ious(labels, total) for total in totals)
        found = {"mean_iou": first["mean_iou"], "images": images, "iou": first["iou"]}
        if others:
            found["other_methods"] = dict(zip(self._others, others, strict=True))
        return write_lines(scratch, METRICS, [json.dumps(found, indent=1) + "\n"])


def label_counts(confusion: np.ndarray) -> list[list[int]]:
    """Turns a confusion matrix into the entry of a record, which has no zeros."""
    pairs = np.argwhere(confusion)
    return [[int(t), int(p), int(confusion[t, p])] for t, p in pairs]


def _ious(labels: Sequence[str], confusion: np.ndarray) -> dict[str, Any]:
    """The mean IoU in 0..1, None if no label has one, and the IoU of each label."""
    ious = name_ious(labels, confusion)
    has_any = any(value is not None for value in ious.values())
    return {"mean_iou": mean_iou(confusion) if has_any else None, "iou": ious}
