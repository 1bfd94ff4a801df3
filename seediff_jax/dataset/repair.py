"""Repairs a dataset folder: removes damaged files, so that the run's command makes them again.

A finished shard becomes a journal again, without the damaged samples. The parts of the others are
read back from the files of the shard, and kept if their hashes are right.
"""

import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from seediff_jax.dataset.checksums import FAILED
from seediff_jax.dataset.complete import mark_incomplete
from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.read_back import part_sources, recover_parts
from seediff_jax.dataset.settings_file import read_sound_settings, settings_files
from seediff_jax.dataset.shards import Dataset
from seediff_jax.dataset.verify import Problem, open_dataset, recover_records
from seediff_jax.files.folder import Folder

_CHUNK = 16


def repair(folder: Folder, problems: Sequence[Problem]) -> int:
    """Removes what `verify` found damaged; the caller holds the lock of the folder.

    Returns:
        Number of samples that the command of the run will make again.

    Raises:
        UserError: the settings are lost.
    """
    settings = read_sound_settings(folder)
    dataset = open_dataset(folder, settings)
    if any(problem.is_damage and problem.needs_run for problem in problems):
        mark_incomplete(folder)
    named = {problem.name for problem in problems}
    for name, content in settings_files(settings).items():
        if name in named:
            folder.write(name, content)
    damaged: dict[int, set[int]] = {}
    for problem in problems:
        if problem.shard is not None:
            indices = damaged.setdefault(problem.shard, set())
            indices |= set() if problem.index is None else {problem.index}
    with tempfile.TemporaryDirectory() as scratch:
        return sum(
            _repair_shard(dataset, shard, indices, Path(scratch))
            for shard, indices in sorted(damaged.items())
        )


def _repair_shard(dataset: Dataset, shard: int, damaged: Collection[int], scratch: Path) -> int:
    """Moves the sound samples of a shard to its journal; returns how many are lost."""
    full, stem = dataset.layout.full_shard(shard), f"shards/{shard:05d}"
    folder, journal = dataset.folder, dataset.journal(shard)
    before = len(full) if folder.exists(f"{stem}.json") else len(journal.indices())
    journal.remove_damaged(damaged)
    known = {*damaged, *journal.indices()}
    chunk: list[EncodedSample] = []
    for sample in _recover(dataset, shard, scratch):
        if sample.index in full and sample.index not in known:
            known.add(sample.index)
            chunk.append(sample)
        if len(chunk) == _CHUNK:
            journal.add(chunk)
            chunk = []
    journal.add(chunk)
    # Last, so that a repair that is killed can be repeated.
    for kind in ("json", "open.json"):
        folder.remove(f"{stem}.{kind}")
    return max(before - len(journal.indices()), 0)


def _recover(dataset: Dataset, shard: int, scratch: Path) -> Iterator[EncodedSample]:
    """Reads samples back from the lines and the other files of a shard, in the order of lines."""
    sources = part_sources(dataset.folder, dataset.formats, shard, scratch)
    for record in recover_records(dataset.folder, shard, dataset.layout.full_shard(shard)):
        if FAILED in record:
            yield EncodedSample(record["index"], record, {})
        elif (found := recover_parts(record, dataset.shard_parts, sources)) is not None:
            yield EncodedSample(record["index"], record, found)
