"""From what the programs make of a sample to what is written of it; host only."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seediff_jax.arrays import UInt8, typechecked
from seediff_jax.encoding import EncodedSample
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.prompts import PromptRecord
from seediff_jax.sampling import STAGES


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample that could not be made.

    Attributes:
        index: of the sample.
        reason: for people.
    """

    index: int
    reason: str


@typechecked
def class_mask(
    label_map: UInt8[np.ndarray, "H W"], class_ids: Sequence[int]
) -> UInt8[np.ndarray, "H W"]:
    """Turns labels k + 1, for the k-th class of an image, into the class's id in the run."""
    to_id = np.zeros(IGNORE_INDEX + 1, np.uint8)
    to_id[IGNORE_INDEX] = IGNORE_INDEX
    to_id[1 : len(class_ids) + 1] = class_ids
    return to_id.take(label_map)


def failed_stage(is_finite: Mapping[str, bool]) -> str | None:
    """Says which stage of sampling gave values that are not finite; None where all are."""
    bad = next((stage for stage in STAGES if not is_finite[stage]), None)
    return None if bad is None else f"{bad} are not finite"


def make_record(
    index: int,
    prompt: PromptRecord,
    class_names: Sequence[str],
    mask: np.ndarray,
    *,
    token_positions: Sequence[Sequence[int]],
    seed_counts: Sequence[int],
    scores: Sequence[float],
) -> dict[str, Any]:
    """The manifest entry of a sample, as JSON values, without the settings of the run.

    Args:
        index: of the sample.
        prompt: with its classes.
        class_names: of the run.
        mask: class ids.
        token_positions: of each class in the prompt, or in the text that names it.
        seed_counts: of each class.
        scores: of each class, see `class_scores`.
    """
    ids = [class_names.index(name) + 1 for name in prompt.classes]
    areas = [_share(mask == class_id) for class_id in ids]
    return {
        "index": index,
        "prompt": prompt.prompt,
        "classes": list(prompt.classes),
        "class_ids": ids,
        "token_positions": [list(positions) for positions in token_positions],
        "area_fractions": areas,
        "scores": [round(float(score), 4) for score in scores],
        "seed_counts": [int(count) for count in seed_counts],
        "empty": [name for name, area in zip(prompt.classes, areas, strict=True) if not area],
        "ignored_fraction": _share(mask == IGNORE_INDEX),
    }


def _share(where: np.ndarray) -> float:
    return np.count_nonzero(where) / where.size


def failed_sample(failure: Failure, prompt: PromptRecord) -> EncodedSample:
    """What is written in place of a sample that failed."""
    record = {
        "index": failure.index,
        "failed": failure.reason,
        "prompt": prompt.prompt,
        "classes": list(prompt.classes),
    }
    return EncodedSample(failure.index, record, {})
