"""Reads all samples of a dataset with the libraries that its formats are made for.

A reader takes a dataset's folder and returns its samples by index. Each has `image` and `mask`, and
`record`, `soft_masks` and `seed_maps` if the format keeps them and the library reads them.
"""

import gc
import json

import datasets
import grain
import numpy as np
import webdataset
from PIL import Image
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO

from seediff_jax.dataset.formats.array_record import parse_record


def pixels(path):
    """Reads a picture as it is stored; for a palette picture, the ids."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def read_files(folder):
    """Reads with Pillow and NumPy."""
    samples = {}
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        sample = {"record": record}
        sample |= {part: pixels(folder / record[part]) for part in ("image", "mask")}
        for name, part in (("soft_masks", "soft"), ("seed_maps", "seeds")):
            with np.load(folder / part / f"{record['index']:06d}.npz") as arrays:
                sample[name] = arrays[name]
        samples[record["index"]] = sample
    return samples


def read_voc(folder):
    """Reads the lists of PASCAL VOC, and pictures with Pillow."""
    root = folder / "voc"
    names = (root / "ImageSets/Segmentation/trainval.txt").read_text().split()
    return {
        int(name): {
            "image": pixels(root / f"JPEGImages/{name}.jpg"),
            "mask": pixels(root / f"SegmentationClass/{name}.png"),
        }
        for name in names
    }


def read_coco(folder):
    """Reads with pycocotools."""
    coco = COCO(folder / "coco/annotations/instances.json")
    samples = {}
    for index, entry in coco.imgs.items():
        mask = np.zeros((entry["height"], entry["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[index])):
            mask[coco.annToMask(annotation) == 1] = annotation["category_id"]
        if "ignore" in entry:
            mask[rle_masks.decode(entry["ignore"]) == 1] = 255
        image = pixels(folder / "coco/images" / entry["file_name"])
        samples[index] = {"image": image, "mask": mask}
    return samples


def read_coco_panoptic(folder):
    """Reads by the arithmetic of COCO's panoptic pictures."""
    root = folder / "coco_panoptic"
    panoptic = json.loads((root / "annotations/panoptic.json").read_text())
    names = {entry["id"]: entry["file_name"] for entry in panoptic["images"]}
    samples = {}
    for annotation in panoptic["annotations"]:
        colours = pixels(root / "panoptic" / annotation["file_name"]).astype(np.uint32)
        ids = colours @ np.array([1, 256, 256**2], np.uint32)
        mask = np.full(ids.shape, 255, np.uint8)
        for segment in annotation["segments_info"]:
            mask[ids == segment["id"]] = segment["category_id"]
        index = annotation["image_id"]
        samples[index] = {"image": pixels(root / "images" / names[index]), "mask": mask}
    return samples


def _shards(folder, name):
    return [str(path) for path in sorted((folder / name).glob("*-*.*"))]


def read_webdataset(folder):
    """Reads with webdataset, which converts all pictures to RGB."""
    shards = _shards(folder, "webdataset")
    found = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    gc.collect()  # webdataset leaves its files open
    return {
        int(sample["__key__"]): {
            "image": np.asarray(sample["jpg"]),
            "mask": np.asarray(sample["mask.png"])[..., 0],
            "record": sample["json"],
            "soft_masks": sample["soft.npz"]["soft_masks"],
            "seed_maps": sample["seeds.npz"]["seed_maps"],
        }
        for sample in found
    }


def read_hugging_face(folder):
    """Reads with Hugging Face datasets, which stream the files of webdataset."""
    shards = _shards(folder, "webdataset")
    stream = datasets.load_dataset("webdataset", data_files=shards, split="train", streaming=True)
    return {
        int(sample["__key__"]): {
            "image": np.asarray(sample["jpg"]),
            "mask": np.asarray(sample["mask.png"]),
            "record": sample["json"],
        }
        for sample in stream
    }


def read_grain(folder):
    """Reads with grain."""
    source = grain.sources.ArrayRecordDataSource(_shards(folder, "array_record"))
    samples = grain.MapDataset.source(source).map(parse_record)
    found = (samples[position] for position in range(len(samples)))
    return {sample["record"]["index"]: sample for sample in found}


def read_imagefolder(folder):
    """Reads with Hugging Face datasets, as the builder of image folders does."""
    place = str(folder / "imagefolder")
    stream = datasets.load_dataset("imagefolder", data_dir=place, split="train", streaming=True)
    return {
        row["index"]: {"image": np.asarray(row["image"]), "mask": np.asarray(row["mask"])}
        for row in stream
    }


def read_cvat(folder):
    """Looks the colours of masks up in the label map, as CVAT does."""
    root = folder / "cvat"
    lines = (root / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    colours = [tuple(map(int, line.split(":")[1].split(","))) for line in lines[1:]]
    ids = dict(zip(colours, [*range(len(colours))], strict=True))
    if lines[-1].startswith("ignored:"):
        ids[colours[-1]] = 255
    samples = {}
    for name in (root / "ImageSets/Segmentation/default.txt").read_text().split():
        with Image.open(root / f"SegmentationClass/{name}.png") as picture:
            rgb = np.asarray(picture.convert("RGB"))
        flat = [ids[tuple(colour)] for colour in rgb.reshape(-1, 3).tolist()]
        samples[int(name)] = {
            "image": pixels(root / f"JPEGImages/{name}.jpg"),
            "mask": np.array(flat, np.uint8).reshape(rgb.shape[:2]),
        }
    return samples


READERS = {
    "voc": read_voc,
    "coco": read_coco,
    "coco_panoptic": read_coco_panoptic,
    "webdataset": read_webdataset,
    "webdataset, Hugging Face": read_hugging_face,
    "array_record": read_grain,
    "imagefolder": read_imagefolder,
    "cvat": read_cvat,
}
