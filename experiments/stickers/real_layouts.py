"""Writes rendered scenes in the layouts of VOC 2012 and COCO 2017, to try everything in small.

    python -m experiments.stickers.real_layouts --output=runs/real_layouts

The scenes show drawings of a style that the embedded model has not seen. `VOCdevkit/VOC2012` has
boundaries of 255 around objects; `coco` has those scenes of which COCO has all classes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_masks

from experiments.stickers.scenes import SIDE, UnseenRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.program import make_main
from experiments.training.scenes import Scene
from seediff_jax.dataset.encoding import encode_mask
from seediff_jax.driver.stdio import run_program
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.prompts.class_lists import COCO_CLASSES, VOC_CLASSES
from seediff_jax.prompts.names import name_key
from seediff_jax.settings import check_settings, setting

_FIRST_SCENE = 96_000_000
_VOC_NAMES = {"tv": "tvmonitor"}
# COCO's ids of its 80 classes have gaps.
_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(k for k in range(1, 91) if k not in _GAPS)
"""Category ids of COCO_CLASSES, in their order."""


def class_table(names: Sequence[str], other_names: dict[str, str]) -> np.ndarray:
    """Label of a scene -> label in a list of classes, uint8 `[256]`; 0 where it has none."""
    keys = {name_key(name): k for k, name in enumerate(names, 1)}
    table = np.zeros(256, np.uint8)
    for label, name in enumerate(CLASSES, 1):
        table[label] = keys.get(name_key(other_names.get(name, name)), 0)
    return table


def mark_boundaries(labels: np.ndarray) -> np.ndarray:
    """The label map with 255 where a pixel and one of its eight neighbours differ."""
    padded = np.pad(labels, 1, mode="edge")
    height, width = labels.shape
    differs = np.zeros(labels.shape, bool)
    for top in range(3):
        for left in range(3):
            differs |= padded[top : top + height, left : left + width] != labels
    return np.where(differs, np.uint8(IGNORE_INDEX), labels)


def write_voc(folder: pathlib.Path, scenes: Sequence[Scene]) -> None:
    """Writes the files of VOC's segmentation task; every second scene is in val."""
    table = class_table(VOC_CLASSES, _VOC_NAMES)
    lists: dict[str, list[str]] = {"train": [], "val": [], "trainval": []}
    for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(scenes):
        name = f"2007_{index:06d}"
        Image.fromarray(scene.image).save(folder / "JPEGImages" / f"{name}.jpg", quality=95)
        objects = np.zeros_like(scene.label_map)
        for k, of_object in enumerate(scene.classes, 1):
            objects[scene.label_map == CLASSES.index(of_object) + 1] = k
        for part, labels in (("Class", table[scene.label_map]), ("Object", objects)):
            path = folder / f"Segmentation{part}" / f"{name}.png"
            path.write_bytes(encode_mask(mark_boundaries(labels)))
        for split in (("train", "val")[index % 2], "trainval"):
            lists[split].append(name)
    for split, names in lists.items():
        path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names), encoding="ascii")


def write_coco(folder: pathlib.Path, scenes: Sequence[Scene]) -> None:
    """Writes images, instances and captions; every second scene is in val2017."""
    table = class_table(COCO_CLASSES, {})
    usable = [s for s in scenes if all(table[CLASSES.index(n) + 1] for n in s.classes)]
    for k, split in enumerate(("train2017", "val2017")):
        _write_coco_split(folder, split, usable[k::2], table)


def _write_coco_split(
    folder: pathlib.Path, split: str, scenes: Sequence[Scene], table: np.ndarray
) -> None:
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True, exist_ok=True)
    for image_id, scene in enumerate(scenes, 1):
        file, (height, width) = f"{image_id:012d}.jpg", scene.label_map.shape
        Image.fromarray(scene.image).save(folder / split / file, quality=95)
        images.append({"id": image_id, "file_name": file, "height": height, "width": width})
        captions.append({"id": image_id, "image_id": image_id, "caption": f"{scene.caption}."})
        for name in scene.classes:
            label = CLASSES.index(name) + 1
            rle = rle_masks.encode(np.asfortranarray(scene.label_map == label, np.uint8))
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": COCO_IDS[table[label] - 1],
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                    "area": int(rle_masks.area(rle)),
                    "bbox": rle_masks.toBbox(rle).tolist(),
                }
            )
    categories = [
        {"id": k, "name": name, "supercategory": name}
        for k, name in zip(COCO_IDS, COCO_CLASSES, strict=True)
    ]
    contents = {
        "instances": {"images": images, "annotations": objects, "categories": categories},
        "captions": {"images": images, "annotations": captions},
    }
    for kind, content in contents.items():
        path = folder / "annotations" / f"{kind}_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="ascii")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to write, and where."""

    output: str = setting("runs/real_layouts", "Folder of VOCdevkit and coco.", path=True)
    sprites: str = setting("runs/stickers/sprites.npz", "The drawings.", path=True)
    num_scenes: int = setting(40, "Number of scenes.", least=4)
    side: int = setting(SIDE, "Height and width, pixels.", least=16)

    def __post_init__(self):
        check_settings(self)


def _work(settings: Settings) -> None:
    render = UnseenRenderer(ensure_sprites(pathlib.Path(settings.sprites)))
    scenes = [render(_FIRST_SCENE + k, side=settings.side) for k in range(settings.num_scenes)]
    folder = pathlib.Path(settings.output)
    write_voc(folder / "VOCdevkit" / "VOC2012", scenes)
    write_coco(folder / "coco", scenes)
    print(f"{len(scenes)} scenes in {folder}")


main = make_main("experiments.stickers.real_layouts", __doc__, Settings, _work)


if __name__ == "__main__":
    run_program(main)
