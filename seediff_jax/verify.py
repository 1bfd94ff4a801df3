"""Reads a dataset folder again, all of it, and tells what is missing, damaged or different.

    seals, lines, journals -> samples' own files, shard files, whole lists -> problems

Everything is compared with hashes that were taken before it was written, but for `strip.png`, which
is for people alone. Host only; needs no model.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from seediff_jax.closing import CLOSED
from seediff_jax.dataset import FAILED, make_formats
from seediff_jax.folder_settings import read_copy, settings_files
from seediff_jax.formats import Format
from seediff_jax.journal import Journal
from seediff_jax.seals import DamagedFile, fault_of, read_seal
from seediff_jax.storage import Folder

_NEEDED = ("formats", "soft_masks", "seed_maps", "shard_size")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        name: of the file.
        text: what is wrong with it.
        shard: to make again for its sake, or None where only whole lists are.
    """

    name: str
    text: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.text}"


def verify(folder: Folder, watch: Callable[[int], None] = lambda count: None) -> list[Problem]:
    """Checks a dataset folder.

    Args:
        folder: a run's output.
        watch: told of every number of samples that were checked.

    Returns:
        What is wrong, in the order of shards; nothing where all is well.

    Raises:
        ValueError: the folder is no dataset of this program.
        OSError: it cannot be read at all.
    """
    settings = read_copy(folder)
    if missing := [name for name in _NEEDED if name not in settings]:
        raise ValueError(f"the settings of {folder} lack {', '.join(missing)}: they are damaged")
    formats = make_formats(
        settings["formats"],
        settings["class_names"],
        soft=settings["soft_masks"],
        seeds=settings["seed_maps"],
    )
    names = folder.names("shards")
    numbers = {name.split(".")[0] for name in names}
    shards = sorted(int(number) for number in numbers if number.isdigit())
    problems = _check_settings(folder, settings)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard in shards:
            problems += _check_shard(folder, names, shard, formats, pool, watch)
    return problems + _check_lists(folder, shards, settings["shard_size"])


def repair(folder: Folder, problems: Sequence[Problem]) -> int:
    """Forgets what is damaged, so that the command of the run makes it again.

    Returns:
        Number of shards whose samples will be made again.
    """
    if problems:
        folder.remove(CLOSED)
    named = {problem.name for problem in problems}
    for name, content in settings_files(read_copy(folder)).items():
        if name in named:
            folder.write(name, content)
    shards = {problem.shard for problem in problems} - {None}
    for shard in sorted(shards):
        for name in (f"{shard:05d}.json", f"{shard:05d}.open.json"):
            folder.remove(f"shards/{name}")
        Journal(folder, shard).remove()
    return len(shards)


def _check_settings(folder: Folder, settings: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for name, content in settings_files(settings).items():
        facts = {"sha256": hashlib.sha256(content).hexdigest()}
        if text := fault_of(folder, name, facts):
            problems.append(Problem(name, text))
    return problems


def _check_shard(
    folder: Folder,
    names: Sequence[str],
    shard: int,
    formats: Sequence[Format],
    pool: ThreadPoolExecutor,
    watch: Callable[[int], None],
) -> list[Problem]:
    stem, problems = f"shards/{shard:05d}", []
    seals = [name for name in (f"{shard:05d}.json", f"{shard:05d}.open.json") if name in names]
    for name in seals:
        try:
            files = read_seal(folder, f"shards/{name}")["files"]
        except (OSError, DamagedFile) as error:
            problems.append(Problem(f"shards/{name}", getattr(error, "reason", str(error)), shard))
            continue
        for path, facts in files.items():
            if text := fault_of(folder, path, facts):
                problems.append(Problem(path, text, shard))
    records: list[Mapping[str, Any]] = []
    try:
        if not seals or f"{shard:05d}.journal" in names:
            records.extend(sample.record for sample in Journal(folder, shard).samples())
        elif not any(problem.name == f"{stem}.jsonl" for problem in problems):
            records.extend(map(json.loads, folder.read(f"{stem}.jsonl").splitlines()))
    except (OSError, ValueError) as error:
        problems.append(Problem(f"{stem}.journal", str(error), shard))

    def check(record: Mapping[str, Any]) -> list[Problem]:
        found = []
        for each in formats:
            for path, part in each.sample_files(record["index"]).items():
                if text := fault_of(folder, path, {"sha256": record["sha256"][part]}):
                    found.append(Problem(path, text, shard))
        return found

    for found in pool.map(check, (record for record in records if FAILED not in record)):
        problems += found
        watch(1)
    return problems


def _check_lists(folder: Folder, shards: Sequence[int], shard_size: int) -> list[Problem]:
    """Whole lists of a complete folder, and whether there is a shard for every sample."""
    if not folder.exists(CLOSED):
        return [Problem(CLOSED, "missing: the run is not complete; its command goes on with it")]
    try:
        closed = json.loads(folder.read(CLOSED))
        files, count = closed["files"], closed["num_images"]
    except (ValueError, TypeError, KeyError) as error:
        return [Problem(CLOSED, f"cannot be read ({error})")]
    problems = [
        Problem(f"shards/{shard:05d}.json", "missing", shard)
        for shard in sorted(set(range(-(-count // shard_size))) - set(shards))
    ]
    for path, facts in files.items():
        if text := fault_of(folder, path, facts):
            problems.append(Problem(path, text))
    return problems
