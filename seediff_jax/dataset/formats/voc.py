"""The folders of PASCAL VOC's segmentation task."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seediff_jax.dataset.formats.base import Format, Made, Read, Records, stem, write_lines
from seediff_jax.files.text import join_lines

_VAL_SHARE = 10


class Voc(Format):
    """`voc/JPEGImages`, `voc/SegmentationClass`, `voc/ImageSets/Segmentation` and `voc/labels.txt`.

    Masks are palette pictures of class ids, 255 where ignored. Line k of labels.txt, counted from
    0, names id k; line 0 is "background". One sample of ten is in val, the others are in train, and
    trainval has all, see `split_indices`.
    """

    name = "voc"
    parts = ("image.jpg", "mask.png")
    sample_paths = {
        "voc/JPEGImages/{}.jpg": "image.jpg",
        "voc/SegmentationClass/{}.png": "mask.png",
    }

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Writes the lists of samples, and the names of the classes."""
        del read, shards
        labels = join_lines(("background", *self.class_names))
        files = write_lines(scratch, "voc/labels.txt", [labels])
        indices = np.fromiter((record["index"] for record in records()), np.int64)
        for name, chosen in split_indices(indices).items():
            lines = (f"{stem(index)}\n" for index in chosen)
            files |= write_lines(scratch, f"voc/ImageSets/Segmentation/{name}.txt", lines)
        return files


def split_indices(indices: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the samples of a run, int64 `[n]`, into "train" and "val"; "trainval" has all.

    `is_val` decides by the index alone. Small runs, of which it chooses none, have their last
    sample in val. A run of one sample has it in both.
    """
    val = np.fromiter(map(is_val, indices.tolist()), bool, len(indices))
    if not val.any():
        val[-1:] = True
    train = val if val.all() else ~val
    return {"train": indices[train], "val": indices[val], "trainval": indices}


def is_val(index: int) -> bool:
    """Tells whether a sample is in the val set: one of every ten samples from 10 k on is.

    SHA-256 of the decimal k, modulo 10, decides which one. Prompts, and with them classes, recur at
    regular distances, so that taking every tenth sample could miss some classes. A sample stays in
    its set when a run is made longer.
    """
    block, place = divmod(index, _VAL_SHARE)
    digest = hashlib.sha256(str(block).encode()).digest()
    return int.from_bytes(digest, "big") % _VAL_SHARE == place
