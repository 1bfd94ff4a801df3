"""Dataset folders of eight random samples in three shards, one of them failed, in real formats."""

import tempfile
from pathlib import Path

import numpy as np

from seediff_jax.dataset.checksums import FAILED
from seediff_jax.dataset.complete import complete_counts, complete_run, mark_incomplete
from seediff_jax.dataset.encoding import EncodedSample, encode
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.formats.names import kept_parts
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.resume import (
    find_existing,
    remove_leftovers,
    require_resumable,
    unfinished_shards,
)
from seediff_jax.dataset.settings_file import FORM, write_settings
from seediff_jax.dataset.shards import Dataset, make_formats
from seediff_jax.files.folder import open_folder
from tests.helpers.format_runs import CLASS_NAMES, METHODS, make_sample

BAD, SHARD_SIZE, NUM_IMAGES = 4, 3, 8


def settings(formats=tuple(FORMATS)):
    return {
        "form": FORM,
        "seediff_jax_version": "1.2.3",
        "class_names": list(CLASS_NAMES),
        "format": list(formats),
        "soft_masks": "npz",
        "seed_maps": True,
        "keep_attention": True,
        "mask_method": list(METHODS),
        "shard_size": SHARD_SIZE,
    }


def encoded(index, formats):
    """Sample `index` in the parts of some formats."""
    if index == BAD:
        return EncodedSample(index, {"index": index, FAILED: "latents are not finite"}, {})
    sample = make_sample(index)
    ids = sample.record["class_ids"]
    sample.record["area_fractions"] = [float((sample.mask == k).mean()) for k in ids]
    sample.record["scores"] = [round((7 * index + 3 * k) % 10 / 10, 4) for k in ids]
    # Of every seventh class there is none.
    tenths = [(index + 4 * k) % 10 if (index + k) % 7 else None for k in ids]
    sample.record["presence"] = [None if tenth is None else tenth / 10 for tenth in tenths]
    return encode(sample, sorted({part for each in formats for part in each.parts}))


def run(place, formats=tuple(FORMATS), num_images=NUM_IMAGES, stop_at=None):
    """Does what the driver does, one sample at a time, in one thread.

    Args:
        place: of the folder.
        formats: names of formats.
        num_images: samples of the run.
        stop_at: index before which the run is stopped, or None.

    Returns:
        The indices of the samples that were made.
    """
    folder, layout = open_folder(place), ShardLayout(num_images, SHARD_SIZE, 1)
    require_resumable(folder, settings(formats))
    folder.make()
    write_settings(folder, settings(formats))
    remove_leftovers(folder)
    made = make_formats(formats, CLASS_NAMES, kept_parts(settings(formats)))
    with tempfile.TemporaryDirectory() as scratch:
        dataset = Dataset(folder, layout, made, Path(scratch))
        missing = np.flatnonzero(~find_existing(folder, layout)).tolist()
        counts = complete_counts(folder)
        if not missing and counts is not None and counts["num_images"] == num_images:
            return []
        mark_incomplete(folder)
        for index in missing:
            if index == stop_at:
                return missing[: missing.index(index)]
            dataset.write([encoded(index, made)])
        for shard in unfinished_shards(folder, layout, find_existing(folder, layout)):
            dataset.finish(shard)
        complete_run(dataset, CLASS_NAMES, "a model")
    return missing
