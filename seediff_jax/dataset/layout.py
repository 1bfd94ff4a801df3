"""How the samples of a run are divided: into shards for files, into blocks for devices.

    index  0 1 2 3 4 5 6 7 8 9 ...
    shard  0 0 0 0 0 0 1 1 1 1 ...     shard_size 6
    block  0 0 0 0 4 4 6 6 6 6 ...     batch_size 4, named by their first index

A device makes one block at a time. Blocks begin at fixed indices, whatever is missing: rounding may
depend on the place in a batch, and a run that was stopped must end with the same bits as one that
was not. A block that is cut short by the end of a shard or of the run is made in full, too.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from seediff_jax.errors import UserError

_CHUNK = 2**20
_SHARD_NAME = re.compile(r"([0-9]{5,})\.(journal|jsonl|json|open\.json)")


@dataclasses.dataclass(frozen=True)
class ShardLayout:
    """How the samples of a run are divided.

    Attributes:
        num_images: samples of the run.
        shard_size: samples per shard.
        batch_size: samples per block, which a device makes at a time.

    Raises:
        UserError: one of them is below 1.
    """

    num_images: int
    shard_size: int
    batch_size: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise UserError(f"{name}={value} must be 1 or more")

    @property
    def num_shards(self) -> int:
        """Number of shards of the run, of which the last may be cut short."""
        return -(-self.num_images // self.shard_size)

    def shard_of(self, index: int) -> int:
        """Returns the shard of a sample."""
        return index // self.shard_size

    def indices(self, shard: int) -> range:
        """Returns the samples of a shard that belong to the run."""
        full = self.full_shard(shard)
        return range(full.start, min(full.stop, self.num_images))

    def full_shard(self, shard: int) -> range:
        """Returns the samples of a shard in a run that is long enough to fill it."""
        return range(shard * self.shard_size, (shard + 1) * self.shard_size)

    def is_full(self, shard: int) -> bool:
        """Tells whether the run fills a shard, so that a longer run would add nothing to it."""
        return (shard + 1) * self.shard_size <= self.num_images

    def block(self, first: int) -> range:
        """Returns the samples that a device makes for a block; some may be beyond the run."""
        return range(first, first + self.batch_size)

    def wanted(self, first: int) -> range:
        """Returns the samples of a block that belong to the run and to the block's shard."""
        return range(first, min(first + self.batch_size, self.indices(self.shard_of(first)).stop))

    def blocks_with(self, indices: np.ndarray) -> np.ndarray:
        """Returns the first indices of the blocks that hold these samples, sorted; int64."""
        begin = indices // self.shard_size * self.shard_size
        return np.unique(begin + (indices - begin) // self.batch_size * self.batch_size)

    def unfinished_blocks(self, exists: np.ndarray) -> np.ndarray:
        """Returns the first indices of the blocks that lack a sample, sorted; int64.

        Args:
            exists: bool `[num_images]`, the samples that exist.
        """
        step = -(-_CHUNK // self.shard_size) * self.shard_size  # a run may have 2**31 samples
        shards = np.arange(0, step, self.shard_size)[:, None]
        all_firsts = (shards + np.arange(0, self.shard_size, self.batch_size)).ravel()
        found = []
        for begin in range(0, len(exists), step):
            part = exists[begin : begin + step]
            firsts = all_firsts[all_firsts < len(part)]
            found.append(begin + firsts[~np.logical_and.reduceat(part, firsts)])
        return np.concatenate(found)


def parse_shard_name(name: str) -> tuple[int, str] | None:
    """Reads the number of the shard and the kind out of a name in `shards`.

    Returns:
        As (12, "open.json") of 00012.open.json; None for a name of another form.
    """
    match = _SHARD_NAME.fullmatch(name)
    if not match or name != f"{int(match[1]):05d}.{match[2]}":
        return None
    return int(match[1]), match[2]


def share_blocks(
    blocks: np.ndarray | range, rows: Sequence[int], host: int
) -> tuple[np.ndarray | range, int]:
    """Divides blocks between hosts; each gets successive ones, so that hosts share few shards.

    Args:
        blocks: first indices of all blocks to make, sorted, the same on all hosts.
        rows: blocks that each host makes at a time.
        host: number of this host.

    Returns:
        The blocks of this host, and the number of rounds in which all hosts have made theirs.
    """
    bounds = np.rint(np.cumsum([0, *rows]) / sum(rows) * len(blocks)).astype(int)
    counts = np.diff(bounds)
    rounds = max(-(-int(n) // at_a_time) for n, at_a_time in zip(counts, rows, strict=True))
    return blocks[bounds[host] : bounds[host + 1]], rounds
