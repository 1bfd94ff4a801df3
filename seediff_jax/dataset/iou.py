"""Mean IoU as PASCAL VOC's toolkit defines it: one confusion matrix over the whole set.

IoU of a class = TP / (truth + predicted - TP). Pixels whose truth is 255 are not counted. The mean
is over all classes and the background. A class that occurs in no truth and no prediction of the set
has no IoU and is left out of the mean, as in mmsegmentation.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from seediff_jax.errors import UserError
from seediff_jax.masks.config import IGNORE_INDEX


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """Counts the pixels of each pair of labels.

    Args:
        truth: integers of any shape: 0 to `num_labels` - 1, or 255.
        predicted: integers of the same shape, 0 to `num_labels` - 1 where the truth is not 255.
        num_labels: n, background included.

    Returns:
        int64 `[n, n]`, one row per label of the truth, one column per predicted label.

    Raises:
        UserError: the shapes differ, or a label is out of range.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise UserError(
            f"a prediction of shape {list(predicted.shape)} has a truth of shape "
            f"{list(truth.shape)}; resize the prediction, not the truth"
        )
    counted = truth != IGNORE_INDEX
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, labels in (("truth", rows), ("prediction", columns)):
        wrong = labels[(labels < 0) | (labels >= num_labels)]
        if wrong.size:
            raise UserError(f"{name} has label {wrong[0]}; labels are 0 to {num_labels - 1}")
    counts = np.bincount(rows * num_labels + columns, minlength=num_labels**2)
    return counts.reshape(num_labels, num_labels)


def sum_matrices(pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_labels: int) -> np.ndarray:
    """The confusion matrix of a set of pairs (truth, predicted), whose sizes may differ."""
    total = np.zeros((num_labels, num_labels), np.int64)
    for truth, predicted in pairs:
        total += confusion_matrix(truth, predicted, num_labels)
    return total


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """IoU of each class, float64 `[n]`; NaN where neither truth nor prediction has the class."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean of the IoU of all classes that have one; NaN if none has."""
    values = class_iou(confusion)
    found = values[~np.isnan(values)]
    return float(found.mean()) if found.size else float("nan")


def name_ious(names: Sequence[str], confusion: np.ndarray) -> dict[str, float | None]:
    """IoU by label, with None in place of NaN, which JSON lacks."""
    values = class_iou(confusion).tolist()
    return {name: None if np.isnan(v) else v for name, v in zip(names, values, strict=True)}
