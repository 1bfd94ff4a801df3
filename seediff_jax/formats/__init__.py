"""Output formats by the name that users give: each a file of its own, beside `base`."""

from seediff_jax.formats.array_record import ArrayRecord
from seediff_jax.formats.base import Format
from seediff_jax.formats.coco import Coco, CocoPanoptic
from seediff_jax.formats.files import Files
from seediff_jax.formats.voc import Voc
from seediff_jax.formats.webdataset import WebDataset

FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (Files, Voc, Coco, CocoPanoptic, WebDataset, ArrayRecord)
}
"""Name -> class, in the order in which help texts list them."""

__all__ = ["FORMATS", "Format"]
