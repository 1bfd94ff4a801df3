"""CVAT's format "Segmentation mask 1.1": PASCAL VOC's folders and a list of label colours."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from seediff_jax.dataset.formats.base import Format, Made, Read, Records, stem, write_lines
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
    sample_paths = {
        "cvat/JPEGImages/{}.jpg": "image.jpg",
        "cvat/SegmentationClass/{}.png": "mask.png",
        "cvat/SegmentationObject/{}.png": "mask.png",
    }

    def __init__(self, class_names: Sequence[str], kept: Sequence[str] = ()):
        super().__init__(class_names, kept)
        for name in class_names:
            if ":" in name or name.startswith("#"):
                raise UserError(
                    f"the class {quoted(name)} cannot be in CVAT's labelmap.txt, where names have "
                    "no colon and no # in front; rename it, or leave out the format cvat"
                )

    def write_run(self, records: Records, read: Read, shards: Sequence[int], scratch: Path) -> Made:
        """Writes the list of samples, and the colours of the classes."""
        del read, shards
        has_ignored = False

        def names_of_samples() -> Iterator[str]:
            nonlocal has_ignored
            for record in records():
                has_ignored |= record.get("ignored_fraction", 0) > 0
                yield f"{stem(record['index'])}\n"

        files = write_lines(scratch, "cvat/ImageSets/Segmentation/default.txt", names_of_samples())
        names = dict(enumerate(("background", *self.class_names), BACKGROUND))
        names |= {IGNORE_INDEX: "ignored"} if has_ignored else {}
        colours = (
            f"{name}:{','.join(map(str, PALETTE[class_id].tolist()))}::\n"
            for class_id, name in names.items()
        )
        header = "# label:color_rgb:parts:actions\n"
        return files | write_lines(scratch, "cvat/labelmap.txt", (header, *colours))
