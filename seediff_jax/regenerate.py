"""Single blocks: a sample made again and compared with what is stored, and a trial to measure."""

import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from seediff_jax.dataset import FAILED, Dataset, make_formats
from seediff_jax.folder_settings import require_resumable
from seediff_jax.journal import Journal
from seediff_jax.model import Model
from seediff_jax.pair_maker import PairMaker
from seediff_jax.planning import Measured
from seediff_jax.run_config import RunConfig
from seediff_jax.sample_records import Failure
from seediff_jax.seals import fault_of
from seediff_jax.shard_layout import ShardLayout
from seediff_jax.sharding import PairPrograms, local_rows_of
from seediff_jax.storage import Folder, open_folder


def stored_record(folder: Folder, layout: ShardLayout, index: int) -> dict[str, Any]:
    """The record of a sample.

    Raises:
        ValueError: there is no such sample, or it failed.
    """
    shard = layout.shard_of(index)
    name = f"shards/{shard:05d}.jsonl"
    if folder.exists(name):
        records = [json.loads(line) for line in folder.read(name).splitlines()]
    else:
        records = [sample.record for sample in Journal(folder, shard).samples()]
    record = next((record for record in records if record["index"] == index), None)
    if record is None:
        raise ValueError(f"{folder} has no sample {index}")
    if FAILED in record:
        raise ValueError(f"sample {index} of {folder} failed: {record[FAILED]}")
    return record


def make_block(
    config: RunConfig, model: Model, programs: PairPrograms, first: int, folder: Folder
) -> tuple[float, list[Failure]]:
    """Makes one block of a run, all devices the same, and writes it to another folder.

    Returns:
        Seconds that the devices took, compiled before, and the samples that failed.
    """
    count = max(config.num_images, first + config.batch_size)
    layout = ShardLayout(count, config.shard_size, config.batch_size)
    formats = make_formats(
        config.formats, config.class_names, soft=config.soft_masks, seeds=config.seed_maps
    )
    dataset = Dataset(folder, layout, formats, Path(folder.root))
    rows = len(local_rows_of(programs.mesh))
    maker = PairMaker(config, model, programs, dataset, np.zeros(count, bool), rows)
    maker.fetch(maker.start([first]))
    start = time.perf_counter()
    block = maker.fetch(maker.start([first]))[0]
    seconds = time.perf_counter() - start
    return seconds, maker.write(first, block)[1]


def measure(config: RunConfig, model: Model, programs: PairPrograms) -> Measured:
    """Makes the first block of a run in a folder that is thrown away, and measures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = open_folder(scratch)
        seconds, failures = make_block(config, model, programs, 0, folder)
        files = [path for path in Path(scratch).rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files if path.name != "strip.png")
    made = min(config.batch_size, config.num_images) - len(failures)
    stats = jax.local_devices()[0].memory_stats() or {}
    return Measured(seconds, written / max(made, 1), stats.get("peak_bytes_in_use"))


def as_made(config: RunConfig, index: int) -> RunConfig:
    """A run's config with the batch size with which it made a sample, for the same rounding.

    Raises:
        ValueError: there is no such sample, or the folder was made with other settings.
    """
    folder = open_folder(config.output)
    require_resumable(folder, config.settings())
    stored = stored_record(folder, ShardLayout(index + 1, config.shard_size, 1), index)
    return dataclasses.replace(config, batch_size=stored.get("batch_size", config.batch_size))


def regenerate(config: RunConfig, model: Model, programs: PairPrograms, index: int) -> list[str]:
    """Makes a sample again, with its neighbours of the same block, and writes nothing.

    Args:
        config: see `as_made`.
        model: the same.
        programs: on the devices of this host.
        index: of the sample.

    Returns:
        What differs, a line a part; nothing where every byte is the same.

    Raises:
        ValueError: there is no such sample, or the folder was made with other settings.
    """
    folder = open_folder(config.output)
    require_resumable(folder, config.settings_with(model))
    layout = ShardLayout(max(config.num_images, index + 1), config.shard_size, config.batch_size)
    stored = stored_record(folder, layout, index)
    first = int(layout.blocks_with(np.array([index]))[0])
    with tempfile.TemporaryDirectory() as scratch:
        again = open_folder(scratch)
        _, failures = make_block(config, model, programs, first, again)
        if reasons := [failure.reason for failure in failures if failure.index == index]:
            return [f"it fails now: {reasons[0]}"]
        made = stored_record(again, layout, index)
        changed = {
            part: _difference(folder, again, stored, made, part)
            for part in made["sha256"]
            if made["sha256"][part] != stored["sha256"].get(part)
        }
        return [*changed.values(), *_damages(folder, config, stored, set(changed))]


def _damages(
    folder: Folder, config: RunConfig, stored: dict[str, Any], told: set[str]
) -> list[str]:
    """What is wrong with a sample's own files, but for those of parts that are told already."""
    formats = make_formats(
        config.formats, config.class_names, soft=config.soft_masks, seeds=config.seed_maps
    )
    parts = {
        name: part
        for each in formats
        for name, part in each.sample_files(stored["index"]).items()
        if part not in told
    }
    faults = {
        name: fault_of(folder, name, {"sha256": stored["sha256"][part]})
        for name, part in parts.items()
    }
    return [f"{name}: {fault}" for name, fault in faults.items() if fault]


def _difference(
    folder: Folder, again: Folder, stored: dict[str, Any], made: dict[str, Any], part: str
) -> str:
    place = stored.get(part.split(".")[0])
    if not part.endswith(".png") or not str(place).endswith(".png"):
        return f"{part} has other bytes"
    before, now = (
        _pixels(f, record[part.split(".")[0]]) for f, record in ((folder, stored), (again, made))
    )
    if before.shape != now.shape:
        return f"{place} has the shape {before.shape}, now {now.shape}"
    changed = before != now
    largest = np.abs(before.astype(int) - now.astype(int)).max()
    if part == "mask.png":
        return f"{place}: {changed.mean():.4%} of the pixels have another class"
    return f"{place}: {changed.mean():.4%} of the values differ, by {largest} at most"


def _pixels(folder: Folder, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(folder.read(name))) as picture:
        return np.asarray(picture)
