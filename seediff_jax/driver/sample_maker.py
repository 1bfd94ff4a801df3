"""Makes the samples of a run: rounds of blocks on the devices, then records and encoded parts."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seediff_jax.array_typing import UInt8, typechecked
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.complete import write_picture
from seediff_jax.dataset.encoding import EncodedSample, Sample, encode
from seediff_jax.dataset.shards import Dataset
from seediff_jax.dataset.strips import ClassStages, method_strip
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.monitor import Monitor
from seediff_jax.driver.work_loop import Stages
from seediff_jax.masks.config import IGNORE_INDEX, MaskConfig
from seediff_jax.masks.image_ops import grid_size
from seediff_jax.masks.own_methods import method_name
from seediff_jax.masks.seeds import find_seeds
from seediff_jax.models.model import Model
from seediff_jax.pipeline.programs import MASKS, PairPrograms, PairRows
from seediff_jax.pipeline.stages import class_stages
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.sampling.inputs import ClassLists, PairInputs, pair_inputs
from seediff_jax.sampling.noise import latent_size
from seediff_jax.sampling.sampler import STAGES


@dataclasses.dataclass(frozen=True)
class Failure:
    """A sample that could not be made, and why."""

    index: int
    reason: str


@typechecked
def class_mask(
    label_map: UInt8[np.ndarray, "H W"], class_ids: Sequence[int]
) -> UInt8[np.ndarray, "H W"]:
    """Turns labels k + 1, for the k-th class of an image, into the class's id in the run."""
    to_id = np.zeros(IGNORE_INDEX + 1, np.uint8)
    to_id[IGNORE_INDEX] = IGNORE_INDEX
    to_id[1 : len(class_ids) + 1] = class_ids
    return to_id.take(label_map)


def failed_stage(is_finite: Mapping[str, Any]) -> str | None:
    """Names the first stage with values that are not finite; None if all are finite."""
    stages = (*STAGES, MASKS)
    bad = next((stage for stage in stages if not np.all(is_finite.get(stage, True))), None)
    return None if bad is None else f"{bad} are not finite"


def make_record(
    index: int,
    prompt: PromptRecord,
    class_names: Sequence[str],
    mask: np.ndarray,
    *,
    token_positions: Sequence[Sequence[int]],
    seed_counts: Sequence[int],
    scores: Sequence[float],
    presence: Sequence[float],
) -> dict[str, Any]:
    """Makes the manifest entry of a sample, as JSON values.

    Args:
        index: of the sample.
        prompt: with its classes.
        class_names: of the run.
        mask: class ids.
        token_positions: of each class in the prompt, or in the text that names it.
        seed_counts: of each class.
        scores: of each class, see `class_scores`.
        presence: of each class, see `make_masks`.
    """
    ids = [class_names.index(name) + 1 for name in prompt.classes]
    record = {
        "index": index,
        "prompt": prompt.prompt,
        "classes": list(prompt.classes),
        "class_ids": ids,
        "token_positions": [list(positions) for positions in token_positions],
    }
    facts = mask_facts(record, mask, scores, presence)
    return record | facts | {"seed_counts": [int(count) for count in seed_counts]}


def mask_facts(
    record: Mapping[str, Any], mask: np.ndarray, scores: Sequence[float], presence: Sequence[float]
) -> dict[str, Any]:
    """The entries of a record that depend on the mask; the arguments are those of `make_record`."""
    areas = [_share(mask == class_id) for class_id in record["class_ids"]]
    return {
        "area_fractions": areas,
        "scores": [round(float(score), 4) for score in scores],
        "presence": [round(float(value), 4) for value in presence],
        "empty": [name for name, area in zip(record["classes"], areas, strict=True) if not area],
        "ignored_fraction": _share(mask == IGNORE_INDEX),
    }


def kept_maps(
    rows: PairRows, record: Mapping[str, Any], masks: MaskConfig, size: tuple[int, int]
) -> dict[str, Any]:
    """Makes fields of a Sample: the record with the facts of all methods, and unpadded maps.

    Args:
        rows: a row of PairRows.
        record: from `make_record`.
        masks: of the run.
        size: height and width that the networks saw, in any unit.
    """
    ids = record["class_ids"]
    count = len(ids)
    height, width = grid_size(rows.seed_maps.shape[-1], size)
    maps = {
        "soft_masks": None if rows.soft_masks is None else rows.soft_masks[:count],
        "seed_maps": rows.seed_maps[:count].reshape(-1, height, width),
    }
    if rows.attention_maps is not None:
        cross, evidence = rows.attention_maps.cross_attention, rows.attention_maps.evidence
        kept = rows.attention_maps.replace(
            cross_attention=cross[..., :count],
            evidence=None if evidence is None else evidence[..., :count, :],
        )
        maps["attention"] = kept.to_arrays("float16")
    if rows.other_label_maps is not None:
        others = np.stack([class_mask(each, ids) for each in rows.other_label_maps])
        facts = {
            method_name(method): mask_facts(record, mask, scores[:count], presence[:count])
            for method, mask, scores, presence in zip(
                masks.methods[1:], others, rows.other_scores, rows.other_presence, strict=True
            )
        }
        maps["other_masks"] = others
        record = {**record, "other_methods": facts}
    return {"record": record, **maps}


