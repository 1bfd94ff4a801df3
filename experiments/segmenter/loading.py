"""Batches of a segmenter: grain shuffles the samples, and augments image and labels together."""

import dataclasses
import os

import grain
import numpy as np

from experiments.segmenter.augment import augment
from experiments.segmenter.config import SegmenterConfig
from experiments.segmenter.data import Samples

_BATCHES_AHEAD = 4


def load_batches(
    config: SegmenterConfig, samples: Samples, rng_seed: int
) -> grain.DatasetIterator[tuple[np.ndarray, np.ndarray]]:
    """Iterates over batches without end; threads read and augment samples ahead of time.

    Everything follows from the seed: every epoch shows each sample once, in an order and with
    augmentations of its own. `get_state` and `set_state` of the iterator are its checkpoint.

    Args:
        config: sizes and ranges.
        samples: what to show.
        rng_seed: seed.

    Returns:
        Yields float32 `[b, crop, crop, 3]` and uint8 `[b, crop, crop]`.
    """
    threads = min(config.batch_size, os.cpu_count() or 1)
    options = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=_BATCHES_AHEAD * config.batch_size
    )
    dataset = (
        grain.MapDataset.source(_Source(samples))
        .seed(rng_seed)
        .shuffle()
        .repeat()
        .random_map(lambda pair, rng: augment(*pair, config, rng))
        .to_iter_dataset(options)
        .batch(config.batch_size)
    )
    return iter(dataset)


@dataclasses.dataclass(frozen=True)
class _Source:
    """Samples as grain reads them."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples.read(int(index))
