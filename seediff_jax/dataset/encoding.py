"""Encodes samples as parts: the pieces of content from which output formats make their files.

Host only; suits a pool of threads, because Pillow and zlib release the interpreter's lock while
they compress. Equal arrays give equal bytes in every process with the same libraries: no part
contains a date, a name or a path.

    image.png      RGB, without loss
    image.jpg      quality 95, chroma in full resolution (4:4:4): colours end where masks end
    mask.png       class ids with the palette of PASCAL VOC; 0 background, 255 ignore
    mask_grey.png  class ids as grey values, for readers that would apply a palette
    overlay.png    mask over image, for people
    panoptic.png   RGB; class id + 1 in red, 0 ignore: ids of segments in COCO's panoptic format
    soft.npz       `soft_masks`, float32 [c, H, W]
    soft.png       16-bit grey [c * H, W], the classes from top to bottom, round(65535 * value)
    seeds.npz      `seed_maps`, float32 [c, h, w]
    attention.npz  float16: `cross_attention` [layers, n0, c], `self_attention_16` [n, n] of side 16
    methods.png    class ids by the other methods of the run, [m * H, W], one below the other
    strips.png     RGB, for people: how the mask of each class came about, one row per class
"""

import dataclasses
import io
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.array_typing import Float, UInt8, typechecked
from seediff_jax.dataset.formats.names import ATTENTION_PART, OTHER_METHODS_PART, STRIPS_PART
from seediff_jax.dataset.pictures import PALETTE, overlay
from seediff_jax.dataset.png import encode_png
from seediff_jax.dataset.strips import ClassStages, class_strips
from seediff_jax.masks.config import IGNORE_INDEX

# Run lengths only: label maps as small as by the default strategy at level 6, in a quarter of the
# time.
_MASK_PNG = {"compress_level": 1, "compress_type": zlib.Z_RLE}
_JPEG = {"quality": 95, "subsampling": 0}
# Refinement takes means of values in [0, 1], which may end a few units of float32 beyond it.
_ROUNDING = 1e-5


@typechecked
@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A sample before it is encoded.

    Attributes:
        index: of the sample in the run.
        image: colours in 0..255.
        mask: class ids of the run; 0 background, 255 ignore.
        record: its line of the manifest; JSON values ("prompt", "classes", "class_ids", ...).
        soft_masks: in [0, 1], one map per class of the record; None if nothing needs them.
        seed_maps: the same at the size of the seed level, in any range.
        other_masks: class ids by the other methods of the run; None if nothing needs them.
        attention: arrays by the names of `AttentionMaps.to_arrays`, or None.
        stages: of the mask of each class; None if nothing needs them.
    """

    index: int
    image: UInt8[np.ndarray, "H W 3"]
    mask: UInt8[np.ndarray, "H W"]
    record: dict[str, Any]
    soft_masks: Float[np.ndarray, "c H W"] | None = None
    seed_maps: Float[np.ndarray, "c h w"] | None = None
    attention: Mapping[str, np.ndarray] | None = None
    other_masks: UInt8[np.ndarray, "m H W"] | None = None
    stages: Sequence[ClassStages] | None = None


@dataclasses.dataclass(frozen=True)
class EncodedSample:
    """A sample as bytes.

    Attributes:
        index: of the sample in the run.
        record: its line of the manifest.
        files: content by the name of the part, as in `PARTS`.
    """

    index: int
    record: dict[str, Any]
    files: dict[str, bytes]


def encode(sample: Sample, parts: Collection[str]) -> EncodedSample:
    """Makes the requested parts of a sample, in the order of `PARTS`.

    Raises:
        ValueError: a part is unknown; a part needs soft masks, seed maps, attention or stages, and
            the sample has none; or soft masks are not in [0, 1].
    """
    if unknown := sorted(set(parts) - set(_ENCODERS)):
        raise ValueError(f"unknown parts {', '.join(unknown)}; known are {', '.join(PARTS)}")
    files = {part: encoder(sample) for part, encoder in _ENCODERS.items() if part in parts}
    return EncodedSample(sample.index, sample.record, files)


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes class ids, uint8 `[H, W]`, as the part "mask.png"."""
    indexed = Image.fromarray(mask)
    indexed.putpalette(PALETTE.tobytes())
    return _save(indexed, "PNG", **_MASK_PNG)


