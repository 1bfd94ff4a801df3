"""COCO's annotation files for instance and for panoptic segmentation.

Each shard has a file with one line per sample: what the annotation file says about it. When the run
is complete, these lines are joined.
"""

import abc
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np

from seediff_jax.dataset.encoding import EncodedSample, decode_png, encode_mask
from seediff_jax.dataset.formats.base import (
    Format,
    Made,
    Read,
    Records,
    Recover,
    json_text,
    scratch_file,
    stem,
    write_lines,
)
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX

# Limit for image sizes in files, which may be damaged.
_MOST_PIXELS = 2**28


class _Annotated(Format, abc.ABC):
    """Pictures, one file of lines per shard, and one annotation file per run."""

    libraries = ("pycocotools",)
    shard_parts = ("mask.png",)
    annotation_file: ClassVar[str]

    def write_shard(self, number: int, samples: Iterator[EncodedSample], scratch: Path) -> Made:
        """Writes what the annotation file will say about the samples of a shard."""
        lines = (json_text(self._entries(sample)) + "\n" for sample in samples)
        return write_lines(scratch, self._lines(number), lines)

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Writes the annotation file: all images, then all annotations."""
        del records
        path = f"{self.name}/annotations/{self.annotation_file}"
        with (
            scratch_file(scratch, path) as file,
            scratch_file(scratch, path + ".rest") as rest,
            open(file, "w", encoding="ascii", newline="\n") as images,
        ):
            images.write('{"info": {"description": "made by seediff_jax"}, "licenses": [],\n')
            images.write(f'"categories": {json_text(self._categories())},\n"images": [')
            with open(rest, "w", encoding="ascii", newline="\n") as annotations:
                self._write_entries(images, annotations, shards, read)
            images.write('\n],\n"annotations": [')
            with open(rest, encoding="ascii", newline="\n") as annotations:
                shutil.copyfileobj(annotations, images)
            images.write("\n]}\n")
            rest.unlink()
        return {path: file}

    def _write_entries(
        self, images: TextIO, annotations: TextIO, shards: Sequence[int], read: Read
    ) -> None:
        comma = {images: "", annotations: ""}
        for shard in shards:
            for line in read(shard, self._lines(shard)).splitlines():
                image, of_image = json.loads(line)
                for file, entries in ((images, [image]), (annotations, of_image)):
                    for entry in entries:
                        file.write(f"{comma[file]}\n{json_text(entry)}")
                        comma[file] = ","

    def _lines(self, number: int) -> str:
        return f"{self.name}/parts/{number:05d}.jsonl"

    @abc.abstractmethod
    def _categories(self) -> list[dict[str, Any]]: ...

    @abc.abstractmethod
    def _entries(self, sample: EncodedSample) -> tuple[dict[str, Any], list[dict[str, Any]]]: ...


class Coco(_Annotated):
    """`coco/images` and `coco/annotations/instances.json`: one annotation per class and image.

    All regions of a class in an image are one annotation, because SeeDiff does not distinguish
    objects of a class: a compressed RLE with area, box and iscrowd 0. The id of a category is the
    class id of the run. Image ids are the indices of samples; annotation ids are
    256 * index + class id.

    The format has no pixels to be ignored. An image that has some describes them by the compressed
    RLE `image["ignore"]`, a key that readers of COCO skip. Images also have the `prompt`.
    """

    name = "coco"
    parts = ("image.jpg", "mask.png")
    sample_paths = {"coco/images/{}.jpg": "image.jpg"}
    annotation_file = "instances.json"

    def open_shard(self, number: int, read: Callable[[str], bytes], scratch: Path) -> Recover:
        """Reads masks back from the compressed RLE of a shard's lines."""
        from pycocotools import mask as rle_masks

        del scratch
        entries = {}
        for line in read(self._lines(number)).splitlines():
            with suppress(Exception):  # of a damaged line
                image, annotations = json.loads(line)
                regions = [(each["category_id"], each["segmentation"]) for each in annotations]
                if "ignore" in image:
                    regions.append((IGNORE_INDEX, image["ignore"]))
                entries[image["id"]] = (image["height"], image["width"]), regions

        def recover(record: Mapping[str, Any]) -> dict[str, bytes]:
            size, regions = entries[record["index"]]
            if size[0] * size[1] > _MOST_PIXELS:
                raise ValueError(f"an image of {size} pixels")
            mask = np.full(size, BACKGROUND, np.uint8)
            for class_id, region in regions:
                mask[rle_masks.decode(region) == 1] = class_id
            return {"mask.png": encode_mask(mask)}

        return recover

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": k, "name": name, "supercategory": name}
            for k, name in enumerate(self.class_names, 1)
        ]

    def _entries(self, sample: EncodedSample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        mask = decode_png(sample.files["mask.png"])
        image = _image_entry(sample, mask)
        ids = np.unique(mask).tolist()
        if IGNORE_INDEX in ids:
            image["ignore"] = _measured(mask == IGNORE_INDEX)["segmentation"]
        annotations = [
            {
                "id": 256 * sample.index + class_id,
                "image_id": sample.index,
                "category_id": class_id,
                "iscrowd": 0,
                **_measured(mask == class_id),
            }
            for class_id in ids
            if class_id not in (BACKGROUND, IGNORE_INDEX)
        ]
        return image, annotations


class CocoPanoptic(_Annotated):
    """`coco_panoptic/images`, `panoptic` (ids of segments) and `annotations/panoptic.json`.

    Every pixel belongs to a segment, except for ignored ones, which are void (0). An image has one
    segment per class and one of the background. The id of a category is the class id of the run,
    with 0 for background; the id of a segment is that of the category + 1. All are "stuff"
    (isthing 0), because SeeDiff does not distinguish objects of a class.
    """

    name = "coco_panoptic"
    parts = ("image.jpg", "mask.png", "panoptic.png")
    sample_paths = {
        "coco_panoptic/images/{}.jpg": "image.jpg",
        "coco_panoptic/panoptic/{}.png": "panoptic.png",
    }
    annotation_file = "panoptic.json"

    def open_shard(self, number: int, read: Callable[[str], bytes], scratch: Path) -> Recover:
        """Reads masks back from the pictures of segments."""
        del number, scratch

        def recover(record: Mapping[str, Any]) -> dict[str, bytes]:
            content = read(f"coco_panoptic/panoptic/{stem(record['index'])}.png")
            # Class id + 1 in red, and 0 where ignored, which is 255 again.
            return {"mask.png": encode_mask(decode_png(content)[..., 0] - np.uint8(1))}

        return recover

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": k, "name": name, "supercategory": name, "isthing": 0}
            for k, name in enumerate(("background", *self.class_names))
        ]

    def _entries(self, sample: EncodedSample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        mask = decode_png(sample.files["mask.png"])
        segments = []
        for class_id in np.unique(mask[mask != IGNORE_INDEX]).tolist():
            facts = _measured(mask == class_id)
            del facts["segmentation"]
            segments.append({"id": class_id + 1, "category_id": class_id, **facts, "iscrowd": 0})
        annotation = {
            "image_id": sample.index,
            "file_name": f"{stem(sample.index)}.png",
            "segments_info": segments,
        }
        return _image_entry(sample, mask), [annotation]


def _image_entry(sample: EncodedSample, mask: np.ndarray) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "id": sample.index,
        "file_name": f"{stem(sample.index)}.jpg",
        "height": height,
        "width": width,
        "prompt": sample.record["prompt"],
    }


def _measured(region: np.ndarray) -> dict[str, Any]:
    """Measures a bool `[H, W]`: compressed RLE, area in pixels, box (x, y, width, height)."""
    from pycocotools import mask as rle_masks

    rle = rle_masks.encode(np.asfortranarray(region, np.uint8))
    return {
        "segmentation": {"size": list(region.shape), "counts": rle["counts"].decode("ascii")},
        "area": int(rle_masks.area(rle)),
        "bbox": [int(edge) for edge in rle_masks.toBbox(rle)],
    }
