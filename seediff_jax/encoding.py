"""A finished sample as the bytes of its files: the parts that output formats are put together of.

Host only, and made for a pool of threads: Pillow lets go of the interpreter's lock while it
compresses. Equal arrays give equal bytes in every process with the same libraries: no part holds a
date, a name or a path.

    image.png      RGB, without loss
    image.jpg      quality 95, chroma in full resolution (4:4:4): colours end where masks end
    mask.png       class ids with the palette of PASCAL VOC; 0 background, 255 ignore
    mask_grey.png  class ids as grey values, for readers that would apply a palette
    overlay.png    mask over image, for people
    panoptic.png   RGB; class id + 1 in red, 0 ignore: ids of segments in COCO's panoptic format
    soft.npz       `soft_masks`, float32 [c, H, W]
    soft.png       16-bit grey [c * H, W], the classes from top to bottom, round(65535 * value)
    seeds.npz      `seed_maps`, float32 [c, h, w]
"""

import dataclasses
import io
import zlib
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.arrays import Float, UInt8, typechecked
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.pictures import PALETTE, overlay

# Run lengths alone, after PNG's filters: on photographs smaller and faster than the default
# strategy at any level, on label maps as small as its level 6 and four times as fast.
_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}
_JPEG = {"quality": 95, "subsampling": 0}
# A mean of values in [0, 1], as refinement takes them, may end a few units of float32 beyond.
_ROUNDING = 1e-5


@typechecked
@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """What one index of a run has become.

    Attributes:
        index: of the sample in the run.
        image: colours in 0..255.
        mask: class ids of the run; 0 background, 255 ignore.
        record: the manifest's row; JSON values ("prompt", "classes", "class_ids", ...).
        soft_masks: in [0, 1], a map for each of the record's classes; None when nothing needs them.
        seed_maps: at the size of the seed level, likewise; of any range.
    """

    index: int
    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]
    record: dict[str, Any]
    soft_masks: Float[np.ndarray, "c H W"] | None = None
    seed_maps: Float[np.ndarray, "c h w"] | None = None


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """A sample as bytes.

    Attributes:
        index: of the sample in the run.
        record: the manifest's row.
        files: content by the name of the part, as in `PARTS`.
    """

    index: int
    record: dict[str, Any]
    files: dict[str, bytes]


def encode(sample: Sample, parts: Collection[str]) -> EncodedSample:
    """Makes the parts that are asked for, in the order of `PARTS`.

    Raises:
        ValueError: there is no such part; a part needs soft masks or seed maps, and the sample has
            none; or soft masks are not in [0, 1].
    """
    if unknown := sorted(set(parts) - set(_ENCODERS)):
        raise ValueError(f"there is no part {', '.join(unknown)}; the parts are {', '.join(PARTS)}")
    files = {part: encoder(sample) for part, encoder in _ENCODERS.items() if part in parts}
    return EncodedSample(sample.index, sample.record, files)


def decode_mask(content: bytes) -> np.ndarray:
    """Class ids of a "mask.png", uint8 `[H, W]`."""
    with Image.open(io.BytesIO(content)) as mask:
        return np.asarray(mask)


def _image_png(sample: Sample) -> bytes:
    return _picture(Image.fromarray(sample.image), "PNG", **_PNG)


def _image_jpg(sample: Sample) -> bytes:
    return _picture(Image.fromarray(sample.image), "JPEG", **_JPEG)


def _mask_png(sample: Sample) -> bytes:
    indexed = Image.fromarray(sample.mask)
    indexed.putpalette(PALETTE.tobytes())
    return _picture(indexed, "PNG", **_PNG)


def _mask_grey_png(sample: Sample) -> bytes:
    return _picture(Image.fromarray(sample.mask), "PNG", **_PNG)


def _overlay_png(sample: Sample) -> bytes:
    return _picture(Image.fromarray(overlay(sample.image, sample.mask)), "PNG", **_PNG)


def _panoptic_png(sample: Sample) -> bytes:
    colours = np.zeros((*sample.mask.shape, 3), np.uint8)
    colours[..., 0] = np.where(sample.mask == IGNORE_INDEX, 0, sample.mask + np.uint8(1))
    return _picture(Image.fromarray(colours), "PNG", **_PNG)


def _soft_npz(sample: Sample) -> bytes:
    return _npz(soft_masks=_checked_soft_masks(sample))


def _soft_png(sample: Sample) -> bytes:
    stacked = np.concatenate(_checked_soft_masks(sample).clip(0, 1))
    return _picture(Image.fromarray(np.rint(65535 * stacked).astype(np.uint16)), "PNG", **_PNG)


def _seeds_npz(sample: Sample) -> bytes:
    return _npz(seed_maps=_present("seed maps", sample, sample.seed_maps))


def _checked_soft_masks(sample: Sample) -> np.ndarray:
    """The soft masks, once it is sure that they lie in [0, 1] but for rounding."""
    soft_masks = _present("soft masks", sample, sample.soft_masks)
    low, high = float(soft_masks.min()), float(soft_masks.max())
    if not (-_ROUNDING <= low and high <= 1 + _ROUNDING):  # refuses NaN, too
        raise ValueError(
            f"the soft masks of sample {sample.index} lie in [{low}, {high}]; [0, 1] is needed"
        )
    return soft_masks


def _present(name: str, sample: Sample, maps: np.ndarray | None) -> np.ndarray:
    if maps is None or not maps.size:
        raise ValueError(f"sample {sample.index} has no {name}; do not ask for the part")
    return maps.astype(np.float32, copy=False)


def _picture(picture: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


_ENCODERS = {
    "image.png": _image_png,
    "image.jpg": _image_jpg,
    "mask.png": _mask_png,
    "mask_grey.png": _mask_grey_png,
    "overlay.png": _overlay_png,
    "panoptic.png": _panoptic_png,
    "soft.npz": _soft_npz,
    "soft.png": _soft_png,
    "seeds.npz": _seeds_npz,
}

PARTS = tuple(_ENCODERS)
"""Names of all parts."""
