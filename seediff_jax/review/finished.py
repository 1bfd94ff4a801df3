"""Opens a complete dataset for reading: its settings, counts, and the records of its samples."""

import contextlib
import dataclasses
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.checksums import FAILED, read_checked, read_record
from seediff_jax.dataset.complete import COMPLETE, FAILED_LIST, read_complete
from seediff_jax.dataset.encoding import decode_png
from seediff_jax.dataset.formats import Format
from seediff_jax.dataset.formats.names import ATTENTION_PART, OTHER_METHODS_PART
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.read_back import PartSource, part_sources, recover_parts
from seediff_jax.dataset.settings_file import read_dataset_settings
from seediff_jax.dataset.shards import Dataset, read_records
from seediff_jax.dataset.verify import open_dataset
from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import Folder


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished dataset, which is only read.

    Attributes:
        folder: where it is.
        settings: of its run, as settings.json has them.
        complete: as `read_complete` returns it.
        formats: of its files.
        layout: its shards.
    """

    folder: Folder
    settings: Mapping[str, Any]
    complete: Mapping[str, Any]
    formats: Sequence[Format]
    layout: ShardLayout

    @property
    def class_names(self) -> list[str]:
        """The class of id k + 1 is at position k."""
        return self.settings["class_names"]

    @property
    def method_names(self) -> list[str]:
        """The methods whose masks there are; the first made those of the dataset."""
        methods = self.settings.get("mask_method", "")
        return [methods] if isinstance(methods, str) else methods

    def presence(self, record: Mapping[str, Any]) -> Any:
        """The presence of each class of a record, or None for a class without.

        Older releases recorded none. By cross_attention it is always 1 without draws of noise,
        which says nothing.
        """
        found, draws = record.get("presence"), self.settings.get("presence_draws")
        if found is None or (self.method_names[0] == "cross_attention" and not draws):
            return [None] * len(record.get("class_ids") or ())
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """Reads the records of all samples by index, without those that failed.

        Raises:
            DamagedFile: a file is not as it was written.
            OSError: a file cannot be read.
        """
        return Dataset(self.folder, self.layout, [], Path()).records()

    def failed_records(self) -> Iterator[dict[str, Any]]:
        """Reads the records of the samples that failed, which say why.

        Raises:
            DamagedFile: the file is not as it was written.
            OSError: the file cannot be read.
        """
        if facts := self.complete["files"].get(FAILED_LIST):
            for line in read_checked(self.folder, FAILED_LIST, facts).splitlines():
                record = read_record(self.folder, FAILED_LIST, line)
                if FAILED in record:
                    yield record

    def sources(
        self, indices: Collection[int], scratch: Path
    ) -> Iterator[tuple[dict[str, Any], Sequence[PartSource]]]:
        """Reads the records of some samples by index, and tells where their parts can be read.

        Args:
            indices: of the samples.
            scratch: folder for copies of files.

        Raises:
            DamagedFile: a file is not as it was written.
            OSError: a file cannot be read.
        """
        size = self.layout.shard_size
        for shard in sorted({index // size for index in indices}):
            kind = "" if self.layout.is_full(shard) else "open."
            stem = f"shards/{shard:05d}"
            sources = part_sources(self.folder, self.formats, shard, scratch)
            for record in read_records(self.folder, f"{stem}.{kind}json", f"{stem}.jsonl"):
                if record["index"] in indices:
                    yield record, sources

    def read_parts(
        self, record: Mapping[str, Any], parts: Collection[str], sources: Sequence[PartSource]
    ) -> dict[str, bytes]:
        """Reads parts of a sample.

        Raises:
            UserError: one of them is missing or damaged.
        """
        found = recover_parts(record, parts, sources)
        if found is None:
            raise UserError(
                f"sample {record['index']} of {self.folder} is damaged; `seediff verify "
                f"{self.folder}` says which files are"
            )
        return found

    def read_pixels(
        self, record: Mapping[str, Any], sources: Sequence[PartSource]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads the image, uint8 `[H, W, 3]`, and the class ids of a sample, uint8 `[H, W]`.

        Raises:
            UserError: one of them is missing or damaged.
        """
        hashes = record["sha256"]
        image, mask = (
            next((name for name in names if name in hashes), names[0])
            for names in (("image.png", "image.jpg"), ("mask.png", "mask_grey.png"))
        )
        found = self.read_parts(record, (image, mask), sources)
        with self.decoding(record), Image.open(io.BytesIO(found[image])) as picture:
            pixels, ids = np.asarray(picture.convert("RGB")), decode_png(found[mask])
            if ids.shape != pixels.shape[:2] or ids.dtype != np.uint8:
                raise ValueError(f"its mask is {ids.dtype} {list(ids.shape)}")
        return pixels, ids

    def read_other_masks(
        self, record: Mapping[str, Any], sources: Sequence[PartSource]
    ) -> np.ndarray | None:
        """Reads the class ids by the run's further methods, uint8 `[m, H, W]`, if there are any.

        Raises:
            UserError: they are damaged.
        """
        if OTHER_METHODS_PART not in record["sha256"]:
            return None
        content = self.read_parts(record, (OTHER_METHODS_PART,), sources)[OTHER_METHODS_PART]
        with self.decoding(record):
            stacked = decode_png(content)
            return stacked.reshape(len(record["other_methods"]), -1, stacked.shape[1])

    def read_attention(
        self, record: Mapping[str, Any], sources: Sequence[PartSource]
    ) -> AttentionMaps:
        """Reads the attention of a sample: one column per class, without the axis of a batch.

        Raises:
            UserError: it is missing or damaged.
        """
        content = self.read_parts(record, (ATTENTION_PART,), sources)[ATTENTION_PART]
        with self.decoding(record):
            maps = AttentionMaps.load(io.BytesIO(content))
            shape, count = maps.cross_attention.shape, len(record["class_ids"])
            if len(shape) != 3 or shape[2] != count:
                raise ValueError(f"attention of shape {list(shape)} is not that of {count} classes")
        return maps

    @contextlib.contextmanager
    def decoding(self, record: Mapping[str, Any]) -> Iterator[None]:
        """Turns any exception of the block, which decodes a sample, into a UserError."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:
            reason = shown(f"{type(error).__name__}: {error}", 200)
            raise UserError(
                f"sample {record['index']} of {self.folder} cannot be used: {reason}"
            ) from error

    def samples(
        self, indices: Collection[int], scratch: Path
    ) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
        """Reads the record, the image and the class ids of some samples, by index."""
        for record, sources in self.sources(indices, scratch):
            yield record, *self.read_pixels(record, sources)


def open_finished(folder: Folder) -> Finished:
    """Opens a dataset whose run is complete.

    Raises:
        UserError: it is not a dataset of this package, or not complete, or damaged.
        OSError: it cannot be read.
    """
    settings = read_dataset_settings(folder)
    if not folder.exists(COMPLETE):
        raise UserError(
            f"the run of {folder} is not complete; run its command to the end, then try again"
        )
    complete, dataset = read_complete(folder), open_dataset(folder, settings)
    layout = dataclasses.replace(dataset.layout, num_images=max(complete["num_images"], 1))
    return Finished(folder, settings, complete, dataset.formats, layout)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassFacts:
    """Facts from the records about every class of every sample: m classes in n samples.

    Attributes:
        indices: of the samples, int64 `[n]`, ascending.
        samples: position in `indices` of the sample of each class, int64 `[m]`.
        class_ids: int64 `[m]`.
        scores: in [0, 1], float64 `[m]`.
        areas: share of the image, in [0, 1], float64 `[m]`.
        presence: in [0, 1], float64 `[m]`; NaN for a class without, see `Finished.presence`.
    """

    indices: np.ndarray
    samples: np.ndarray
    class_ids: np.ndarray
    scores: np.ndarray
    areas: np.ndarray
    presence: np.ndarray


def read_class_facts(finished: Finished) -> ClassFacts:
    """Collects the facts of all samples; takes about 50 bytes per class of a sample.

    Raises:
        UserError: a record lacks them, or has them in another form.
        OSError: a file cannot be read.
    """
    indices: list[int] = []
    samples: list[int] = []
    facts: tuple[list[float], ...] = ([], [], [], [])
    for record in finished.records():
        columns = [record.get(name) for name in ("class_ids", "scores", "area_fractions")]
        columns.append(finished.presence(record))
        if not _are_columns(columns, len(finished.class_names)):
            raise UserError(
                f"the record of sample {record['index']} of {finished.folder} has no scores and "
                "areas of its classes, or a presence of another form; another program or release "
                "wrote it"
            )
        samples += [len(indices)] * len(columns[0])
        indices.append(record["index"])
        for all_values, values in zip(facts, columns, strict=True):
            all_values += values
    return ClassFacts(
        np.array(indices, np.int64),
        np.array(samples, np.int64),
        np.array(facts[0], np.int64),
        *(np.array(values, np.float64) for values in facts[1:]),
    )


def _are_columns(columns: Sequence[Any], num_classes: int) -> bool:
    """Whether they are class ids, scores, areas and presence of equal length."""
    if not all(isinstance(each, list) and len(each) == len(columns[0]) for each in columns):
        return False
    class_ids, *shares, presence = columns
    shares.append([value for value in presence if value is not None])
    return all(type(each) is int and 1 <= each <= num_classes for each in class_ids) and all(
        type(value) in (int, float) and abs(value) < 2 for values in shares for value in values
    )
