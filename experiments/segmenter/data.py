"""Samples of a segmenter: images with label maps, in memory or in the folders of VOC."""

import concurrent.futures
import dataclasses
import functools
import pathlib
from typing import Protocol

import numpy as np

from seediff_jax.dataset.image_files import read_labels, read_pixels
from seediff_jax.errors import UserError, listed
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.prompts.class_lists import VOC_CLASSES


class Samples(Protocol):
    """A set of images with label maps; several threads may read it at once."""

    def __len__(self) -> int:
        """Number of samples."""

    def name(self, index: int) -> str:
        """Where the labels of a sample come from, for messages."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns uint8 `[h, w, 3]` and uint8 `[h, w]`."""


class LabelledSamples(Samples, Protocol):
    """Samples of a folder, which names its labels.

    Attributes:
        folder: where they are.
        label_names: names of the labels, background first.
    """

    folder: pathlib.Path
    label_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ArraySamples:
    """Samples in memory: uint8 `[n, h, w, 3]` and uint8 `[n, h, w]`.

    Raises:
        UserError: the shapes do not match.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        if self.images.shape != (*self.labels.shape, 3) or not len(self.labels):
            raise UserError(
                f"images of shape {list(self.images.shape)} do not match label maps of shape "
                f"{list(self.labels.shape)}; expected [n, h, w, 3] and [n, h, w]"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The number of a sample."""
        return f"sample {index}"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and its label map."""
        return self.images[index], self.labels[index]


@dataclasses.dataclass(frozen=True)
class VocSamples:
    """Samples of a folder in PASCAL VOC's layout: this project's `voc`, or VOC2012 itself.

    The split "trainaug" is that of the extra annotations (SBD), which are in SegmentationClassAug.

    Attributes:
        folder: with JPEGImages, SegmentationClass and ImageSets/Segmentation.
        split: list to read, e.g. "train", "val", "trainval", "trainaug".

    Raises:
        UserError: a list or a file of it is missing.
    """

    folder: pathlib.Path
    split: str = "train"

    def __post_init__(self):
        paths = [self._mask(name) for name in self.names]
        paths += [self._image(name) for name in self.names]
        missing = [str(path.relative_to(self.folder)) for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"{self.folder} lacks {listed(missing)}, which {self.split}.txt lists")

    def _image(self, name: str) -> pathlib.Path:
        return self.folder / "JPEGImages" / f"{name}.jpg"

    def _mask(self, name: str) -> pathlib.Path:
        part = "SegmentationClass" + ("Aug" if self.split == "trainaug" else "")
        return self.folder / part / f"{name}.png"

    @functools.cached_property
    def names(self) -> list[str]:
        """Names of the samples, as the list has them."""
        path = self.folder / "ImageSets" / "Segmentation" / f"{self.split}.txt"
        if not path.is_file():
            raise UserError(f"{path} is missing; {self.folder} is not a folder in VOC's layout")
        names = path.read_text(encoding="utf-8").split()
        if not names:
            raise UserError(f"{path} lists no sample")
        return names

    @functools.cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, background first: those of labels.txt, or VOC's."""
        path = self.folder / "labels.txt"
        if path.is_file():
            return tuple(path.read_text(encoding="utf-8").splitlines())
        return ("background", *VOC_CLASSES)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path of a sample's mask."""
        return str(self._mask(self.names[index]))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and its label map.

        Raises:
            UserError: a file is not an image, or the mask has no palette or another size.
        """
        name = self.names[index]
        return read_pair(self._image(name), self._mask(name))


def read_pair(image: pathlib.Path, mask: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image, uint8 `[h, w, 3]`, and the picture of its labels, uint8 `[h, w]`.

    Both are upright, by the rules of `seediff_jax.dataset.image_files`.

    Raises:
        UserError: a file is not one image, the mask is not of one byte per pixel, or sizes differ.
    """
    pixels, turn = read_pixels(read_bytes(image), str(image))
    return pixels, read_labels(read_bytes(mask), str(mask), pixels.shape[:2], turn)


def read_bytes(path: pathlib.Path) -> bytes:
    """Reads a file.

    Raises:
        UserError: it is missing, or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def require_labels(samples: Samples, num_labels: int) -> None:
    """Reads every sample once, so that a bad one is refused before training and not during it.

    Raises:
        UserError: a label is neither below `num_labels` nor 255, or a sample cannot be read.
    """

    def check(index: int) -> None:
        _, labels = samples.read(index)
        wrong = labels[(labels >= num_labels) & (labels != IGNORE_INDEX)]
        if wrong.size:
            raise UserError(
                f"{samples.name(index)} has label {wrong[0]}; labels are 0 to {num_labels - 1}, "
                "and 255 where nothing is known"
            )

    with concurrent.futures.ThreadPoolExecutor() as pool:
        try:
            list(pool.map(check, range(len(samples))))  # raises the first error
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
