"""Reads folders of images and of their true masks.

An image and its true mask have the same name except for the ending. Images are turned upright by
their EXIF orientation, and so are masks that have one. A mask without one belongs to the stored
pixels where it has their size, and is turned as its image is; else it is taken as upright. Host
only.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from seediff_jax.errors import UserError, listed, shown
from seediff_jax.files.folder import Folder
from seediff_jax.masks.config import IGNORE_INDEX

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Modes of Pillow with up to 8 bits per colour."""

_WITH_PREVIEWS = ("MPO",)
"""Formats of Pillow whose first picture is the image: cameras add previews and depth to a JPEG."""

_SIDEWAYS = range(5, 9)
"""EXIF orientations that exchange height and width."""

_THREADS, _WAITING = 16, 4096
_HASHED = 64
"""Files of a run whose content is hashed, at even distances."""


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """Images of a folder, in the order of their names.

    Attributes:
        folder: all its files are images, except those whose names begin with a dot.
        truth: folder of their masks, one byte per pixel, or None.
        chosen: names of the images to take, with or without their endings; None for all.

    Raises:
        UserError: there is no image, two names differ only by the ending, one that was chosen
            does not exist, or one has no truth.
    """

    folder: Folder
    truth: Folder | None = None
    chosen: tuple[str, ...] | None = None

    def __post_init__(self):
        if not self.names:
            what = "has no images" if self.folder.exists() else "does not exist"
            raise UserError(f"{self.folder} {what}; a folder of images is needed")
        seen: dict[str, str] = {}
        for name in self.names:
            if (other := seen.setdefault(stem(name), name)) != name:
                raise UserError(
                    f"{self.folder} has {shown(other)} and {shown(name)}, which differ by their "
                    "endings alone; rename one"
                )
        if self.truth is not None:
            missing = sorted(seen.keys() - self._truths.keys())
            if missing:
                raise UserError(f"{self.truth} has no mask of {listed(missing)}")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the image files."""
        found = [name for name in self.folder.names() if not name.startswith(".")]
        if self.chosen is None:
            return tuple(found)
        keys = {in_nfc(name): name for name in found} | {stem(name): name for name in found}
        if unknown := [name for name in self.chosen if in_nfc(name) not in keys]:
            raise UserError(f"{self.folder} has no image {listed(unknown)}")
        return tuple(sorted({keys[in_nfc(name)] for name in self.chosen}))

    @functools.cached_property
    def _truths(self) -> dict[str, str]:
        """Name of the truth of each image, by the name without ending."""
        names = [name for name in self.truth.names() if not name.startswith(".")]
        return {stem(name): name for name in names}

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Identifies these files in settings.json.

        Hashes of all names and sizes, and of the content of some files: uncompressed images with
        different pixels have equal sizes.
        """
        truths = [self._truths[stem(name)] for name in self.names] if self.truth else []
        return {
            "images_sha256": _digest(self.folder, self.names),
            "truth_sha256": _digest(self.truth, truths) if self.truth else None,
        }

    def read(self, index: int) -> np.ndarray:
        """Reads an image upright, uint8 `[H, W, 3]`.

        Raises:
            UserError: the file is not an image, has several frames, or more than 8 bits per colour.
        """
        return self._read(index)[0]

    def read_pair(self, index: int, num_labels: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Reads an image as `read` does, and its true labels, uint8 `[H, W]`; None without a truth.

        Args:
            index: of the image.
            num_labels: labels are 0 to `num_labels` - 1, or 255.

        Raises:
            UserError: as `read`, or the truth is not such a mask of the size of the image.
        """
        image, turn = self._read(index)
        return image, None if self.truth is None else self._read_truth(
            index, image, turn, num_labels
        )

    def _read(self, index: int) -> tuple[np.ndarray, int]:
        name = self.names[index]
        return read_pixels(self.folder.read(name), self.folder.path(name))

    def _read_truth(self, index: int, image: np.ndarray, turn: int, num_labels: int) -> np.ndarray:
        name = self._truths[stem(self.names[index])]
        content, path = self.truth.read(name), self.truth.path(name)
        labels = read_labels(content, path, image.shape[:2], turn)
        unknown = np.unique(labels[(labels >= num_labels) & (labels != IGNORE_INDEX)])
        if unknown.size:
            raise UserError(
                f"{shown(path)} has label {listed(unknown)}; labels are 0 to {num_labels - 1}, and "
                "255 where nothing is known"
            )
        return labels

    def check(self, num_labels: int, watch: Callable[[int], object] = lambda count: None) -> None:
        """Reads all images and truths once; calls `watch` with the number of pairs just read.

        Raises:
            UserError: as `read_pair`.
        """

        def check_one(index: int) -> None:
            self.read_pair(index, num_labels)
            watch(1)

        _at_once(check_one, range(len(self)))

    @functools.cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each image; reads all of them."""
        return _at_once(lambda index: self.read(index).shape[:2], range(len(self)))


def in_nfc(name: str) -> str:
    """A file's name in Unicode's form NFC: some systems store a different form than people type."""
    return unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """A file's name without its ending, in Unicode's form NFC."""
    return in_nfc(PurePosixPath(name).stem)


def read_pixels(content: bytes, path: str) -> tuple[np.ndarray, int]:
    """Decodes an image upright, uint8 `[H, W, 3]`, and the EXIF orientation of its file, 1 to 8.

    Args:
        content: of the file.
        path: of the file, for messages.

    Raises:
        UserError: it is not an image, has several frames, or more than 8 bits per colour.
    """
    picture, turn = open_picture(content, path)
    if picture.mode not in _MODES:
        raise UserError(
            f"{shown(path)} has pixels of the kind {picture.mode}; 8 bits per colour are needed"
        )
    return np.asarray(picture.convert("RGB")), turn


def read_labels(content: bytes, path: str, size: tuple[int, int], turn: int) -> np.ndarray:
    """Decodes a mask upright, uint8 `[H, W]`, by its own orientation or that of its image.

    Args:
        content: of the file.
        path: of the file, for messages.
        size: height and width of the upright image.
        turn: EXIF orientation of the image's file.

    Raises:
        UserError: it is not an image, has several frames, more than one byte per pixel, or another
            size than the image.
    """
    picture, own_turn = open_picture(content, path)
    if picture.mode not in ("P", "L"):
        raise UserError(
            f"{shown(path)} has pixels of the kind {picture.mode}; a mask has one byte per pixel, "
            "its label"
        )
    return turn_labels(picture, path, size, turn, own_turn)


def turn_labels(
    picture: Image.Image, path: str, size: tuple[int, int], turn: int, own_turn: int = 1
) -> np.ndarray:
    """Turns labels without an orientation of their own as their image, see `read_labels`."""
    stored = size if turn in _SIDEWAYS else size[::-1]
    if own_turn == 1 and picture.size == stored:
        picture.getexif()[ExifTags.Base.Orientation] = turn  # that of the image
        picture = ImageOps.exif_transpose(picture)
    labels = np.asarray(picture)
    if labels.shape != tuple(size):
        turned = " upright" if (turn, own_turn) != (1, 1) else ""
        raise UserError(
            f"{shown(path)} is {labels.shape[0]} x {labels.shape[1]}{turned}, but its image is "
            f"{size[0]} x {size[1]}{turned}"
        )
    return labels


def open_picture(content: bytes, path: str) -> tuple[Image.Image, int]:
    """A picture turned upright by its EXIF orientation, and that orientation; 1 for none.

    Raises:
        UserError: it is not an image, or has several frames.
    """
    try:
        picture = Image.open(io.BytesIO(content))
        frames = 1 if picture.format in _WITH_PREVIEWS else getattr(picture, "n_frames", 1)
        # Asked for before the pixels are: Pillow turns a TIFF when it loads them.
        turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # Pillow raises many kinds for damaged files
        reason = shown(str(error), 200)
        raise UserError(f"{shown(path)} cannot be read as an image: {reason}") from error
    if frames > 1:
        raise UserError(
            f"{shown(path)} has {frames} frames or pages; save the one to use as a file of its own"
        )
    return picture, turn if turn in range(2, 9) else 1


def _digest(folder: Folder, names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for name, size in zip(names, _at_once(folder.size, names), strict=True):
        digest.update(f"{name}\n{size}\n".encode())
    some = names[:: -(-len(names) // _HASHED)]
    for facts in _at_once(folder.describe, some):
        digest.update(facts["sha256"].encode())
    return digest.hexdigest()


def _at_once(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """Calls the function for each value, in threads that may wait for a disk or a bucket."""
    found: list[Any] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for k in range(0, len(values), _WAITING):  # a task that waits takes a kilobyte
            found += pool.map(function, values[k : k + _WAITING])
    return found
