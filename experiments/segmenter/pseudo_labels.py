"""Self-training: the predictions of a trained segmenter become the labels of its own images.

The first segmenter corrects masks that differ from what most masks of a class look like
(arXiv 2309.14303); a second one is trained on the result.
"""

import dataclasses
import os
import pathlib

import jax
import numpy as np

from experiments.segmenter.config import SegmenterConfig
from experiments.segmenter.data import Samples, read_bytes
from experiments.segmenter.predict import batches_of_one_size, predict_logits
from experiments.segmenter.trainer import Variables
from seediff_jax.dataset.encoding import encode_mask
from seediff_jax.dataset.image_files import open_picture
from seediff_jax.masks.config import IGNORE_INDEX


@dataclasses.dataclass(frozen=True)
class PseudoSamples:
    """Samples whose label maps are pictures in a folder, see `write_pseudo_labels`."""

    samples: Samples
    folder: pathlib.Path

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        """The path of a sample's predicted mask."""
        return str(_mask_path(self.folder, index))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image and its predicted label map."""
        image, _ = self.samples.read(index)
        path = _mask_path(self.folder, index)
        return image, np.asarray(open_picture(read_bytes(path), str(path))[0])


def write_pseudo_labels(
    config: SegmenterConfig,
    variables: Variables,
    samples: Samples,
    folder: pathlib.Path,
    min_confidence: float,
) -> PseudoSamples:
    """Predicts the labels of every sample; those that the folder has are not predicted again.

    Args:
        config: the recipe of the segmenter.
        variables: its weights.
        samples: images.
        folder: of the predictions of this segmenter, one palette PNG per sample.
        min_confidence: pixels whose most likely label has a lower probability become 255.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lacking = [k for k in range(len(samples)) if not _mask_path(folder, k).is_file()]
    for indices, images, _ in batches_of_one_size(samples, lacking):
        logits = predict_logits(config, variables, images)
        labels = np.argmax(logits, axis=-1).astype(np.uint8)
        confidence = np.asarray(jax.nn.softmax(logits).max(axis=-1))
        labels[confidence < min_confidence] = IGNORE_INDEX
        for index, label_map in zip(indices, labels, strict=True):
            path = _mask_path(folder, index)
            aside = path.with_suffix(".part")
            aside.write_bytes(encode_mask(label_map))
            os.replace(aside, path)
    return PseudoSamples(samples, folder)


def _mask_path(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"{index:06d}.png"
