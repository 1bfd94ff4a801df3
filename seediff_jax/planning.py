"""What a run would make, how it is split, and what it needs, before any of it is made."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seediff_jax.run_config import RunConfig
from seediff_jax.shard_layout import ShardLayout, share_blocks

_SHOWN_CLASSES = 12


class Measured(NamedTuple):
    """What a trial round on this machine showed.

    Attributes:
        seconds: that the round took, compiled before.
        sample_bytes: on disk, of a sample, the mean of the round's.
        device_bytes: of each device's memory, that the programs and their weights need; None where
            it is not known.
    """

    seconds: float
    sample_bytes: float
    device_bytes: int | None


def describe_plan(
    config: RunConfig,
    hosts: Sequence[int],
    num_existing: int,
    *,
    rate: float | None = None,
    measured: Measured | None = None,
) -> str:
    """Describes a run for people.

    Args:
        config: of the run.
        hosts: rows on the data axis of each host.
        num_existing: samples that are there already.
        rate: images a second of one row; takes the place of what was measured.
        measured: on this machine, if it was.
    """
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
    missing = config.num_images - num_existing
    blocks = np.arange(-(-missing // config.batch_size))
    rounds = share_blocks(blocks, hosts, 0)[1]
    rows = sum(hosts)
    lines = [
        f"{config.num_images} images, {num_existing} of them there already, in {config.output}",
        f"{layout.num_shards} shards of {config.shard_size}; formats: {', '.join(config.formats)}",
        f"{rows} at a time x {config.batch_size} on {len(hosts)} host(s): {rounds} rounds of "
        f"{rows * config.batch_size} images",
        f"classes: {_counts(class_counts(config))}",
    ]
    if rate is None and measured is not None:
        rate = config.batch_size / measured.seconds
    if rate is not None:
        seconds = rounds * config.batch_size / rate
        lines.append(f"about {_duration(seconds)} at {rate:.3g} images a second on each of {rows}")
    if measured is not None:
        total = measured.sample_bytes * missing
        lines.append(f"about {_size(total)} on disk, {_size(measured.sample_bytes)} a sample")
        if measured.device_bytes is not None:
            lines.append(f"{_size(measured.device_bytes)} of memory on each device")
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


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(count: float) -> str:
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"
