"""Bytes that a sample takes in the finished folder, before it is made.

a folder with a sealed shard -> stored_sample_bytes, what its samples take
any other                    -> typical_sample_bytes, what photographs would take
"""

import json

from seediff_jax.dataset import FAILED, make_formats
from seediff_jax.formats import Format
from seediff_jax.run_config import RunConfig
from seediff_jax.seals import read_seal, read_sealed
from seediff_jax.storage import Folder

PIXEL_BYTES = {
    "image.png": 1.8,
    "image.jpg": 0.7,
    "mask.png": 0.01,
    "mask_grey.png": 0.01,
    "overlay.png": 1.8,
    "panoptic.png": 0.01,
}
"""Part -> bytes a pixel, of a photograph of 512 x 512 pixels with a mask of one region."""

CLASS_PIXEL_BYTES = {"soft.npz": 3.5, "soft.png": 1.5, "seeds.npz": 0.01}
"""The same of parts that hold a map for each class of the sample."""

RECORD_BYTES = 3200
"""Of a record, which stands in its shard's list and in the manifest."""

_SAMPLED = 32


def run_formats(config: RunConfig) -> list[Format]:
    """The formats of a run."""
    soft, seeds = config.soft_masks, config.seed_maps
    return make_formats(config.formats, config.class_names, soft=soft, seeds=seeds)


def typical_sample_bytes(config: RunConfig, num_pixels: int, num_classes: float) -> float:
    """About what a sample takes whose image is a photograph.

    Args:
        config: of the run.
        num_pixels: of an image.
        num_classes: of an image, on average.
    """
    pixel_bytes = 0.0
    for each in run_formats(config):
        pixel_bytes += sum(PIXEL_BYTES.get(part, 0) for part in each.parts)
        pixel_bytes += sum(num_classes * CLASS_PIXEL_BYTES.get(part, 0) for part in each.parts)
    return num_pixels * pixel_bytes + RECORD_BYTES


def stored_sample_bytes(config: RunConfig, folder: Folder) -> float | None:
    """What the samples of the first sealed shard of a folder take, on average; None without one.

    Raises:
        OSError: the folder cannot be read.
        DamagedFile: the seal or the list of its samples is damaged.
    """
    seals = [f"shards/{name}" for name in folder.names("shards") if name[0].isdigit()]
    seal = next((name for name in seals if name.endswith(".json")), None)
    if seal is None:
        return None
    lines = read_sealed(folder, seal, f"{seal.split('.')[0]}.jsonl").splitlines()
    indices = [row["index"] for row in map(json.loads, lines) if FAILED not in row]
    shard_bytes = sum(file["bytes"] for file in read_seal(folder, seal)["files"].values())
    if not indices:
        return None
    sampled = indices[:: -(-len(indices) // _SAMPLED)]
    names = [n for each in run_formats(config) for i in sampled for n in each.sample_files(i)]
    own_bytes = sum(folder.size(name) for name in names)
    return shard_bytes / len(indices) + own_bytes / len(sampled)
