"""Makes new masks from the attention that a run has stored, without sampling.

    image, attention.npz -> [ mask_rows ] -> masks, soft masks, seed maps -> a new dataset

Everything else of a sample is copied byte for byte.
"""

import functools
import os
from typing import Any

import jax
import numpy as np

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.encoding import EncodedSample, Sample, encode
from seediff_jax.dataset.formats.names import (
    KEEPING,
    STRIPS_PART,
    kept_parts,
    require_place,
)
from seediff_jax.dataset.settings_file import PRECISION
from seediff_jax.driver.arithmetic import precision_settings
from seediff_jax.driver.sample_maker import (
    class_mask,
    failed_stage,
    kept_maps,
    mask_facts,
    sample_stages,
)
from seediff_jax.errors import UserError
from seediff_jax.files.folder import Folder, open_folder
from seediff_jax.files.paths import url_scheme
from seediff_jax.masks.config import METHODS, MaskConfig, require_presence
from seediff_jax.masks.image_ops import grid_size
from seediff_jax.masks.own_methods import own_method_sources
from seediff_jax.pipeline.method_check import try_out
from seediff_jax.pipeline.programs import mask_rows
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.review.copies import (
    Copier,
    Record,
    Sources,
    copied_from,
    copied_sample,
    write_copy,
)
from seediff_jax.review.finished import Finished, open_finished, read_class_facts
from seediff_jax.review.settings import RemaskOutput
from seediff_jax.sampling.sampler import Samples
from seediff_jax.settings import static_part, stored_settings


def remask_dataset(folder: Folder, masks: MaskConfig, output: RemaskOutput) -> str:
    """Writes a dataset with other masks of the same images; returns what was written, in a line.

    Its masks are those of a run with these settings, up to the rounding of attention to float16.
    The folder, of a finished dataset with attention, is only read.

    Raises:
        UserError: the dataset has no attention, the method cannot be used on it, the output cannot
            be used, or its formats have no place for masks of several methods.
        FloatingPointError: the method gave values that are not finite.
        OSError: a file cannot be read or written.
    """
    source = open_finished(folder)
    if not source.settings.get("keep_attention"):
        raise UserError(f"{folder} has no attention; only a run with --keep_attention keeps it")
    draws = source.settings.get("presence_draws", 0)
    require_presence(masks, draws)
    settings = {
        **source.settings,
        **stored_settings(masks),
        **masks.recorded(draws),
        "format": list(output.formats or source.settings["format"]),
        "keep_attention": False,
        **copied_from(source, stored_settings(masks) | {PRECISION: precision_settings()}),
    }
    if not {*settings["format"]} & {*KEEPING}:
        settings |= {"soft_masks": None, "seed_maps": False, "strips": False}
    require_place(settings["format"], kept_parts(settings))
    settings.pop("mask_method_sha256", None)
    settings |= own_method_sources(masks.methods)
    remasker = _Remasker(source, masks)
    target = open_folder(output.output or _default_output(folder))
    write_copy(remasker, target, settings)
    return f"{len(remasker.indices)} images with other masks are in {target}"


def _default_output(folder: Folder) -> str:
    place = folder.url if url_scheme(folder.url) else os.path.abspath(folder.url)  # "." has no name
    return place.rstrip("/") + "_remasked"


class _Remasker(Copier):
    """Copies samples with other masks."""

    def __init__(self, source: Finished, masks: MaskConfig):
        facts = read_class_facts(source)
        super().__init__(source, facts.indices)
        # All samples are padded to the same number of classes, so that one program serves them.
        self._num_classes = int(np.bincount(facts.samples).max(initial=1))
        self._masks, settings = masks, PairSettings(masks=masks)
        self._scalars = settings.scalars()
        self._program = jax.jit(functools.partial(mask_rows, settings=settings.static))

    def copy(self, place: int, record: Record, parts: set[str], sources: Sources) -> EncodedSample:
        """Makes a sample: the parts with the image are copied, all others are made anew."""
        copied = {part for part in parts & record["sha256"].keys() if part.startswith("image.")}
        files = self.source.read_parts(record, copied, sources)
        image, _ = self.source.read_pixels(record, sources)
        maps = self.source.read_attention(record, sources)
        rows = self._rows(record["index"], image, maps)
        ids = record["class_ids"]
        mask = class_mask(rows.label_maps, ids)
        count = len(ids)
        facts = mask_facts(record, mask, rows.scores[:count], rows.presence[:count])
        old = {name: value for name, value in record.items() if name != "other_methods"}
        fields = kept_maps(rows, old | facts, self._masks, image.shape[:2])
        if STRIPS_PART in parts:
            fields["stages"] = sample_stages(maps, record, image.shape[:2], self._masks)
        sample = Sample(record["index"], image, mask, **fields)
        files |= encode(sample, parts - copied).files
        return copied_sample(place, sample.record, files)

    def _rows(self, index: int, image: np.ndarray, maps: AttentionMaps) -> Any:
        """Runs the program of masks on one image; its row of PairRows."""
        layers, n, count = maps.cross_attention.shape
        levels = tuple((side, len(maps.self_attention[side]) // side) for side in maps.sides)
        for one in static_part(self._masks).each():
            if one.method not in METHODS:
                size = image.shape[:2]
                try_out(one, (layers, *grid_size(n, size)), levels, size)
        padding = ((0, 0), (0, 0), (0, self._num_classes - count))
        maps = maps.replace(cross_attention=np.pad(maps.cross_attention, padding))
        if maps.evidence is not None:
            maps = maps.replace(evidence=np.pad(maps.evidence, (*padding, (0, 0))))
        batch = jax.tree.map(lambda leaf: leaf[None], maps)
        samples = Samples(image[None], latents=None, attention_maps=batch, is_finite={})
        rows = self._program(None, self._scalars, samples)
        rows = jax.tree.map(lambda leaf: np.asarray(leaf[0]), rows)
        if reason := failed_stage(rows.is_finite):
            raise FloatingPointError(f"sample {index} of {self.source.folder}: {reason}")
        return rows
