"""What a run would make, how it is split, and what it needs, before any of it is made."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seediff_jax.run_config import RunConfig
from seediff_jax.shard_layout import ShardLayout, share_blocks
from seediff_jax.words import counted, duration, size

_SHOWN_CLASSES = 12


class Measured(NamedTuple):
    """What a trial round on this machine showed.

    Attributes:
        seconds: that the round took, compiled before.
        sample_bytes: on disk, of a sample, the mean of the round's.
        device_bytes: most of the first device's memory in use; None where the device keeps no
            account, as a CPU.
    """

    seconds: float
    sample_bytes: float
    device_bytes: int | None


class Needs(NamedTuple):
    """What a run needs.

    Attributes:
        rate: images a second of one row of the mesh.
        sample_bytes: on disk, of a sample.
        disk_source: where that is from, in words.
        device_bytes: of each device's memory; None for more than there is.
    """

    rate: float
    sample_bytes: float
    disk_source: str
    device_bytes: int | None


def describe_plan(config: RunConfig, hosts: Sequence[int], num_existing: int, needs: Needs) -> str:
    """Describes a run for people.

    Args:
        config: of the run.
        hosts: rows on the data axis of each host.
        num_existing: samples that are there already.
        needs: of the run.
    """
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
    missing = config.num_images - num_existing
    blocks = np.arange(-(-missing // config.batch_size))
    rounds = share_blocks(blocks, hosts, 0)[1]
    rows = sum(hosts)
    seconds = rounds * config.batch_size / needs.rate
    disk, sample = size(needs.sample_bytes * missing), size(needs.sample_bytes)
    lines = [
        f"{counted(config.num_images, 'image')}, {num_existing} of them there already, in "
        f"{config.output}",
        f"{counted(layout.num_shards, 'shard')} of {config.shard_size}; formats: "
        f"{', '.join(config.formats)}",
        f"{rows} at a time x {config.batch_size} on {counted(len(hosts), 'host')}: "
        f"{counted(rounds, 'round')} of {counted(rows * config.batch_size, 'image')}",
        f"classes: {_counts(class_counts(config))}",
        f"about {duration(seconds)} at {needs.rate:.3g} images a second on each of {rows}",
        f"about {disk} on disk, {sample} a sample, {needs.disk_source}",
        _device_line(needs.device_bytes),
    ]
    return "\n".join(lines)


def class_counts(config: RunConfig) -> Mapping[str, int]:
    """Images of the run in which each class is looked for."""
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(config.class_names, 0))
    for index in range(config.num_images):
        counts.update(config.record(index).classes)
    return counts


def _counts(counts: Mapping[str, int]) -> str:
    used = [(name, count) for name, count in counts.items() if count]
    shown = ", ".join(f"{name} {count}" for name, count in used[:_SHOWN_CLASSES])
    return shown + (f" and {len(used) - _SHOWN_CLASSES} more" if len(used) > _SHOWN_CLASSES else "")


def _device_line(device_bytes: int | None) -> str:
    if device_bytes is None:
        return "more memory than each device has; a smaller --batch_size or bfloat16 takes less"
    return f"about {size(device_bytes)} of memory on each device, by the compiled programs"
