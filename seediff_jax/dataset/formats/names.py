"""Names of the output formats. A command line lists them without loading the formats."""

from collections.abc import Mapping, Sequence
from typing import Any

from seediff_jax.errors import UserError

FORMAT_NAMES = (
    *("files", "voc", "coco", "coco_panoptic", "webdataset", "array_record"),
    *("imagefolder", "cvat"),
)
"""In the order of the help texts."""

SOFT = ("npz", "png")
"""How soft masks can be stored."""

KEEPING = ("files", "webdataset", "array_record")
"""Formats that can store soft masks, seed maps, attention and strips."""

ATTENTION_PART = "attention.npz"
"""Part with the attention of a sample, in float16."""

OTHER_METHODS_PART = "methods.png"
"""Part with the masks by the other methods of a run, from top to bottom."""

STRIPS_PART = "strips.png"
"""Part with the stages of the mask of each class in a row, from top to bottom."""


def kept_parts(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts that are stored in addition to image and mask, by values of settings.json."""
    soft = settings.get("soft_masks")
    wanted = {
        f"soft.{soft}": soft,
        "seeds.npz": settings.get("seed_maps"),
        ATTENTION_PART: settings.get("keep_attention"),
        STRIPS_PART: settings.get("strips"),
        OTHER_METHODS_PART: not isinstance(settings.get("mask_method", ""), str),
    }
    return tuple(part for part, is_kept in wanted.items() if is_kept)


def require_place(formats: Sequence[str], kept: Sequence[str]) -> None:
    """Raises a UserError unless one of the formats can store the parts, if there are any."""
    if kept and not {*formats} & {*KEEPING}:
        raise UserError(
            f"formats={','.join(formats)} has no place for {', '.join(kept)}; add one of "
            f"{', '.join(KEEPING)}"
        )
