"""Opens a folder of samples, in whatever layout: VOC's, COCO's, or a dataset of this project."""

import functools
import pathlib
import tarfile
from collections.abc import Mapping
from typing import Any

import grain
import msgpack
import numpy as np

from experiments.segmenter.coco import CocoSamples
from experiments.segmenter.data import LabelledSamples, VocSamples
from seediff_jax.dataset.formats.voc import split_indices
from seediff_jax.dataset.read_back import PartSource, part_sources
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.review.finished import open_finished

_TAR_PARTS = {"jpg": "image.jpg", "mask.png": "mask_grey.png"}
_SHARDS_IN_MEMORY = 8


def open_samples(folder: pathlib.Path, split: str, stuff: bool = False) -> LabelledSamples:
    """Opens a split of a folder.

    Args:
        folder: VOC2012 or VOCdevkit; COCO, with `annotations`; or what `seediff --output` names, or
            `voc` or `coco` in it.
        split: "train", "val", or another list that a folder in VOC's layout has.
        stuff: whether to read the stuff of COCO, too.

    Raises:
        UserError: the layout is none of these, or the folder lacks something.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist")
    for place in (folder, folder / "VOC2012", folder / "VOCdevkit" / "VOC2012"):
        if (place / "ImageSets" / "Segmentation").is_dir():
            return VocSamples(place, split)
    if (folder / "annotations").is_dir():
        return CocoSamples(folder, split, stuff=stuff)
    if (folder / "settings.json").is_file():
        return RunSamples(folder, split)
    raise UserError(
        f"{folder} has neither ImageSets/Segmentation (VOC) nor annotations (COCO) nor "
        "settings.json (a dataset of seediff); give the folder that has one of them"
    )


def require_labels_of(samples: LabelledSamples, names: tuple[str, ...], owner: str) -> None:
    """Refuses samples whose labels are not those of the owner, and says which differ.

    Raises:
        UserError: a label has another name, or one is missing.
    """
    for k in range(max(len(names), len(samples.label_names))):
        both = (samples.label_names, names)
        theirs, ours = (repr(found[k]) if k < len(found) else "missing" for found in both)
        if theirs != ours:
            raise UserError(
                f"label {k} is {theirs} in {samples.folder} and {ours} in {owner}; both need the "
                "same list of classes"
            )


class RunSamples:
    """Samples of a finished dataset of this project, in any of its formats.

    Files are compared with the hashes that the dataset keeps of them.

    Args:
        folder: of the dataset, with settings.json.
        split: "train", "val" or "trainval", as the lists of its `voc` have them.

    Raises:
        UserError: the dataset is not complete, or is damaged.
    """

    def __init__(self, folder: pathlib.Path, split: str = "train"):
        self.folder = folder
        self._finished = finished = open_finished(open_folder(folder))
        self.label_names = ("background", *finished.class_names)
        records = [{k: each[k] for k in ("index", "sha256")} for each in finished.records()]
        splits = split_indices(np.array([each["index"] for each in records], np.int64))
        if split not in splits:
            raise UserError(f"split={split} must be one of {', '.join(splits)} for {folder}")
        chosen = {*splits[split].tolist()}
        self._records = [each for each in records if each["index"] in chosen]
        if not self._records:
            raise UserError(f"{folder} has no samples")
        formats = {form.name: form for form in finished.formats}
        self._sources: list[PartSource] = []
        if formats.pop("webdataset", None):
            self._sources.append(_tar_source(folder / "webdataset"))
        if formats.pop("array_record", None):
            positions = {each["index"]: k for k, each in enumerate(records)}
            self._sources.append(_record_source(folder / "array_record", positions))
        self._shard_sources = functools.lru_cache(maxsize=_SHARDS_IN_MEMORY)(
            lambda shard: part_sources(finished.folder, [*formats.values()], shard, folder)
        )

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """The index of a sample in its run, and the folder."""
        return f"sample {self._records[index]['index']} of {self.folder}"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the image, uint8 `[h, w, 3]`, and its label map, uint8 `[h, w]`.

        Raises:
            UserError: a file of it is missing or damaged.
        """
        record = self._records[index]
        shard = record["index"] // self._finished.layout.shard_size
        sources = [*self._sources, *self._shard_sources(shard)]
        return self._finished.read_pixels(record, sources)


def _tar_source(folder: pathlib.Path) -> PartSource:
    """Reads images and masks from tar files, whose headers alone are read beforehand."""
    places: dict[int, dict[str, tuple[pathlib.Path, int, int]]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                index, _, ending = member.name.partition(".")
                if ending in _TAR_PARTS:
                    place = (path, member.offset_data, member.size)
                    places.setdefault(int(index), {})[_TAR_PARTS[ending]] = place

    def recover(record: Mapping[str, Any]) -> dict[str, bytes]:
        parts = {}
        for part, (path, start, size) in places[record["index"]].items():
            with open(path, "rb") as file:
                file.seek(start)
                parts[part] = file.read(size)
        return parts

    return recover


def _record_source(folder: pathlib.Path, positions: Mapping[int, int]) -> PartSource:
    """Reads images and masks from ArrayRecord files, in any order."""
    paths = sorted(map(str, folder.glob("*.array_record")))
    source = grain.sources.ArrayRecordDataSource(paths)
    return lambda record: msgpack.unpackb(source[positions[record["index"]]])