def sample_stages(
    maps: AttentionMaps, record: Mapping[str, Any], image_size: tuple[int, int], masks: MaskConfig
) -> list[ClassStages]:
    """Computes the stages of the masks of a sample, by the first method of the run.

    Args:
        maps: of the sample; the first columns are the classes of the record.
        record: from `make_record`.
        image_size: height and width.
        masks: of the run.
    """
    stages = class_stages(maps, record["classes"], image_size, masks.each()[0])
    labelled = zip(stages, record["class_ids"], strict=True)
    return [dataclasses.replace(each, label=class_id) for each, class_id in labelled]


def _share(where: np.ndarray) -> float:
    return np.count_nonzero(where) / where.size


def failed_sample(failure: Failure, prompt: PromptRecord) -> EncodedSample:
    """Makes the record that is written in place of a sample that failed."""
    record = {
        "index": failure.index,
        "failed": failure.reason,
        "prompt": prompt.prompt,
        "classes": list(prompt.classes),
    }
    return EncodedSample(failure.index, record, {})


_KEPT_PROMPTS = 4096
_log = logging.getLogger(__name__)


class Round(NamedTuple):
    """Blocks on the devices: their inputs and their results, which may not be ready yet."""

    blocks: Sequence[int]
    inputs: PairInputs
    results: Any


class Block(NamedTuple):
    """A block on the host: NumPy arrays with one row per sample."""

    inputs: PairInputs
    rows: PairRows


