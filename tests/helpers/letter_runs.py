"""Runs of eight samples in three shards, in a format of letters; one sample fails; one thread."""

import dataclasses
import itertools

from seediff_jax.dataset.checksums import FAILED
from seediff_jax.dataset.complete import complete_counts, complete_run, mark_incomplete
from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.formats import Format
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import find_existing, remove_leftovers, unfinished_shards
from seediff_jax.dataset.shards import Dataset
from seediff_jax.files.folder import open_folder

BAD = 4
"""The sample that fails."""


class Letters(Format):
    """A format that writes one file per sample, one per shard, and one per run."""

    name = "letters"
    parts, shard_parts = ("image.txt", "mask.txt"), ("mask.txt",)

    def sample_files(self, index):
        return {f"image/{index:06d}.txt": "image.txt"}

    def write_shard(self, number, samples, scratch):
        path = scratch / f"letters-{number}"
        path.write_bytes(b"".join(sample.files["mask.txt"] for sample in samples))
        return {f"letters/{number}.txt": path}

    def write_run(self, records, read, shards, scratch):
        path = scratch / "letters"
        indices = ",".join(str(record["index"]) for record in records())
        shard_files = b"".join(read(number, f"letters/{number}.txt") for number in shards)
        path.write_bytes(indices.encode() + b"\n" + shard_files)
        return {"letters/all.txt": path}


@dataclasses.dataclass(frozen=True)
class Run:
    """A requested run: a number of samples, in blocks of `batch_size`."""

    num_images: int = 8
    batch_size: int = 3

    @property
    def layout(self):
        return ShardLayout(self.num_images, 3, self.batch_size)


def encoded(index):
    if index == BAD:
        return EncodedSample(index, {"index": index, FAILED: "latents are not finite"}, {})
    parts = {"image.txt": f"image {index}\n".encode(), "mask.txt": f"mask {index}\n".encode()}
    return EncodedSample(index, {"prompt": f"letter {index}", "empty": []}, parts)


class Place:
    """Makes new folders of one kind, each with a scratch folder."""

    def __init__(self, kind, tmp_path):
        self.kind, self.tmp_path, self.numbers = kind, tmp_path, itertools.count()

    def folder(self):
        number = next(self.numbers)
        if self.kind == "disk":
            return open_folder(self.tmp_path / f"made-{number}")
        return open_folder(f"memory://{self.tmp_path.name}/made-{number}")

    def dataset(self, folder, layout):
        scratch = self.tmp_path / f"scratch-{next(self.numbers)}"
        scratch.mkdir()
        return Dataset(folder, layout, [Letters([])], scratch)

    def run(self, folder, run, blocks=None):
        """Does what the driver does, in one thread; stops after `blocks` blocks."""
        dataset = self.dataset(folder, run.layout)
        exists = find_existing(folder, run.layout)
        counts = complete_counts(folder)
        if exists.all() and counts is not None and counts["num_images"] == run.num_images:
            return
        remove_leftovers(folder)
        mark_incomplete(folder)
        for first in run.layout.unfinished_blocks(exists).tolist()[:blocks]:
            missing = [index for index in run.layout.wanted(first) if not exists[index]]
            dataset.write([encoded(index) for index in missing])
            exists[missing] = True
            shard = run.layout.shard_of(first)
            if exists[run.layout.indices(shard)].all():
                dataset.finish(shard)
        if blocks is None:
            for shard in unfinished_shards(folder, run.layout, find_existing(folder, run.layout)):
                dataset.finish(shard)
            complete_run(dataset, [], "a model")

    def forget(self):
        """Empties the memory filesystem, which is slow when it is full."""
        filesystem = open_folder("memory://").filesystem
        filesystem.store.clear()
        filesystem.pseudo_dirs[:] = [""]

    def finished(self, *runs):
        folder = self.folder()
        for run in runs:
            self.run(folder, run)
        return folder
