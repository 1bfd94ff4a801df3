"""The annotations of COCO, of instances and of panoptic segmentation.

A shard leaves a file of lines, one a sample, with what the annotation file says about it; the
closing step strings them together.
"""

import abc
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

import numpy as np

from seediff_jax.encoding import EncodedSample, decode_mask
from seediff_jax.formats.base import Format, Read, Records, json_text, scratch_file, stem
from seediff_jax.label_maps import BACKGROUND, IGNORE_INDEX


class _Annotated(Format, abc.ABC):
    """Pictures, a file of lines a shard, and one file of annotations a run."""

    libraries = ("pycocotools",)
    shard_parts = ("mask.png",)
    annotation_file: ClassVar[str]

    def write_shard(
        self, number: int, samples: Iterator[EncodedSample], scratch: Path
    ) -> dict[str, Path]:
        """Writes what the annotation file will say about the samples of a shard."""
        path = self._lines(number)
        file = scratch_file(scratch, path)
        with open(file, "w", encoding="ascii", newline="\n") as lines:
            for sample in samples:
                lines.write(json_text(self._entries(sample)) + "\n")
        return {path: file}

    def closing_files(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Writes the annotation file: all images, then all annotations."""
        del records
        path = f"{self.name}/annotations/{self.annotation_file}"
        file, rest = scratch_file(scratch, path), scratch_file(scratch, path + ".rest")
        with open(file, "w", encoding="ascii", newline="\n") as images:
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
    """`coco/images` and `coco/annotations/instances.json`, an annotation a class an image.

    All regions of a class in an image are one annotation, as SeeDiff does not tell objects of a
    class apart: a compressed RLE with area, box and iscrowd 0. The id of a category is the class id
    of the run; image ids are the indices of samples, annotation ids 256 * index + class id.

    The format knows no pixels to be ignored. Those of a sample are the compressed RLE
    `image["ignore"]`, a key that readers of COCO pass over, and that is there when there are any.
    Entries of images also have the `prompt`.
    """

    name = "coco"
    parts = ("image.jpg", "mask.png")
    annotation_file = "instances.json"

    def sample_files(self, index: int) -> dict[str, str]:
        """Relative path -> part."""
        return {f"coco/images/{stem(index)}.jpg": "image.jpg"}

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": k, "name": name, "supercategory": name}
            for k, name in enumerate(self.class_names, 1)
        ]

    def _entries(self, sample: EncodedSample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        mask = decode_mask(sample.files["mask.png"])
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

    Every pixel but the ignored ones, which are void (0), is of a segment: one a class an image,
    and one of the background. The id of a category is the class id of the run, with 0 for
    background; the id of a segment is the category's + 1. All are "stuff" (isthing 0), as SeeDiff
    does not tell objects of a class apart.
    """

    name = "coco_panoptic"
    parts = ("image.jpg", "mask.png", "panoptic.png")
    annotation_file = "panoptic.json"

    def sample_files(self, index: int) -> dict[str, str]:
        """Relative path -> part."""
        return {
            f"coco_panoptic/images/{stem(index)}.jpg": "image.jpg",
            f"coco_panoptic/panoptic/{stem(index)}.png": "panoptic.png",
        }

    def _categories(self) -> list[dict[str, Any]]:
        return [
            {"id": k, "name": name, "supercategory": name, "isthing": 0}
            for k, name in enumerate(("background", *self.class_names))
        ]

    def _entries(self, sample: EncodedSample) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        mask = decode_mask(sample.files["mask.png"])
        segments = []
        for class_id in np.unique(mask[mask != IGNORE_INDEX]).tolist():
            facts = _measured(mask == class_id)
            segments.append(
                {
                    "id": class_id + 1,
                    "category_id": class_id,
                    "area": facts["area"],
                    "bbox": facts["bbox"],
                    "iscrowd": 0,
                }
            )
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
    """Compressed RLE, area in pixels and box (x, y, width, height) of a bool `[H, W]`."""
    from pycocotools import mask as rle_masks

    rle = rle_masks.encode(np.asfortranarray(region, np.uint8))
    return {
        "segmentation": {"size": list(region.shape), "counts": rle["counts"].decode("ascii")},
        "area": int(rle_masks.area(rle)),
        "bbox": [int(edge) for edge in rle_masks.toBbox(rle)],
    }
