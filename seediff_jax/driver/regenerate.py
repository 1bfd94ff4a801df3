"""Makes single blocks: to compare a sample with the stored one, or to measure a trial round."""

import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from seediff_jax.dataset.checksums import find_damage
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import require_resumable
from seediff_jax.dataset.shards import Dataset, find_record
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.make_dataset import prepare
from seediff_jax.driver.plan import Measured, run_formats
from seediff_jax.driver.sample_maker import Failure, PairMaker
from seediff_jax.driver.verify import DIFFERENT
from seediff_jax.files.folder import Folder, open_folder
from seediff_jax.models.model import Model
from seediff_jax.pipeline.mesh import local_rows_of
from seediff_jax.pipeline.programs import PairPrograms


def make_block(
    config: RunConfig, model: Model, programs: PairPrograms, first: int, folder: Folder
) -> tuple[float, list[Failure]]:
    """Makes one block of a run, the same on all devices, and writes it to another folder.

    Returns:
        The seconds that the devices took, without compilation, and the samples that failed.
    """
    count = max(config.num_images, first + config.batch_size)
    layout = ShardLayout(count, config.shard_size, config.batch_size)
    formats = run_formats(config)
    dataset = Dataset(folder, layout, formats, Path(folder.root))
    rows = len(local_rows_of(programs.mesh))
    maker = PairMaker(config, model, programs, dataset, np.zeros(count, bool), rows)
    maker.fetch(maker.start([first]))
    start = time.perf_counter()
    block = maker.fetch(maker.start([first]))[0]
    seconds = time.perf_counter() - start
    return seconds, maker.write(first, block)[1]


def measure(config: RunConfig, model: Model, programs: PairPrograms) -> Measured:
    """Measures the first block of a run, made in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = open_folder(scratch)
        seconds, failures = make_block(config, model, programs, 0, folder)
        files = [path for path in Path(scratch).rglob("*") if path.is_file()]
        written = sum(path.stat().st_size for path in files if path.name != "strip.png")
    made = min(config.batch_size, config.num_images) - len(failures)
    stats = jax.local_devices()[0].memory_stats() or {}
    return Measured(seconds, written / max(made, 1), stats.get("peak_bytes_in_use"))


def with_stored_batch_size(config: RunConfig, index: int) -> RunConfig:
    """Returns the config with the batch size of a sample, because rounding depends on it.

    Raises:
        UserError: there is no such sample, or the folder was made with other settings.
    """
    folder = open_folder(config.output)
    require_resumable(folder, config.settings())
    stored = find_record(folder, ShardLayout(index + 1, config.shard_size, 1), index)
    return dataclasses.replace(config, batch_size=stored["batch_size"])


def regenerate(config: RunConfig, model: Model, programs: PairPrograms, index: int) -> list[str]:
    """Makes the block of a sample again in a temporary folder, and compares the sample.

    Args:
        config: of the run, from `with_stored_batch_size`.
        model: of the run.
        programs: of the run.
        index: of the sample.

    Returns:
        What differs, one line per part; empty if every byte is the same.

    Raises:
        UserError: there is no such sample, or the folder was made with other settings.
    """
    folder = open_folder(config.output)
    require_resumable(folder, config.settings_with(model))
    layout = ShardLayout(max(config.num_images, index + 1), config.shard_size, config.batch_size)
    stored = find_record(folder, layout, index)
    first = int(layout.blocks_with(np.array([index]))[0])
    with tempfile.TemporaryDirectory() as scratch:
        again = open_folder(scratch)
        _, failures = make_block(config, model, programs, first, again)
        if reasons := [failure.reason for failure in failures if failure.index == index]:
            return [f"it fails now: {reasons[0]}"]
        made = find_record(again, layout, index)
        changed = {
            part: _difference(folder, again, stored, made, part)
            for part in made["sha256"]
            if made["sha256"][part] != stored["sha256"].get(part)
        }
        return [*changed.values(), *_damages(folder, config, stored, set(changed))]


def _damages(
    folder: Folder, config: RunConfig, stored: dict[str, Any], reported: set[str]
) -> list[str]:
    """Lists what is wrong with a sample's own files, except for parts that are reported already."""
    formats = run_formats(config)
    parts = {
        name: part
        for each in formats
        for name, part in each.sample_files(stored["index"]).items()
        if part not in reported
    }
    faults = {
        name: find_damage(folder, name, {"sha256": stored["sha256"][part]})
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


def regenerate_sample(config: RunConfig, index: int) -> int:
    """Makes a sample again and prints how it differs; returns the exit status."""
    config = with_stored_batch_size(config, index)
    differences = regenerate(*prepare(config, open_folder(config.output)), index)
    for line in differences or [f"sample {index} is the same to the byte"]:
        print(line)
    return DIFFERENT if differences else 0
