"""The folders of PASCAL VOC's segmentation task."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

from seediff_jax.formats.base import Format, Read, Records, scratch_file, stem

_LISTS = "voc/ImageSets/Segmentation"
_VAL_SHARE = 10


class Voc(Format):
    """`voc/JPEGImages`, `voc/SegmentationClass`, `voc/ImageSets/Segmentation` and `voc/labels.txt`.

    Masks are palette pictures of class ids, 255 where ignored. Line k of labels.txt, counted from
    0, names id k; line 0 is "background". One sample of ten is val, the others are train, trainval
    is all; which is which depends on the index alone, see `is_val`.
    """

    name = "voc"
    parts = ("image.jpg", "mask.png")

    def sample_files(self, index: int) -> dict[str, str]:
        """Relative path -> part."""
        return {
            f"voc/JPEGImages/{stem(index)}.jpg": "image.jpg",
            f"voc/SegmentationClass/{stem(index)}.png": "mask.png",
        }

    def closing_files(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Writes the lists of samples, and the names of the classes."""
        del read, shards
        labels = scratch_file(scratch, "voc/labels.txt")
        names = ("background", *self.class_names)
        labels.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
        paths = {
            name: scratch_file(scratch, f"{_LISTS}/{name}.txt")
            for name in ("train", "val", "trainval")
        }
        with contextlib.ExitStack() as stack:
            lists = {
                name: stack.enter_context(open(path, "w", encoding="ascii", newline="\n"))
                for name, path in paths.items()
            }
            for record in records():
                line = f"{stem(record['index'])}\n"
                lists["val" if is_val(record["index"]) else "train"].write(line)
                lists["trainval"].write(line)
        return {"voc/labels.txt": labels} | {
            f"{_LISTS}/{name}.txt": path for name, path in paths.items()
        }


def is_val(index: int) -> bool:
    """Whether a sample is of the val set: one of every ten, from 10 k on, is.

    Which one, SHA-256 of k in decimals tells, modulo 10: prompts, and with them classes, recur
    every so many samples, and every tenth sample would take some classes only. A sample stays where
    it is when a run is made longer.
    """
    block, place = divmod(index, _VAL_SHARE)
    digest = hashlib.sha256(str(block).encode()).digest()
    return int.from_bytes(digest, "big") % _VAL_SHARE == place
