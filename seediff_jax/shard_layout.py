"""How the samples of a run are cut: into shards for files, into blocks for devices.

    index  0 1 2 3 4 5 6 7 8 9 ...
    shard  0 0 0 0 0 0 1 1 1 1 ...     shard_size 6
    block  0 0 0 0 4 4 6 6 6 6 ...     batch_size 4, named by their first index

A device makes a block at a time. Blocks begin at fixed places, whatever is still missing: rounding
may depend on the place in a batch, and so a run that was stopped ends with the same bits as one
that was not. A block that is cut short, by the end of a shard or the run, is made in full too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class ShardLayout:
    """The cut of a run.

    Attributes:
        num_images: samples of the run.
        shard_size: samples of a shard.
        batch_size: samples of a block, those that a device makes at a time.

    Raises:
        ValueError: one of them is below 1.
    """

    num_images: int
    shard_size: int
    batch_size: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name}={value} must be 1 or more")

    @property
    def num_shards(self) -> int:
        """Shards of the run, of which the last may be cut short."""
        return -(-self.num_images // self.shard_size)

    def shard_of(self, index: int) -> int:
        """Shard of a sample."""
        return index // self.shard_size

    def indices(self, shard: int) -> range:
        """Samples of a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.num_images))

    def is_full(self, shard: int) -> bool:
        """Whether the run fills a shard, so that a longer run would add nothing to it."""
        return (shard + 1) * self.shard_size <= self.num_images

    def block(self, first: int) -> range:
        """Samples that a device makes for the block, of which some may be none of the run's."""
        return range(first, first + self.batch_size)

    def wanted(self, first: int) -> range:
        """Samples of the block that belong to the run and to the block's shard."""
        return range(first, min(first + self.batch_size, self.indices(self.shard_of(first)).stop))

    def blocks_with(self, indices: np.ndarray) -> np.ndarray:
        """First indices of the blocks that hold these samples, sorted; int64."""
        begin = indices // self.shard_size * self.shard_size
        return np.unique(begin + (indices - begin) // self.batch_size * self.batch_size)


def share_blocks(blocks: np.ndarray, rows: Sequence[int], host: int) -> tuple[np.ndarray, int]:
    """Deals blocks to hosts, a run of successive ones to each, so that few shards are shared.

    Args:
        blocks: first indices of all blocks to make, sorted, the same on all hosts.
        rows: blocks that each host makes at a time.
        host: which of them asks.

    Returns:
        The blocks of this host, and the number of rounds in which all hosts have made theirs.
    """
    bounds = np.rint(np.cumsum([0, *rows]) / sum(rows) * len(blocks)).astype(int)
    counts = np.diff(bounds)
    rounds = max(-(-int(n) // at_a_time) for n, at_a_time in zip(counts, rows, strict=True))
    return blocks[bounds[host] : bounds[host + 1]], rounds
