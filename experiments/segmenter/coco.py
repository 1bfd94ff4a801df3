"""Samples of COCO: this project's `coco`, or COCO as it is downloaded."""

import collections
import json
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from experiments.segmenter.data import read_bytes
from seediff_jax.dataset.formats.voc import split_indices
from seediff_jax.dataset.image_files import read_pixels, turn_labels
from seediff_jax.errors import UserError, listed
from seediff_jax.masks.config import IGNORE_INDEX

_STUFF_OTHER = 183
"""Stuff's category of all pixels that are things."""


class CocoSamples:
    """Images and label maps of COCO's annotation files.

    Labels are 1, 2, ... in the order of the categories' ids, so that the 80 classes of COCO are 1
    to 80. Where objects of several classes overlap, the label is 255, as in torchvision's training
    script. Crowds count. With stuff, its 91 categories are labels 81 to 171, and what has no
    annotation is 255.

    Args:
        folder: with `annotations`.
        split: "train" or "val", for annotations/instances_train2017.json and the like; in a
            folder of this project, whose one file has no split, also "trainval".
        stuff: whether to read annotations/stuff_*.json, too.

    Raises:
        UserError: a file is missing or not COCO's, or a category is not in its list.
    """

    def __init__(self, folder: pathlib.Path, split: str = "train", *, stuff: bool = False):
        self.folder, self.split, self._stuff = folder, split, stuff
        path, images = self._find_files()
        content = _read_json(path)
        categories = sorted(content["categories"], key=lambda each: each["id"])
        self._images = {each["id"]: each for each in content["images"]}
        self._ids = [*self._images]
        if images == "images":
            self._ids = split_indices(np.array(self._ids, np.int64))[split].tolist()
        self._places = folder / images
        self._annotations = collections.defaultdict(list)
        self._add(path, content["annotations"], categories)
        if stuff:
            path = path.with_name(path.name.replace("instances", "stuff"))
            content = _read_json(path)
            wanted = [each for each in content["categories"] if each["id"] != _STUFF_OTHER]
            categories += sorted(wanted, key=lambda each: each["id"])
            kept = [a for a in content["annotations"] if a["category_id"] != _STUFF_OTHER]
            self._add(path, kept, categories)
        self.label_names = ("background", *(each["name"] for each in categories))
        self._labels = {each["id"]: k for k, each in enumerate(categories, 1)}
        if not self._ids:
            raise UserError(f"{path} lists no image of {split}")
        missing = [name for k in self._ids if not (name := self._place(k)).is_file()]
        if missing:
            raise UserError(f"{path} lists images that are missing: {listed(map(str, missing))}")

    def _find_files(self) -> tuple[pathlib.Path, str]:
        """The annotation file, and the name of the folder of its images."""
        own = self.folder / "annotations" / "instances.json"
        if own.is_file() and self.split in ("train", "val", "trainval"):
            return own, "images"
        found = sorted(self.folder.glob(f"annotations/instances_{self.split}*.json"))
        if len(found) != 1:
            names = sorted(path.name for path in self.folder.glob("annotations/*.json"))
            raise UserError(
                f"{self.folder}/annotations has {len(found)} files instances_{self.split}*.json, "
                f"expected one; it has {listed(names) if names else 'no .json'}"
            )
        return found[0], found[0].stem.removeprefix("instances_")

    def _add(self, path: pathlib.Path, annotations: list[dict], categories: list[dict]) -> None:
        known = {each["id"] for each in categories}
        for each in annotations:
            if each["category_id"] not in known:
                raise UserError(
                    f"{path}: annotation {each['id']} has category {each['category_id']}, which "
                    "is not in the file's list of categories"
                )
            self._annotations[each["image_id"]].append(each)

    def _place(self, image_id: int) -> pathlib.Path:
        return self._places / self._images[image_id]["file_name"]

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        """The path of a sample's image."""
        return str(self.folder / self._images[self._ids[index]]["file_name"])

    def class_names(self, index: int) -> list[str]:
        """The classes that the annotations of an image have, in the order of their labels."""
        found = {self._labels[a["category_id"]] for a in self._annotations[self._ids[index]]}
        return [self.label_names[label] for label in sorted(found)]

    def image_id(self, index: int) -> int:
        """COCO's id of an image."""
        return self._ids[index]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 `[h, w, 3]`, and its label map, uint8 `[h, w]`.

        Raises:
            UserError: a file is not an image, or has another size than the annotations say.
        """
        image_id = self._ids[index]
        entry, path = self._images[image_id], self._place(image_id)
        labels = np.zeros((entry["height"], entry["width"]), np.uint8)
        for each in self._annotations[image_id]:
            label = self._labels[each["category_id"]]
            region = decode_region(each["segmentation"], *labels.shape)
            free = (labels == 0) | (labels == label)
            labels[region] = np.where(free, label, IGNORE_INDEX)[region]
        if self._stuff:
            labels[labels == 0] = IGNORE_INDEX
        if "ignore" in entry:
            labels[decode_region(entry["ignore"], *labels.shape)] = IGNORE_INDEX
        pixels, turn = read_pixels(read_bytes(path), str(path))
        what = f"the annotation of {path}"
        return pixels, turn_labels(Image.fromarray(labels), what, pixels.shape[:2], turn)


def decode_region(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decodes polygons, or an RLE with or without compression, to bool `[height, width]`."""
    from pycocotools import mask as rle_masks

    if isinstance(segmentation, list):
        rle = rle_masks.merge(rle_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = rle_masks.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return rle_masks.decode(rle) == 1


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = [content[name] for name in ("images", "annotations", "categories")]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not an annotation file of COCO: {error!r}") from None
    if not all(isinstance(each, list) for each in lists):
        raise UserError(f"{path} is not an annotation file of COCO")
    return content
