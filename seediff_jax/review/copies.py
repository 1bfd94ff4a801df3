"""Copies samples of a complete dataset to a new one, unchanged or with other parts.

    Finished, indices -> Copier.copy, sample by sample -> Dataset -> complete_run

The new dataset is like that of a run: `verify` and all readers accept it. Its samples have new
indices; `source_index` of a record is the index in the run that made it.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.dataset.complete import MANIFEST, complete_counts, complete_run, mark_incomplete
from seediff_jax.dataset.encoding import PARTS, EncodedSample, Sample, encode
from seediff_jax.dataset.formats.names import kept_parts
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.lock import hold_lock
from seediff_jax.dataset.read_back import PartSource
from seediff_jax.dataset.resume import (
    find_existing,
    remove_leftovers,
    require_resumable,
    unfinished_shards,
)
from seediff_jax.dataset.settings_file import FILTERS, write_settings
from seediff_jax.dataset.shards import Dataset, make_formats, scratch_folder
from seediff_jax.errors import UserError
from seediff_jax.files.folder import Folder
from seediff_jax.review.finished import Finished

Record = Mapping[str, Any]
Sources = Sequence[PartSource]

_AT_A_TIME = 16
_PLACES = {part.split(".")[0] for part in PARTS}
"""Keys of a record that say where files of the sample are."""


def copied_from(source: Finished, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of settings.json with the source of a copy and the options that made it."""
    manifest = source.complete["files"].get(MANIFEST, {})
    new = {
        "source": source.folder.url,
        "source_manifest_sha256": manifest.get("sha256"),
        **asked,
    }
    return {FILTERS: [*source.settings.get(FILTERS, []), new]}


class Copier:
    """Makes the samples of a new dataset from those of another; copies parts byte for byte.

    Args:
        source: the dataset.
        indices: of the samples to copy; sample k of the new dataset is sample `indices[k]`.
    """

    def __init__(self, source: Finished, indices: np.ndarray):
        self.source, self.indices = source, indices

    def copy(self, place: int, record: Record, parts: set[str], sources: Sources) -> EncodedSample:
        """Makes a sample.

        Args:
            place: its index in the new dataset.
            record: of the sample.
            parts: that the new dataset needs.
            sources: where to read the parts of the sample.
        """
        there = parts & record["sha256"].keys()
        files = self.source.read_parts(record, there, sources)
        if missing := parts - there:
            image, mask = self.source.read_pixels(record, sources)
            files |= encode(Sample(record["index"], image, mask, dict(record)), missing).files
        return copied_sample(place, record, files)

    def samples(
        self, exists: np.ndarray, parts: set[str], scratch: Path
    ) -> Iterator[list[EncodedSample]]:
        """Yields the samples that do not exist yet, in groups that each belong to one shard.

        Args:
            exists: bool `[len(indices)]`.
            parts: that the new dataset needs.
            scratch: folder for copies.
        """
        size = self.source.layout.shard_size
        places = {int(self.indices[k]): int(k) for k in np.flatnonzero(~exists)}
        batch: list[EncodedSample] = []
        for record, sources in self.source.sources(places, scratch):
            sample = self.copy(places[record["index"]], record, parts, sources)
            is_full = len(batch) == _AT_A_TIME
            if batch and (is_full or sample.index // size != batch[0].index // size):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch


def copied_sample(place: int, record: Record, files: Mapping[str, bytes]) -> EncodedSample:
    """Makes a sample from the record of another one and from parts."""
    new_record = {
        name: value
        for name, value in record.items()
        if name not in {"index", "sha256", "crc32", *_PLACES}
    }
    new_record.setdefault("source_index", record["index"])
    return EncodedSample(place, new_record, {part: files[part] for part in PARTS if part in files})


def write_copy(copier: Copier, folder: Folder, settings: Mapping[str, Any]) -> None:
    """Writes a new dataset of copies, or resumes if an earlier call was stopped.

    Args:
        copier: makes the samples.
        folder: of the new dataset.
        settings: of the new dataset.

    Raises:
        UserError: the folder lies within the source, or holds something else.
        OSError: a file cannot be read or written.
    """
    _require_apart(copier.source.folder, folder)
    formats = make_formats(settings["format"], settings["class_names"], kept_parts(settings))
    layout = ShardLayout(len(copier.indices), settings["shard_size"], 1)
    require_resumable(folder, settings)
    with hold_lock(folder):
        require_resumable(folder, settings)
        if complete_counts(folder) is None:  # else there may be nothing to do
            write_settings(folder, settings)
        folder.make("shards")
        remove_leftovers(folder)
        with scratch_folder(folder, "filter") as scratch:
            dataset = Dataset(folder, layout, formats, scratch)
            exists = find_existing(folder, layout)
            if exists.all() and complete_counts(folder) is not None:
                return
            mark_incomplete(folder)
            parts = {part for each in formats for part in each.parts}
            for samples in copier.samples(exists, parts, scratch):
                dataset.write(samples)
            for shard in unfinished_shards(folder, layout, find_existing(folder, layout)):
                dataset.finish(shard)
            complete_run(dataset, settings["class_names"], str(settings.get("model")))


def _require_apart(source: Folder, folder: Folder) -> None:
    places = [
        each.root if each.local is None else str(each.local.resolve()) for each in (source, folder)
    ]
    if Path(places[1]).is_relative_to(places[0]):
        raise UserError(
            f"output={folder} is within {source}, which is only read; choose another folder"
        )
