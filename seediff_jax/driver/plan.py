"""Describes a run before it starts: its images, their split over hosts, time and memory."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from seediff_jax.dataset.formats import Format
from seediff_jax.dataset.formats.metrics_json import Metrics
from seediff_jax.dataset.formats.names import ATTENTION_PART, OTHER_METHODS_PART, STRIPS_PART
from seediff_jax.dataset.layout import ShardLayout, parse_shard_name, share_blocks
from seediff_jax.dataset.shards import make_formats, read_records, read_summary
from seediff_jax.driver.config import RunConfig
from seediff_jax.files.folder import Folder
from seediff_jax.masks.own_methods import method_name


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Formats a number of things; their plural ends in "s" unless another one is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Formats a time in the largest unit of which there are at least two."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return counted(round(seconds), "second")


def size(count: float) -> str:
    """Formats a number of bytes."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


PIXEL_BYTES = {
    "image.png": 1.8,
    "image.jpg": 0.7,
    "mask.png": 0.01,
    "mask_grey.png": 0.01,
    "overlay.png": 1.8,
    "panoptic.png": 0.01,
}
"""Part -> bytes per pixel, of a photograph of 512 x 512 pixels with a mask of one region."""

CLASS_PIXEL_BYTES = {"soft.npz": 3.5, "soft.png": 1.5, "seeds.npz": 0.01}
"""The same for parts that hold one map per class of the sample."""

METHOD_PIXEL_BYTES = {OTHER_METHODS_PART: 0.01}
"""The same for parts that hold one map per further method of the run."""

STRIP_BYTES = 300_000
"""Bytes of the strip of a class, whose size does not depend on that of the image."""

RECORD_BYTES = 1300
"""Bytes of a record, once in its shard's list and once in the manifest."""

_SAMPLED = 32
_COUNTED_TURNS = 20_000


def run_formats(config: RunConfig) -> list[Format]:
    """Makes the formats of a run, and Metrics where its images have a truth."""
    formats = make_formats(config.formats, config.class_names, config.kept_parts)
    if config.images is not None and config.images.truth is not None:
        others = [method_name(method) for method in config.masks.methods[1:]]
        formats.append(Metrics(config.class_names, others))
    return formats


def typical_sample_bytes(
    config: RunConfig, num_pixels: int, num_classes: float, attention_bytes: float = 0
) -> float:
    """Estimates the bytes of a sample whose image is a photograph.

    Args:
        num_pixels: of an image.
        num_classes: of an image, on average.
        attention_bytes: of the attention of an image, in one format.
    """
    num_methods = len(config.masks.methods) - 1
    pixel_bytes, other_bytes = 0.0, float(RECORD_BYTES)
    for part in (part for each in run_formats(config) for part in each.parts):
        pixel_bytes += PIXEL_BYTES.get(part, 0)
        pixel_bytes += num_classes * CLASS_PIXEL_BYTES.get(part, 0)
        pixel_bytes += num_methods * METHOD_PIXEL_BYTES.get(part, 0)
        other_bytes += attention_bytes * (part == ATTENTION_PART)
        other_bytes += num_classes * STRIP_BYTES * (part == STRIPS_PART)
    return num_pixels * pixel_bytes + other_bytes