def decode_png(content: bytes) -> np.ndarray:
    """Decodes the pixels of a PNG as stored; for a mask, these are class ids, uint8 `[H, W]`."""
    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        return np.asarray(picture)


def convert_parts(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Makes parts that hold the same image or mask as other parts, encoded in another way.

    Returns:
        "image.jpg" if there is an "image.png"; both kinds of masks if there is one of them.
    """
    converted = {}
    if "image.png" in parts:
        converted["image.jpg"] = _jpg(decode_png(parts["image.png"]))
    if content := parts.get("mask.png") or parts.get("mask_grey.png"):
        mask = decode_png(content)
        converted |= {"mask.png": encode_mask(mask), "mask_grey.png": _mask_png(mask)}
    return converted


def _panoptic_png(sample: Sample) -> bytes:
    colours = np.zeros((*sample.mask.shape, 3), np.uint8)
    colours[..., 0] = np.where(sample.mask == IGNORE_INDEX, 0, sample.mask + np.uint8(1))
    return _mask_png(colours)


def _soft_png(sample: Sample) -> bytes:
    stacked = np.concatenate(_soft_masks(sample).clip(0, 1))
    return encode_png(np.rint(65535 * stacked).astype(np.uint16))


def _soft_masks(sample: Sample) -> np.ndarray:
    """Returns the soft masks; they lie in [0, 1], up to rounding."""
    soft_masks = _require("soft masks", sample, sample.soft_masks)
    low, high = float(soft_masks.min()), float(soft_masks.max())
    if not (-_ROUNDING <= low and high <= 1 + _ROUNDING):  # refuses NaN, too
        raise ValueError(
            f"the soft masks of sample {sample.index} lie in [{low}, {high}]; [0, 1] is needed"
        )
    return soft_masks.astype(np.float32, copy=False)


def _require(name: str, sample: Sample, maps: Any) -> Any:
    if maps is None or not len(maps):
        raise ValueError(f"sample {sample.index} has no {name}; do not ask for the part")
    return maps


def _methods_png(sample: Sample) -> bytes:
    masks = _require("masks of other methods", sample, sample.other_masks)
    return encode_mask(np.concatenate(masks))


def _strips_png(sample: Sample) -> bytes:
    stages = _require("stages", sample, sample.stages)
    return encode_png(np.asarray(class_strips(sample.image, sample.mask, stages)))


def _attention_npz(sample: Sample) -> bytes:
    attention = _require("attention", sample, sample.attention)
    return _npz(**{name: maps.astype(np.float16) for name, maps in attention.items()})


def _seeds_npz(sample: Sample) -> bytes:
    seed_maps = _require("seed maps", sample, sample.seed_maps)
    return _npz(seed_maps=seed_maps.astype(np.float32, copy=False))


def _mask_png(pixels: np.ndarray) -> bytes:
    return _save(Image.fromarray(pixels), "PNG", **_MASK_PNG)


def _jpg(pixels: np.ndarray) -> bytes:
    return _save(Image.fromarray(pixels), "JPEG", **_JPEG)


def _save(picture: Image.Image, kind: str, **options: int) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    # Not compressed: that takes 40 times as long, and saves an eighth of a smooth map.
    np.savez(content, **arrays)
    return content.getvalue()


_ENCODERS: dict[str, Callable[[Sample], bytes]] = {
    "image.png": lambda sample: encode_png(sample.image),
    "image.jpg": lambda sample: _jpg(sample.image),
    "mask.png": lambda sample: encode_mask(sample.mask),
    "mask_grey.png": lambda sample: _mask_png(sample.mask),
    "overlay.png": lambda sample: encode_png(overlay(sample.image, sample.mask)),
    "panoptic.png": _panoptic_png,
    "soft.npz": lambda sample: _npz(soft_masks=_soft_masks(sample)),
    "soft.png": _soft_png,
    "seeds.npz": _seeds_npz,
    ATTENTION_PART: _attention_npz,
    OTHER_METHODS_PART: _methods_png,
    STRIPS_PART: _strips_png,
}

PARTS = tuple(_ENCODERS)
"""Names of all parts."""
