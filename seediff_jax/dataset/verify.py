"""Verifies a dataset folder: reports missing, damaged and changed files.

    summaries, lines, journals -> files of samples, of shards, of the run -> problems

Every file is compared with the hash that was computed before it was written, except `strip.png`,
which is only for people. Host only; needs no model.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from seediff_jax.dataset.checksums import FAILED, DamagedFile, find_damage, parse_record
from seediff_jax.dataset.complete import COMPLETE, MANIFEST, read_complete
from seediff_jax.dataset.formats.names import SOFT, kept_parts
from seediff_jax.dataset.layout import ShardLayout, parse_shard_name
from seediff_jax.dataset.settings_file import COPY, find_damaged_settings, read_sound_settings
from seediff_jax.dataset.shards import SCRATCH, Dataset, is_count, make_formats, read_summary
from seediff_jax.errors import UserError, listed, shown
from seediff_jax.files.folder import TEMPORARY, Folder

_OTHER_NAMES = {COPY.partition("/")[2], COMPLETE.partition("/")[2]}
_MOST_LISTED = 10
_INDEX = re.compile(rb'\{"index": (\d{1,18}),')


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something that is not as it was written.

    Attributes:
        name: of the file.
        text: what is wrong with it.
        shard: the shard that has to be finished again, or None.
        index: the sample that has to be made again, or None.
        is_damage: False for an incomplete run, which may be sound otherwise.
        needs_run: whether the command of the run has to be repeated to fix it.
    """

    name: str
    text: str
    shard: int | None = None
    index: int | None = None
    is_damage: bool = True
    needs_run: bool = True

    def __str__(self) -> str:
        return f"{shown(self.name)}: {self.text}"


def open_dataset(folder: Folder, settings: Mapping[str, Any]) -> Dataset:
    """Opens a dataset to read it; its settings do not say how many images it has.

    Raises:
        UserError: the settings lack something, or it is not of the right kind.
    """
    names = settings.get("format")
    is_sound = {
        "format": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "soft_masks": settings.get("soft_masks", 0) in (None, *SOFT),
        "seed_maps": isinstance(settings.get("seed_maps"), bool),
        "shard_size": is_count(settings.get("shard_size")) and settings["shard_size"] > 0,
    }
    if wrong := [name for name, sound in is_sound.items() if not sound]:
        raise UserError(f"the settings of {folder} lack {listed(wrong)}: they are damaged")
    formats = make_formats(names, settings["class_names"], kept_parts(settings))
    return Dataset(folder, ShardLayout(1, settings["shard_size"], 1), formats, Path())


def verify(folder: Folder, watch: Callable[[int], None] = lambda count: None) -> list[Problem]:
    """Checks a dataset folder; calls `watch` with the number of samples just checked.

    Returns:
        What is wrong, in the order of shards; empty where nothing is.

    Raises:
        UserError: the folder is not a dataset, or its settings are lost.
        OSError: it cannot be read at all.
    """
    settings = read_sound_settings(folder)
    dataset = open_dataset(folder, settings)
    damaged = find_damaged_settings(folder, settings)
    problems = [Problem(name, text, needs_run=False) for name, text in damaged.items()]
    complete, complete_problems = _read_complete(folder)
    count = complete["num_images"] if complete else None
    shards: dict[int, set[str]] = {}
    for name in folder.names("shards"):
        if parsed := parse_shard_name(name):
            shards.setdefault(parsed[0], set()).add(parsed[1])
        elif name not in _OTHER_NAMES and not name.startswith(SCRATCH):
            if not name.endswith(TEMPORARY):
                text = "is not a file of a dataset; remove it"
                problems.append(Problem(f"shards/{name}", text, needs_run=False))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for shard, kinds in sorted(shards.items()):
            problems += _ShardChecker(dataset, shard, kinds, count).check(pool, watch)
    problems += complete_problems
    if complete:
        layout = dataclasses.replace(dataset.layout, num_images=max(count, 1))
        problems += _find_missing_shards(layout, shards)
        problems += _check_files(folder, complete["files"])
    return problems


def _read_complete(folder: Folder) -> tuple[dict[str, Any] | None, list[Problem]]:
    if not folder.exists(COMPLETE):
        text = "missing: the run is not complete; run its command to resume"
        return None, [Problem(COMPLETE, text, is_damage=False)]
    try:
        return read_complete(folder), []
    except (DamagedFile, OSError) as error:
        return None, [Problem(COMPLETE, _reason(error))]


def _find_missing_shards(layout: ShardLayout, there: Mapping[int, set[str]]) -> Iterator[Problem]:
    missing = (shard for shard in range(layout.num_shards) if shard not in there)
    for shard in itertools.islice(missing, _MOST_LISTED):
        yield Problem(f"shards/{shard:05d}.json", "missing", shard)
    count = layout.num_shards - sum(shard < layout.num_shards for shard in there)
    if count > _MOST_LISTED:
        yield Problem(COMPLETE, f"lists {count - _MOST_LISTED} more shards that are missing")


def recover_records(folder: Folder, shard: int, indices: range) -> Iterator[dict[str, Any]]:
    """Reads the sound records of a shard from its lines; lost ones from the lists of the run."""
    found = set()
    for name in (f"shards/{shard:05d}.jsonl", MANIFEST, "failed.jsonl"):
        if len(found) == len(indices):
            return
        with suppress(OSError):
            for line in folder.read(name).splitlines():
                match = _INDEX.match(line)
                if match and int(match[1]) in indices and int(match[1]) not in found:
                    with suppress(ValueError):  # a damaged line
                        record = parse_record(line)
                        found.add(record["index"])
                        yield record


