"""The stages of a run's work: a round of blocks on the devices, and what becomes of each block."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seediff_jax.closing import write_picture
from seediff_jax.dataset import Dataset
from seediff_jax.encoding import EncodedSample, Sample, encode
from seediff_jax.model import Model
from seediff_jax.monitor import Monitor
from seediff_jax.pair_inputs import PairInputs, pair_inputs
from seediff_jax.pictures import method_strip
from seediff_jax.prompt_records import PromptRecord
from seediff_jax.run_config import RunConfig
from seediff_jax.sample_records import (
    Failure,
    class_mask,
    failed_sample,
    failed_stage,
    make_record,
)
from seediff_jax.seeds import find_seeds
from seediff_jax.sharding import PairPrograms, PairRows
from seediff_jax.work_loop import Stages

_KEPT_PROMPTS = 4096
_log = logging.getLogger(__name__)


class Round(NamedTuple):
    """Blocks on the devices: their inputs and their results, which may not be there yet."""

    blocks: Sequence[int]
    inputs: PairInputs
    results: PairRows


class Block(NamedTuple):
    """A block on the host: NumPy arrays, a row a sample."""

    inputs: PairInputs
    rows: PairRows


class PairMaker:
    """Makes blocks of a run.

    Attributes:
        record_failures: whether a sample that fails is recorded, so that it counts as done, or
            only reported, so that it can be tried again.

    Args:
        config: of the run.
        model: tokenizes prompts.
        programs: run on the devices.
        dataset: is written to.
        exists: bool `[num_images]`, the samples that need not be made; not changed.
        rows: blocks that this host makes at a time.
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
        self._row_settings = config.row_settings(model)

    def stages(self, monitor: Monitor) -> Stages:
        """What a WorkLoop does with the blocks."""

        def start(blocks: Sequence[int]) -> Round:
            monitor.round_started()
            return self.start(blocks)

        def fetch(made: Round) -> list[Block]:
            blocks = self.fetch(made)
            monitor.round_fetched()
            return blocks

        return Stages(
            start=start,
            fetch=fetch,
            write=self.write,
            seal=self._dataset.seal,
            complete=self.complete,
            watch=monitor.watch,
        )

    def start(self, blocks: Sequence[int]) -> Round:
        """Starts a round; devices for which no block is left repeat the first one."""
        firsts = [*blocks, *[blocks[0] if blocks else 0] * (self._rows - len(blocks))]
        indices = [index for first in firsts for index in self._layout.block(first)]
        inputs = self._inputs(indices)
        return Round(blocks, inputs, self._programs(inputs))

    def fetch(self, made: Round) -> list[Block]:
        """Waits for a round and copies it to the host."""
        results = made.results
        if not self._config.soft_masks and 0 not in made.blocks:
            results = results.replace(soft_masks=None)
        rows = self._programs.fetch(results)
        return [self._block(made.inputs, rows, k) for k in range(len(made.blocks))]

    def write(self, first: int, block: Block) -> tuple[int, list[Failure]]:
        """Encodes and writes the samples of a block that are missing.

        Returns:
            How many there are, and those that failed.
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
            # A block that is made again after a failure must not write the others a second time.
            self._is_needed[[sample.index for sample in done]] = False
        return len(done), failures

    def complete(self, first: int, written: int) -> Iterable[int]:
        """The shard of a block, if nothing of it is missing any more."""
        shard = self._layout.shard_of(first)
        self._missing[shard] -= written
        return [shard] if written and not self._missing[shard] else []

    def _inputs(self, indices: Sequence[int]) -> PairInputs:
        """Inputs of samples; each prompt is tokenised once, as long as there are not too many."""
        records = [self._config.record(index) for index in indices]
        if len(self._known) > _KEPT_PROMPTS:
            self._known.clear()
        if new := [record for record in dict.fromkeys(records) if record not in self._known]:
            encoded = pair_inputs(
                self._model,
                [record.prompt for record in new],
                [record.named for record in new],
                np.zeros(len(new), np.int32),
                negative_prompt=self._config.pair_settings.negative_prompt,
                unnamed_classes=self._config.unnamed_classes(new),
                synonyms=self._config.plan.synonyms,
                num_classes=self._config.plan.max_classes,
            )
            rows = (_part(encoded, k) for k in range(len(new)))
            self._known |= zip(new, rows, strict=True)
        inputs = jax.tree.map(lambda *leaves: np.stack(leaves), *map(self._known.get, records))
        return inputs.replace(indices=np.array(indices, np.int32))

    def _block(self, inputs: PairInputs, rows: PairRows, k: int) -> Block:
        size = self._layout.batch_size
        return Block(*_part((inputs, rows), slice(k * size, (k + 1) * size)))

    def _encoded(self, index: int, block: Block, k: int) -> EncodedSample | Failure:
        """Makes a sample of row k; what goes wrong in it must not stop the others."""
        try:
            inputs, rows = _part(block, k)
            if reason := failed_stage(rows.is_finite):
                return Failure(index, reason)
            sample = self._sample(index, inputs, rows)
            encoded = encode(sample, self._parts)
        except Exception as error:
            return Failure(index, f"{type(error).__name__}: {error}")
        if index == 0 and self._config.pair_settings.mask_config.method == "seediff":
            self._draw_strip(rows, sample.mask)
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
        )
        soft = rows.soft_masks[:count] if self._config.soft_masks else None
        return Sample(
            index=index,
            image=rows.images,
            mask=mask,
            record=record | self._row_settings,
            soft_masks=soft,
            seed_maps=self._seed_grid(rows)[:count] if self._config.seed_maps else None,
        )

    def _seed_grid(self, rows: PairRows) -> np.ndarray:
        """Seed maps as float32 `[c, h, w]`."""
        height, width = rows.images.shape[:2]
        side = round((rows.seed_maps.shape[-1] * height / width) ** 0.5)
        return rows.seed_maps.reshape(-1, side, rows.seed_maps.shape[-1] // side)

    def _draw_strip(self, rows: PairRows, mask: np.ndarray) -> None:
        """Draws the method on the first class of the first image; a run can do without."""
        try:
            seeds = np.asarray(jax.jit(find_seeds)(rows.seed_maps[0]))
            picture = method_strip(rows.images, seeds, rows.soft_masks[0], mask)
        except Exception as error:
            _log.warning("strip.png is not drawn: %s: %s", type(error).__name__, error)
            return
        write_picture(self._dataset.folder, "strip.png", picture)


def _part(rows: Any, which: int | slice) -> Any:
    """A row, or some, of every array."""
    return jax.tree.map(lambda leaf: leaf[which], rows)


def _token_positions(inputs: PairInputs) -> list[list[int]]:
    """Token positions of each class, in the prompt or in the text that names it."""
    masks: Any = inputs.class_token_mask
    if inputs.unnamed_token_mask is not None:
        masks = masks | inputs.unnamed_token_mask
    return [np.flatnonzero(row).tolist() for row in masks]