def stored_sample_bytes(config: RunConfig, folder: Folder) -> float | None:
    """Returns the mean bytes of the samples in the first finished shard; None if there is none.

    Raises:
        OSError: the folder cannot be read.
        DamagedFile: the summary or the list of its samples is damaged.
    """
    found = filter(None, map(parse_shard_name, folder.names("shards")))
    first = next(((shard, kind) for shard, kind in found if kind.endswith("json")), None)
    if first is None:
        return None
    stem = f"shards/{first[0]:05d}"
    summary = f"{stem}.{first[1]}"
    indices = [row["index"] for row in read_records(folder, summary, f"{stem}.jsonl")]
    shard_bytes = sum(file["bytes"] for file in read_summary(folder, summary)["files"].values())
    if not indices:
        return None
    sampled = indices[:: -(-len(indices) // _SAMPLED)]
    names = [n for each in run_formats(config) for i in sampled for n in each.sample_files(i)]
    own_bytes = sum(folder.size(name) for name in names)
    return shard_bytes / len(indices) + own_bytes / len(sampled)


_SHOWN_CLASSES = 12


class Estimate(NamedTuple):
    """What a run needs.

    Attributes:
        rate: images per second of one row of the mesh.
        sample_bytes: bytes of one sample on disk.
        disk_source: where that number comes from, as the end of a sentence.
        device_bytes: bytes of memory on each device; None for more than it has.
    """

    rate: float
    sample_bytes: float
    disk_source: str
    device_bytes: int | None


def describe_plan(
    config: RunConfig, hosts: Sequence[int], num_existing: int, estimate: Estimate
) -> str:
    """Describes a run in a few lines; `hosts` are the rows on the data axis of each host."""
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
    missing = config.num_images - num_existing
    rounds = share_blocks(range(-(-missing // config.batch_size)), hosts, 0)[1]
    rows = sum(hosts)
    seconds = rounds * config.batch_size / estimate.rate
    disk, sample = size(estimate.sample_bytes * missing), size(estimate.sample_bytes)
    lines = [
        f"{counted(config.num_images, 'image')}, of which {num_existing} exist, in {config.output}",
        f"{counted(layout.num_shards, 'shard')} of {config.shard_size}; formats: "
        f"{', '.join(config.formats)}",
        f"{rows} at a time x {config.batch_size} on {counted(len(hosts), 'host')}: "
        f"{counted(rounds, 'round')} of {counted(rows * config.batch_size, 'image')}",
        f"classes: {_counts(class_counts(config))}",
        f"about {duration(seconds)} at {estimate.rate:.3g} images per second on each of {rows}",
        f"about {disk} on disk, {sample} per sample, {estimate.disk_source}",
        _device_line(estimate.device_bytes),
    ]
    return "\n".join(lines)


def class_counts(config: RunConfig) -> Mapping[str, int]:
    """Counts the images of the run in which each class is looked for.

    Takes the same time for any number of images, because rounds over the prompts repeat. Balanced
    prompts do not repeat; their counts are estimated from the first _COUNTED_TURNS turns.
    """
    plan, each = config.plan, config.plan.images_per_prompt
    counts: collections.Counter[str] = collections.Counter(dict.fromkeys(config.class_names, 0))
    rounds, rest = (0, config.num_images)
    if not plan.balance_classes:
        rounds, rest = divmod(config.num_images, plan.num_images)
    if rounds:
        for shown, prompts in plan.records.count_lists():
            counts.update(dict.fromkeys(shown.classes, prompts * rounds * each))
    counted_images = min(rest, _COUNTED_TURNS * each) if plan.balance_classes else rest
    tail: collections.Counter[str] = collections.Counter()
    turns, part = divmod(counted_images, each)
    for some, images in ((range(turns), each), (range(turns, turns + bool(part)), part)):
        for shown, prompts in plan.records.count_lists(map(plan.place_of, some)):
            tail.update(dict.fromkeys(shown.classes, prompts * images))
    scale = rest / counted_images if counted_images else 0
    counts.update({name: round(scale * count) for name, count in tail.items()})
    return counts


def _counts(counts: Mapping[str, int]) -> str:
    used = [(name, count) for name, count in counts.items() if count]
    shown = ", ".join(f"{name} {count}" for name, count in used[:_SHOWN_CLASSES])
    return shown + (f" and {len(used) - _SHOWN_CLASSES} more" if len(used) > _SHOWN_CLASSES else "")


def _device_line(device_bytes: int | None) -> str:
    if device_bytes is None:
        return "needs more memory than a device has; use a smaller --batch_size or --dtype=bfloat16"
    return f"about {size(device_bytes)} of memory on each device, according to its programs"