def _check_files(
    folder: Folder, files: Mapping[str, Mapping[str, Any]], shard: int | None = None
) -> Iterator[Problem]:
    for name, facts in files.items():
        if text := find_damage(folder, name, facts):
            yield Problem(name, text, shard)


def _reason(error: DamagedFile | OSError) -> str:
    if isinstance(error, DamagedFile):
        return error.reason
    return f"cannot be read ({shown(error.strerror or str(error))})"


class _ShardChecker:
    """Checks one shard.

    Args:
        kinds: which files of it exist, see `parse_shard_name`.
        num_images: samples of a complete run, or None.
    """

    def __init__(self, dataset: Dataset, shard: int, kinds: set[str], num_images: int | None):
        self.dataset, self.folder, self.shard, self.kinds = dataset, dataset.folder, shard, kinds
        self.num_images, self.problems = num_images, []
        self.stem, self.full = f"shards/{shard:05d}", dataset.layout.full_shard(shard)

    def check(self, pool: ThreadPoolExecutor, watch: Callable[[int], None]) -> list[Problem]:
        """Returns the problems of the shard."""
        summaries = sorted({"json", "open.json"} & self.kinds)
        for kind in summaries:
            self._check_summary(f"{self.stem}.{kind}")
        from_lines = self._read_lines() if summaries else {}
        from_journal = {}
        if "json" not in self.kinds:
            from_journal = self._read_journal()
            if lost := sorted(from_lines.keys() - from_journal.keys()):
                self._add(f"{self.stem}.journal", f"lacks the samples {listed(lost)}")
            if self.num_images is not None and not summaries:
                self._add(f"{self.stem}.json", "missing")
        self._check_indices(from_lines if "json" in self.kinds else from_journal)
        known = from_lines | from_journal
        if summaries and len(known) < len(self.full):
            # The files of samples whose lines are lost are checked, too.
            found = recover_records(self.folder, self.shard, self.full)
            known = {record["index"]: record for record in found} | known
        records = [record for record in known.values() if FAILED not in record]
        for found in pool.map(self._check_sample, records):
            self.problems += found
            watch(1)
        return self.problems

    def _add(self, name: str, text: str, index: int | None = None) -> None:
        self.problems.append(Problem(name, text, self.shard, index))

    def _check_summary(self, name: str) -> None:
        try:
            files = read_summary(self.folder, name)["files"]
        except (DamagedFile, OSError) as error:
            return self._add(name, _reason(error))
        if f"{self.stem}.jsonl" not in files:
            self._add(name, f"does not list {self.stem}.jsonl")
        self.problems += _check_files(self.folder, files, self.shard)

    def _read_lines(self) -> dict[int, Mapping[str, Any]]:
        """Reads the records of the lines that are sound, by index."""
        name, records = f"{self.stem}.jsonl", {}
        is_told = any(problem.name == name for problem in self.problems)
        try:
            lines = self.folder.read(name).splitlines()
        except OSError as error:
            if not is_told:
                self._add(name, _reason(error))
            return {}
        for number, line in enumerate(lines, 1):
            try:
                record = parse_record(line)
            except ValueError as error:
                if not is_told:
                    self._add(name, f"line {number} {shown(str(error))}")
                continue
            if records.setdefault(record["index"], record) is not record and not is_told:
                self._add(name, f"line {number} has sample {record['index']} again")
        return records

    def _read_journal(self) -> dict[int, Mapping[str, Any]]:
        journal, records = self.dataset.journal(self.shard), {}
        try:
            entries = journal.entries()
            for name in journal.unknown_names():
                text = "is not a file of this journal; it is not read"
                self._add(f"{journal.path}/{name}", text)
        except OSError as error:
            self._add(journal.path, _reason(error))
            return {}
        for first, count in entries:
            try:
                records |= {s.index: s.record for s in journal.read(first, count)}
            except (DamagedFile, OSError) as error:
                self._add(journal.name(first, count), _reason(error))
        return records

    def _check_indices(self, records: Mapping[int, Any]) -> None:
        """Compares the indices of records with those that the layout gives to the shard."""
        wanted, is_whole = self.full, "json" in self.kinds
        if self.num_images is not None:
            wanted, is_whole = range(wanted.start, min(wanted.stop, self.num_images)), True
        name = f"{self.stem}.jsonl" if "json" in self.kinds else f"{self.stem}.journal"
        if any(problem.name.startswith(name) for problem in self.problems):
            return
        if others := sorted(index for index in records if index not in wanted):
            self._add(name, f"has the samples {listed(others)}, which are not of this shard")
        if is_whole and (count := len(wanted) - sum(index in wanted for index in records)):
            missing = (index for index in wanted if index not in records)
            first = listed(itertools.islice(missing, _MOST_LISTED))
            self._add(name, f"lacks {count} samples of its shard: {first}")

    def _check_sample(self, record: Mapping[str, Any]) -> list[Problem]:
        found = []
        index, hashes = record["index"], record["sha256"]
        for each in self.dataset.formats:
            for path, part in each.sample_files(index).items():
                text = f"its record has no hash of {part}: it was written with other formats"
                if part in hashes:
                    text = find_damage(self.folder, path, {"sha256": hashes[part]})
                if text:
                    found.append(Problem(path, text, self.shard, index))
        return found
