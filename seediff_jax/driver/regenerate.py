"""Makes single blocks, and compares a sample that is made again with the stored one."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.dataset.checksums import find_damage
from seediff_jax.dataset.encoding import decode_png
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import require_resumable
from seediff_jax.dataset.shards import Dataset, find_record
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.make_dataset import prepare
from seediff_jax.driver.plan import run_formats
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
    dataset = Dataset(folder, layout, run_formats(config), Path(folder.root))
    rows = len(local_rows_of(programs.mesh))
    maker = PairMaker(config, model, programs, dataset, np.zeros(count, bool), rows)
    maker.fetch(maker.start([first]))
    start = time.perf_counter()
    block = maker.fetch(maker.start([first]))[0]
    seconds = time.perf_counter() - start
    return seconds, maker.write(first, block)[1]


def regenerate_sample(config: RunConfig, index: int) -> int:
    """Makes a sample again and prints how it differs; returns the exit status.

    Raises:
        UserError: there is no such sample, or the folder was made with other settings.
    """
    folder = open_folder(config.output)
    require_resumable(folder, config.settings())
    stored = find_record(folder, ShardLayout(index + 1, config.shard_size, 1), index)
    # Rounding depends on the batch size.
    config = dataclasses.replace(config, batch_size=stored["batch_size"])
    differences = _find_differences(*prepare(config, folder), folder, stored)
    for line in differences or [f"sample {index} is the same to the byte"]:
        print(line)
    return DIFFERENT if differences else 0


def _find_differences(
    config: RunConfig, model: Model, programs: PairPrograms, folder: Folder, stored: dict[str, Any]
) -> list[str]:
    """Makes the block of a sample in a temporary folder; what differs, one line per part."""
    require_resumable(folder, config.settings_with(model))
    index = stored["index"]
    layout = ShardLayout(max(config.num_images, index + 1), config.shard_size, config.batch_size)
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
    damages = []
    for each in run_formats(config):
        for name, part in each.sample_files(index).items():
            if part not in changed:
                damage = find_damage(folder, name, {"sha256": stored["sha256"][part]})
                damages += [f"{name}: {damage}"] if damage else []
    return [*changed.values(), *damages]


def _difference(
    folder: Folder, again: Folder, stored: dict[str, Any], made: dict[str, Any], part: str
) -> str:
    key = part.split(".")[0]
    place = stored.get(key)
    if not part.endswith(".png") or not str(place).endswith(".png"):
        return f"{part} has other bytes"
    before = decode_png(folder.read(place))
    now = decode_png(again.read(made[key]))
    if before.shape != now.shape:
        return f"{place} has the shape {before.shape}, now {now.shape}"
    changed = before != now
    largest = np.abs(before.astype(int) - now.astype(int)).max()
    if part == "mask.png":
        return f"{place}: {changed.mean():.4%} of the pixels have another class"
    return f"{place}: {changed.mean():.4%} of the values differ, by {largest} at most"
