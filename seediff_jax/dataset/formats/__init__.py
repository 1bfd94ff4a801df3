"""Output formats by the name that users give: one file per format, and `base` for what they share.

The formats are imported when FORMATS or Format is first used.
"""

from typing import TYPE_CHECKING, Any

from seediff_jax.dataset.formats.names import FORMAT_NAMES

if TYPE_CHECKING:
    from seediff_jax.dataset.formats.base import Format

    FORMATS: dict[str, type[Format]]

__all__ = ["FORMATS", "FORMAT_NAMES", "Format"]


def __getattr__(name: str) -> Any:
    """Imports the formats at their first use (PEP 562)."""
    if name not in ("FORMATS", "Format"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from seediff_jax.dataset.formats.array_record import ArrayRecord
    from seediff_jax.dataset.formats.base import Format
    from seediff_jax.dataset.formats.coco import Coco, CocoPanoptic
    from seediff_jax.dataset.formats.cvat import Cvat
    from seediff_jax.dataset.formats.files import Files
    from seediff_jax.dataset.formats.imagefolder import ImageFolder
    from seediff_jax.dataset.formats.voc import Voc
    from seediff_jax.dataset.formats.webdataset import WebDataset

    kinds = (Files, Voc, Coco, CocoPanoptic, WebDataset, ArrayRecord, ImageFolder, Cvat)
    formats = dict(zip(FORMAT_NAMES, kinds, strict=True))
    globals().update(FORMATS=formats, Format=Format)
    return globals()[name]
