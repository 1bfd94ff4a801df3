"""From a RunConfig to a finished dataset folder, on all devices of all hosts.

RunConfig -> load_model -> PairPrograms -+
Dataset.scan -> blocks of this host -----+-> WorkLoop -> Dataset.seal -> close
"""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seediff_jax import hosts
from seediff_jax.batch_size import auto_batch_size
from seediff_jax.class_columns import class_columns
from seediff_jax.closing import SHEET, close, closed_counts, reopen
from seediff_jax.dataset import SCRATCH, Dataset, make_formats, tidy
from seediff_jax.folder_settings import (
    SETTINGS,
    has_settings,
    require_resumable,
    write_settings,
)
from seediff_jax.model import Model, load_model
from seediff_jax.monitor import Monitor
from seediff_jax.pair_maker import PairMaker
from seediff_jax.pipeline import require_capture
from seediff_jax.prompt_tokens import encode_prompts
from seediff_jax.run_config import RunConfig
from seediff_jax.run_lock import hold_lock
from seediff_jax.schedulers import make_steps
from seediff_jax.shard_layout import ShardLayout, share_blocks
from seediff_jax.sharding import PairPrograms, local_rows_of, make_mesh, weight_sharding
from seediff_jax.storage import Folder, open_folder
from seediff_jax.words import counted
from seediff_jax.work_loop import WorkLoop

_PROMPTS_AT_A_TIME = 1000


def make_dataset(config: RunConfig) -> int:
    """Makes the samples that the output folder does not have yet; all hosts of a run call it.

    Returns:
        Number of samples of the folder that failed.

    Raises:
        ValueError: a prompt does not suit the model, the folder another run, or another run is at
            work in it.
        OSError: the folder cannot be written.
    """
    folder = open_folder(config.output)
    stopper = hosts.Stopper()
    with hosts.ending_together(), stopper.listen():
        try:
            with stopper.preparing():
                if hosts.is_first():
                    require_resumable(folder, config.settings())
                config, model, programs = prepare(config, folder)
        except hosts.Stopped:
            print(f"stopped before the first round; the same command goes on with {folder}")
            return 0
        with _opened(folder, config.settings_with(model)), _scratch(folder) as scratch:
            return _Run(config, model, folder, programs, scratch).make(stopper)


def prepare(
    config: RunConfig, folder: Folder | None = None
) -> tuple[RunConfig, Model, PairPrograms]:
    """Loads the model of a run onto the devices, and makes the programs.

    Args:
        config: of the run.
        folder: what it writes to: where a run has been before with the same settings, it has
            checked all prompts, which takes minutes if there are a million.

    Returns:
        The config, with the batch size that fits where it had none, the model and the programs.

    Raises:
        ValueError: the model, the mesh, the prompts and the settings do not go together.
    """
    mesh = make_mesh(config.mesh)
    model = load_model(
        config.model,
        dtype=config.dtype,
        revision=config.revision,
        loras=config.loras,
        **config.source_options,
        sharding=lambda shape: weight_sharding(mesh, shape),
    )
    require_fit(model, config)
    if folder is None or not has_settings(folder, config.settings_with(model)):
        require_prompts_fit(model, config)
    config = with_batch_size(config, model, mesh)
    return config, model, PairPrograms(model, config.pair_settings, mesh, config.partition)


def with_batch_size(config: RunConfig, model: Model, mesh: Mesh) -> RunConfig:
    """The config with the batch size that fits, where it has none; see `auto_batch_size`."""
    if config.batch_size is not None:
        return config
    size = auto_batch_size(
        model,
        config.pair_settings,
        mesh,
        num_classes=config.plan.max_classes,
        has_unnamed=config.plan.has_unnamed,
    )
    return dataclasses.replace(config, batch_size=size)


def require_fit(model: Model, config: RunConfig) -> None:
    """Checks that a model can make what a run asks for.

    Raises:
        ValueError: it cannot.
    """
    steps = make_steps(model.scheduler_config, config.pair_settings.num_steps)
    model.capture.recorded_calls(len(steps.timesteps))
    require_capture(model, config.pair_settings.mask_config.method)
    config.pair_settings.sample_config(model)
    encode_prompts(model, [config.pair_settings.negative_prompt])


def require_prompts_fit(model: Model, config: RunConfig) -> None:
    """Checks that a model can read all prompts of a run.

    Raises:
        ValueError: it cannot.
    """
    for k in range(0, len(config.plan), _PROMPTS_AT_A_TIME):
        records = config.plan.records[k : k + _PROMPTS_AT_A_TIME]
        prompts = [record.prompt for record in records]
        encode_prompts(model, prompts)
        named = [record.named for record in records]
        class_columns(model, prompts, named, config.unnamed_classes(records), config.plan.synonyms)


