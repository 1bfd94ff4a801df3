"""Names of the output formats, which a command line can list without loading them."""

from collections.abc import Mapping, Sequence
from typing import Any

from seediff_jax.errors import UserError

FORMAT_NAMES = (
    *("files", "voc", "coco", "coco_panoptic", "webdataset", "array_record"),
    *("imagefolder", "cvat"),
)
"""In the order in which help texts list them."""

SOFT = ("npz", "png")
"""How soft masks can be stored."""

KEEPING = ("files", "webdataset", "array_record")
"""Formats that have place for soft masks, seed maps and attention."""

ATTENTION_PART = "attention.npz"
"""Part with the attention of a sample, in float16."""

OTHER_METHODS_PART = "methods.png"
"""Part with the masks of a run's further methods, from top to bottom."""


def kept_parts(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts that KEEPING have besides images and masks, by settings as settings.json has them."""
    soft = settings.get("soft_masks")
    wanted = {
        f"soft.{soft}": soft,
        "seeds.npz": settings.get("seed_maps"),
        ATTENTION_PART: settings.get("keep_attention"),
        OTHER_METHODS_PART: not isinstance(settings.get("mask_method", ""), str),
    }
    return tuple(part for part, is_kept in wanted.items() if is_kept)


def require_place(formats: Sequence[str], kept: Sequence[str]) -> None:
    """Raises a UserError unless one of the formats has a place for the parts, if there are any."""
    if kept and not {*formats} & {*KEEPING}:
        raise UserError(
            f"formats={','.join(formats)} has no place for {', '.join(kept)}; add one of "
            f"{', '.join(KEEPING)}"
        )