class PairMaker:
    """Makes blocks of a run.

    Attributes:
        record_failures: whether a sample that fails is recorded, so that it counts as done, or
            only reported, so that it can be tried again.

    Args:
        exists: bool `[num_images]`, samples that need not be made; not modified.
        rows: number of blocks that this host makes at a time.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        programs: PairPrograms,
        dataset: Dataset,
        exists: np.ndarray,
        rows: int,
    ):
        self.record_failures = False
        self._config, self._model, self._programs = config, model, programs
        self._dataset, self._layout, self._rows = dataset, dataset.layout, rows
        self._is_needed = ~exists
        shards = [self._layout.indices(s) for s in range(self._layout.num_shards)]
        self._missing = [int(self._is_needed[r.start : r.stop].sum()) for r in shards]
        self._parts = sorted({part for each in dataset.formats for part in each.parts})
        self._known: dict[PromptRecord, PairInputs] = {}
        # What may change when a run is resumed: a branch of the hub may have moved to a commit with
        # the same weights, and another machine may continue.
        self._made_with = {
            "commit": model.commit,
            "batch_size": config.batch_size,
            "model_axis": config.mesh.model,
            "device": jax.devices()[0].device_kind,
        }

    def stages(self, monitor: Monitor) -> Stages:
        """Returns what a WorkLoop does with the blocks."""

        def start(blocks: Sequence[int]) -> Round:
            monitor.round_started()
            made = self.start(blocks)
            monitor.round_compiled()
            return made

        def fetch(made: Round) -> list[Block]:
            blocks = self.fetch(made)
            monitor.round_fetched()
            return blocks

        return Stages(
            start=start,
            fetch=fetch,
            write=self.write,
            shards_ready=self.shards_ready,
            finish=self._dataset.finish,
            watch=monitor.watch,
        )

    def start(self, blocks: Sequence[int]) -> Round:
        """Starts a round; devices without a block repeat the first one."""
        firsts = [*blocks, *[blocks[0] if blocks else 0] * (self._rows - len(blocks))]
        indices = [index for first in firsts for index in self._layout.block(first)]
        inputs = self._inputs(indices)
        return Round(blocks, inputs, self._run(inputs))

    def fetch(self, made: Round) -> list[Block]:
        """Waits for a round and copies it to the host."""
        rows = self._fetch(made)
        size = self._layout.batch_size
        parts = (slice(k * size, (k + 1) * size) for k in range(len(made.blocks)))
        return [Block(*take_rows((made.inputs, rows), part)) for part in parts]

    def write(self, first: int, block: Block) -> tuple[int, list[Failure]]:
        """Encodes and writes the samples of a block that are missing.

        Returns:
            The number of samples that were missing, and those that failed.
        """
        done: list[EncodedSample] = []
        failures: list[Failure] = []
        for k, index in enumerate(self._layout.wanted(first)):
            if not self._is_needed[index]:
                continue
            made = self._encoded(index, block, k)
            if isinstance(made, Failure):
                failures.append(made)
                if self.record_failures:
                    done.append(failed_sample(made, self._config.record(index)))
            else:
                done.append(made)
        if done:
            self._dataset.write(done)
            # A block that is repeated after a failure must not write its other samples again.
            self._is_needed[[sample.index for sample in done]] = False
        return len(done), failures

    def shards_ready(self, first: int, written: int) -> Iterable[int]:
        """Returns the shard of a block if it now has all its samples."""
        shard = self._layout.shard_of(first)
        self._missing[shard] -= written
        return [shard] if written and not self._missing[shard] else []

    def _run(self, inputs: PairInputs) -> Any:
        """Starts the programs."""
        return self._programs(inputs)

    def _fetch(self, made: Round) -> PairRows:
        """Copies what `_run` returned to the host."""
        results = made.results
        if not self._config.soft_masks and 0 not in made.blocks:
            results = results.replace(soft_masks=None)
        return self._programs.fetch(results)

    def _inputs(self, indices: Sequence[int]) -> PairInputs:
        """Makes the inputs of samples; keeps the tokens of up to _KEPT_PROMPTS prompts."""
        records = [self._config.record(index) for index in indices]
        if len(self._known) > _KEPT_PROMPTS:
            self._known.clear()
        if new := [record for record in dict.fromkeys(records) if record not in self._known]:
            encoded = pair_inputs(
                self._model,
                [record.prompt for record in new],
                ClassLists(
                    named=[record.named for record in new],
                    unnamed=self._config.unnamed_classes(new),
                    synonyms=self._config.plan.synonyms,
                    num_classes=self._config.plan.max_classes,
                ),
                np.zeros(len(new), np.int32),
                self._config.sampling,
            )
            rows = (take_rows(encoded, k) for k in range(len(new)))
            self._known |= zip(new, rows, strict=True)
        inputs = jax.tree.map(lambda *leaves: np.stack(leaves), *map(self._known.get, records))
        return inputs.replace(indices=np.array(indices, np.int32))

    def _encoded(self, index: int, block: Block, k: int) -> EncodedSample | Failure:
        """Encodes the sample of row k; an error in it must not stop the others."""
        try:
            inputs, rows = take_rows(block, k)
            if reason := failed_stage(rows.is_finite):
                return Failure(index, reason)
            sample = self._sample(index, inputs, rows)
            encoded = encode(sample, self._parts)
        except Exception as error:
            return Failure(index, f"{type(error).__name__}: {error}")
        if index == 0 and self._config.masks.methods[0] == "seediff":
            self._draw_strip(rows, sample)
        return encoded

    def _sample(self, index: int, inputs: PairInputs, rows: PairRows) -> Sample:
        prompt, names = self._config.record(index), self._config.class_names
        count = len(prompt.classes)
        mask = class_mask(rows.label_maps, [names.index(name) + 1 for name in prompt.classes])
        record = make_record(
            index,
            prompt,
            names,
            mask,
            token_positions=_token_positions(inputs)[:count],
            seed_counts=rows.seed_counts[:count],
            scores=rows.scores[:count],
            presence=rows.presence[:count],
        )
        sampling, masks = self._config.sampling, self._config.masks
        size = latent_size(self._model, sampling.height, sampling.width)
        fields = kept_maps(rows, record | self._made_with, masks, size)
        if self._config.strips:
            image_size = rows.images.shape[:2]
            fields["stages"] = sample_stages(rows.attention_maps, record, image_size, masks)
        return Sample(index=index, image=rows.images, mask=mask, **fields)

    def _draw_strip(self, rows: PairRows, sample: Sample) -> None:
        """Draws the method on the first class of the first image, if that is possible."""
        try:
            seed_map = rows.seed_maps[0]
            stages = ClassStages(
                name=sample.record["classes"][0],
                label=sample.record["class_ids"][0],
                seed_map=seed_map,
                seeds=np.asarray(jax.jit(find_seeds)(seed_map)),
                levels=[rows.soft_masks[0]],
            )
            picture = method_strip(rows.images, sample.mask, stages)
        except Exception as error:
            _log.warning("strip.png was not drawn: %s: %s", type(error).__name__, error)
            return
        write_picture(self._dataset.folder, "strip.png", picture)


def take_rows(rows: Any, which: int | slice) -> Any:
    """Takes a row, or a slice of rows, of every array."""
    return jax.tree.map(lambda leaf: leaf[which], rows)


def _token_positions(inputs: PairInputs) -> list[list[int]]:
    """Token positions of each class, in the prompt or in the text that names it."""
    masks: Any = inputs.class_token_mask
    if inputs.unnamed_token_mask is not None:
        masks = masks | inputs.unnamed_token_mask
    return [np.flatnonzero(row).tolist() for row in masks]