class _Run:
    """One run on one host."""

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        folder: Folder,
        programs: PairPrograms,
        scratch: Path,
    ):
        self.config, self.model, self.folder = config, model, folder
        self.layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
        formats = make_formats(
            config.formats, config.class_names, soft=config.soft_masks, seeds=config.seed_maps
        )
        self.dataset = Dataset(folder, self.layout, formats, scratch)
        self.rows = len(local_rows_of(programs.mesh))
        self.exists = self._shared_scan()
        self.maker = PairMaker(config, model, programs, self.dataset, self.exists, self.rows)

    def make(self, stopper: hosts.Stopper) -> int:
        """Makes what is missing, and closes what is complete; returns how many samples failed."""
        count = self.config.num_images
        done = int(self.exists.sum())
        closed = closed_counts(self.folder)
        if done == count and closed is not None and closed["num_images"] == count:
            but = f", but for {closed['failed']} that failed" if closed["failed"] else ""
            there = "the image is" if count == 1 else f"all {count} images are"
            self._say(f"{there} in {self.folder} already{but}; nothing to do")
            return closed["failed"]
        self._say(
            f"{counted(count, 'image')} of {counted(len(self.config.plan), 'prompt')} with "
            f"{self.model.model_id} on "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}, {done} of them there already"
        )
        if hosts.is_first():
            reopen(self.folder)
        return self._end(self._make_missing(stopper))

    def _make_missing(self, stopper: hosts.Stopper) -> bool:
        """Makes what is missing, and once more what failed; returns whether it was stopped."""
        missing = np.flatnonzero(~self.exists)
        blocks = self.layout.blocks_with(missing)
        own, rounds = share_blocks(blocks, hosts.gather(self.rows), jax.process_index())
        monitor = Monitor(
            total=len(self.exists),
            done=len(self.exists) - len(missing),
            own=sum((~self.exists[r.start : r.stop]).sum() for r in map(self.layout.wanted, own)),
            log_dir=self.config.log_dir,
            profile=self.config.profile,
            rounds=rounds,
            shows_progress=hosts.is_first(),
        )
        with monitor:
            loop = WorkLoop(self.maker.stages(monitor))
            failed, is_stopped = loop.run(self._rounds(own, rounds), stopper)
            if is_stopped:
                return True
            self.maker.record_failures = True
            again = self.layout.blocks_with(np.array([f.index for f in failed], np.int64))
            rounds = max(hosts.gather(-(-len(again) // self.rows)))
            _, is_stopped = loop.run(self._rounds(again, rounds), stopper)
        return is_stopped

    def _rounds(self, blocks: np.ndarray, count: int) -> Iterator[list[int]]:
        """Blocks of each round; all hosts have equally many rounds, the last perhaps empty."""
        for number in range(count):
            yield blocks[number * self.rows : (number + 1) * self.rows].tolist()

    def _end(self, is_stopped: bool) -> int:
        """Seals the shards that several hosts had a part in, and closes a complete folder."""
        hosts.wait_for_all("all blocks written")
        exists = self._shared_scan()
        for shard in self.dataset.unsealed(exists):
            if shard % jax.process_count() == jax.process_index():
                self.dataset.seal(shard)
        hosts.wait_for_all("all shards sealed")
        if not exists.all():
            why = "stopped" if is_stopped else "incomplete"
            self._say(
                f"{why}: {int(exists.sum())} of {len(exists)} images are in {self.folder}; the "
                "same command goes on from there"
            )
            return 0
        counts = {"failed": 0}
        if hosts.is_first():
            counts = close(self.dataset, self.config.class_names, self.model.model_id)
            self._report(counts)
        hosts.wait_for_all("closed")
        return hosts.gather(counts["failed"])[0]

    def _report(self, counts: dict[str, int]) -> None:
        line = (
            f"{counted(counts['samples'], 'image')} with masks in {self.folder} "
            f"({counts['empty']} with an empty mask)"
        )
        if counts["failed"]:
            line += f"; {counts['failed']} failed twice, see {self.folder.path('failed.jsonl')}"
        if self.folder.exists(SHEET):
            line += f"; look at {self.folder.path(SHEET)}"
        self._say(line)

    def _shared_scan(self) -> np.ndarray:
        """Samples that exist, as host 0 sees them."""
        if hosts.is_first():
            bits = np.packbits(self.dataset.scan())
        else:
            bits = np.zeros(-(-self.layout.num_images // 8), np.uint8)
        return np.unpackbits(hosts.share(bits), count=self.layout.num_images).astype(bool)

    def _say(self, text: str) -> None:
        if hosts.is_first():
            print(text, flush=True)


@contextlib.contextmanager
def _opened(folder: Folder, settings: dict[str, Any]) -> Iterator[None]:
    """Locks the folder against other runs and gives it its settings."""
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            require_resumable(folder, settings)
            folder.make()
            stack.enter_context(hold_lock(folder))
            for notice in require_resumable(folder, settings):
                print(f"note: {notice}; new images may differ by rounding", flush=True)
            write_settings(folder, settings)
            folder.make("shards")
            tidy(folder)
        hosts.wait_for_all("folder opened")
        if not folder.exists(SETTINGS):
            raise ValueError(f"{folder} must be on storage that all hosts share; this one is not")
        yield


@contextlib.contextmanager
def _scratch(folder: Folder) -> Iterator[Path]:
    """An empty folder for files of shards in the making, on the disk where they will be."""
    if folder.local is None:
        with tempfile.TemporaryDirectory() as path:
            yield Path(path)
        return
    path = folder.local / "shards" / f"{SCRATCH}{jax.process_index()}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
