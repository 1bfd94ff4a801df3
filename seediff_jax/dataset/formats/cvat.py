"""CVAT's format "Segmentation mask 1.1": PASCAL VOC's folders and a list of label colours."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from seediff_jax.dataset.formats.base import Format, Read, Records, scratch_file, stem
from seediff_jax.dataset.pictures import PALETTE
from seediff_jax.errors import UserError, quoted
from seediff_jax.masks.config import BACKGROUND, IGNORE_INDEX


class Cvat(Format):
    """`cvat/JPEGImages`, `SegmentationClass`, `SegmentationObject`, `ImageSets`, `labelmap.txt`.

    SeeDiff does not separate the objects of a class, so each class of an image is one object, and
    both masks are the same. The label "ignored" is there if any sample has ignored pixels.
    """

    name = "cvat"
    parts = ("image.jpg", "mask.png")

    def __init__(self, class_names: Sequence[str], kept: Sequence[str] = ()):
        super().__init__(class_names, kept)
        for name in class_names:
            if ":" in name or name.startswith("#"):
                raise UserError(
                    f"the class {quoted(name)} cannot be in CVAT's labelmap.txt, where names have "
                    "no colon and no # in front; rename it, or leave out the format cvat"
                )

    def sample_files(self, index: int) -> dict[str, str]:
        """Maps relative paths of the files of a sample to its parts."""
        return {
            f"cvat/JPEGImages/{stem(index)}.jpg": "image.jpg",
            f"cvat/SegmentationClass/{stem(index)}.png": "mask.png",
            f"cvat/SegmentationObject/{stem(index)}.png": "mask.png",
        }

    def write_run(
        self, records: Records, read: Read, shards: Sequence[int], scratch: Path
    ) -> dict[str, Path]:
        """Writes the list of samples, and the colours of the classes."""
        del read, shards
        places = ("cvat/ImageSets/Segmentation/default.txt", "cvat/labelmap.txt")
        has_ignored = False
        with contextlib.ExitStack() as stack:
            samples, labels = (stack.enter_context(scratch_file(scratch, name)) for name in places)
            with open(samples, "w", encoding="ascii", newline="\n") as file:
                for record in records():
                    file.write(f"{stem(record['index'])}\n")
                    has_ignored |= record.get("ignored_fraction", 0) > 0
            names = dict(enumerate(("background", *self.class_names), BACKGROUND))
            names |= {IGNORE_INDEX: "ignored"} if has_ignored else {}
            lines = [
                f"{name}:{','.join(map(str, PALETTE[class_id].tolist()))}::\n"
                for class_id, name in names.items()
            ]
            text = "# label:color_rgb:parts:actions\n" + "".join(lines)
            labels.write_text(text, encoding="utf-8", newline="\n")
        return dict(zip(places, (samples, labels), strict=True))
