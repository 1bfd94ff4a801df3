"""Runs a RunConfig on all devices of all hosts, until its dataset folder is complete.

RunConfig -> load_model -> PairPrograms --+
find_existing -> blocks of this host -----+-> WorkLoop -> Dataset.finish -> complete_run
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from seediff_jax.checkpoints.load import load_model
from seediff_jax.checkpoints.lora import require_lora_file
from seediff_jax.checkpoints.sources import find_source, read_source_config
from seediff_jax.dataset.complete import SHEET, complete_counts, complete_run, mark_incomplete
from seediff_jax.dataset.layout import ShardLayout, share_blocks
from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.dataset.resume import (
    find_existing,
    find_leftovers,
    has_settings,
    remove_leftovers,
    require_resumable,
    unfinished_shards,
)
from seediff_jax.dataset.settings_file import write_settings
from seediff_jax.dataset.shards import SCRATCH, Dataset, scratch_folder
from seediff_jax.driver import hosts
from seediff_jax.driver.config import ModelSource, RunConfig
from seediff_jax.driver.monitor import Monitor
from seediff_jax.driver.plan import counted, run_formats
from seediff_jax.driver.sample_maker import PairMaker
from seediff_jax.driver.segment_maker import SegmentMaker
from seediff_jax.driver.signals import AGAIN
from seediff_jax.driver.work_loop import WorkLoop
from seediff_jax.errors import UserError, require_installed, shown
from seediff_jax.files.folder import Folder, open_folder
from seediff_jax.models.model import Model
from seediff_jax.pipeline.batch_size import auto_batch_size
from seediff_jax.pipeline.mesh import local_rows_of, make_mesh, weight_sharding
from seediff_jax.pipeline.method_check import require_method
from seediff_jax.pipeline.programs import PairPrograms, planned_attention
from seediff_jax.sampling.guidance import guidance_segments, require_guidance, uses_guidance
from seediff_jax.sampling.inputs import class_columns, encode_prompts, surely_fit
from seediff_jax.sampling.noised import require_timesteps
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.step import make_steps

_PROMPTS_AT_A_TIME = 1000


def make_dataset(config: RunConfig, group: hosts.HostGroup | None = None) -> int | None:
    """Makes the samples that the output folder lacks; every host of a run calls it.

    Returns:
        Number of samples of the folder that failed; None if the run stopped before the folder was
        complete.

    Raises:
        UserError: the model cannot use a prompt, the folder has other settings, or another run is
            writing it.
        OSError: the folder cannot be written.
    """
    folder = open_folder(config.output)
    group = group or hosts.HostGroup()
    if config.log_dir is not None and os.path.exists(config.log_dir):
        if not os.path.isdir(config.log_dir):
            raise UserError(f"log_dir={shown(config.log_dir)} is a file; give a folder for the log")
    if hosts.is_first():
        require_resumable(folder, config.settings())
    config, model, programs = prepare(config, folder)
    settings = config.settings_with(model)
    group.agree(settings | {"batch_size": config.batch_size}, "to load the model")
    if (failed := _failed_if_complete(config, folder, settings)) is not None:
        return failed
    with _opened(folder, settings), scratch_folder(folder, str(jax.process_index())) as scratch:
        return _Run(config, model, folder, programs, scratch).make(group)


def prepare(
    config: RunConfig, folder: Folder | None = None
) -> tuple[RunConfig, Model, PairPrograms]:
    """Loads the model of a run onto the devices, and makes the two programs.

    If an earlier run with the same settings has written to the folder, it has checked all prompts,
    so that check is left out: it takes minutes for a million.

    Returns:
        The config, with a batch size that fits if it had none; the model; the programs.

    Raises:
        UserError: the model, the mesh, the prompts and the settings do not fit together.
    """
    mesh = make_mesh(config.mesh)
    configured = configured_model(config)
    require_fit(configured, config)  # before any weight is read
    planned_attention(configured, config.sampling, mesh)
    model = load_model(
        config.model, **config.load_options, sharding=lambda shape: weight_sharding(mesh, shape)
    )
    require_fit(model, config)
    if folder is None or not has_settings(folder, config.settings_with(model)):
        require_prompts_fit(model, config)
    config = with_batch_size(config, model, mesh)
    programs = PairPrograms(
        model,
        config.pair_settings,
        mesh,
        config.partition,
        keeps_attention=config.keep_attention or config.strips,
    )
    return config, model, programs


def require_files(source: ModelSource) -> None:
    """Raises a UserError unless a model and its LoRAs exist; reads nothing else."""
    find_source(source.model, source.revision, weights=False)
    for path, strength in source.loras:
        require_lora_file(path, strength)


def configured_model(config: RunConfig) -> Model:
    """The model of a run without its weights, from its configs alone.

    Raises:
        UserError: a config, an option of the sampler or another setting of the model is refused.
    """
    source = find_source(config.model, config.revision, weights=False)
    model_config = read_source_config(source, **config.source_options)
    return Model(params={}, config=model_config, dtype=np.dtype(config.dtype))


def with_batch_size(config: RunConfig, model: Model, mesh: Mesh) -> RunConfig:
    """Chooses the largest batch size that fits on all hosts, unless the config has one."""
    if config.batch_size is not None:
        return config
    size = auto_batch_size(
        model,
        config.pair_settings,
        mesh,
        num_classes=config.plan.max_classes,
        has_unnamed=config.plan.has_unnamed,
    )
    return dataclasses.replace(config, batch_size=min(hosts.gather(size)))


def require_fit(model: Model, config: RunConfig) -> None:
    """Raises a UserError unless a model can make what a run asks for."""
    if config.log_dir is not None:
        require_installed(f"log_dir={config.log_dir}", ["tensorboardX"])
    require_method(model, config.masks, config.sampling)
    if isinstance(config.sampling, SegmentConfig):
        require_timesteps(model, config.sampling)
        return
    steps = make_steps(model.scheduler_config, config.sampling.num_steps)
    model.capture.recorded_calls(len(steps.timesteps))
    require_guidance(model, config.sampling)
    if uses_guidance(model, config.sampling):
        guidance_segments(config.sampling.guidance_interval, len(steps.timesteps))
    encode_prompts(model, [config.sampling.negative_prompt])


def require_prompts_fit(model: Model, config: RunConfig) -> None:
    """Raises a UserError unless a model can read all prompts of a run."""
    checked: set[tuple[str, ...]] = {()}
    table = config.plan.records
    for k in range(0, len(table), _PROMPTS_AT_A_TIME):
        places = range(len(table))[k : k + _PROMPTS_AT_A_TIME]
        fits = surely_fit(model, [table.prompt_of(place) for place in places])
        # The prompt reader has found the classes already; prompts that fit need no second check.
        records = [
            table[place]
            for place, is_sure in zip(places, fits, strict=True)
            if not is_sure or table.classes_of(place).unnamed not in checked
        ]
        if not records:
            continue
        checked |= {record.unnamed for record in records}
        prompts = [record.prompt for record in records]
        encode_prompts(model, prompts)
        named = [record.named for record in records]
        class_columns(model, prompts, named, config.unnamed_classes(records), config.plan.synonyms)


class _Run:
    """One run on one host."""

    def __init__(
        self, config: RunConfig, model: Model, folder: Folder, programs: PairPrograms, scratch: Path
    ):
        self.config, self.model, self.folder = config, model, folder
        self.layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
        self.dataset = Dataset(folder, self.layout, run_formats(config), scratch)
        self.rows, self.attention = len(local_rows_of(programs.mesh)), programs.attention
        self.exists = self._shared_scan()
        maker = PairMaker if config.images is None else SegmentMaker
        self.maker = maker(config, model, programs, self.dataset, self.exists, self.rows)

    def make(self, group: hosts.HostGroup) -> int | None:
        """Makes missing samples and completes the run if it can; returns how many failed."""
        count = self.config.num_images
        done = int(self.exists.sum())
        work = f"making {counted(count, 'image')} of {counted(len(self.config.plan), 'prompt')}"
        if self.config.images is not None:
            work = f"segmenting {counted(count, 'image')}"
        self._say(
            f"{work} with {self.model.model_id} on {counted(jax.device_count(), 'device')} "
            f"({jax.devices()[0].device_kind}); {done} exist already"
        )
        self._say(f"attention: {self.attention}")
        if hosts.is_first():
            mark_incomplete(self.folder)
        return self._end(self._make_missing(group))

    def _make_missing(self, group: hosts.HostGroup) -> bool:
        """Makes missing samples, and retries failed ones once; returns whether it was stopped."""
        blocks = self.layout.unfinished_blocks(self.exists)
        own, rounds = share_blocks(blocks, hosts.gather(self.rows), jax.process_index())
        monitor = Monitor(
            total=len(self.exists),
            done=int(self.exists.sum()),
            own=self._count_missing(own),
            log_dir=self.config.log_dir,
            profile=self.config.profile,
            rounds=rounds,
            shows_progress=hosts.is_first(),
            attention=self.attention,
        )
        with monitor:
            loop = WorkLoop(self.maker.stages(monitor))
            failed, is_stopped = loop.run(self._rounds(own, rounds, group), group.should_stop)
            if is_stopped:
                return True
            self.maker.record_failures = True
            again = self.layout.blocks_with(np.array([f.index for f in failed], np.int64))
            rounds = max(hosts.gather(-(-len(again) // self.rows)))
            _, is_stopped = loop.run(self._rounds(again, rounds, group), group.should_stop)
        return is_stopped

    def _count_missing(self, blocks: np.ndarray) -> int:
        """Counts the missing samples of successive blocks."""
        if not len(blocks):
            return 0
        span = self.exists[blocks[0] : self.layout.wanted(int(blocks[-1])).stop]
        return len(span) - int(span.sum())

    def _rounds(
        self, blocks: np.ndarray, count: int, group: hosts.HostGroup
    ) -> Iterator[list[int]]:
        """Blocks of each round; all hosts have equally many rounds, the last perhaps empty."""
        for number in range(count):
            yield blocks[number * self.rows : (number + 1) * self.rows].tolist()
            group.round_started()

    def _end(self, is_stopped: bool) -> int | None:
        """Finishes shards that several hosts wrote to, and completes the run if none is missing."""
        hosts.wait_for_all("all blocks written")
        exists = self._shared_scan()
        for shard in unfinished_shards(self.folder, self.layout, exists):
            if shard % jax.process_count() == jax.process_index():
                self.dataset.finish(shard)
        hosts.wait_for_all("all shards finished")
        if not exists.all():
            why = "stopped" if is_stopped else "incomplete"
            self._say(
                f"{why}: {int(exists.sum())} of {len(exists)} images are in {self.folder}; {AGAIN} "
                "to resume"
            )
            return None
        counts = {"failed": 0}
        if hosts.is_first():
            counts = complete_run(self.dataset, self.config.class_names, self.model.model_id)
            self._report(counts)
        hosts.wait_for_all("run completed")
        return hosts.gather(counts["failed"])[0]

    def _report(self, counts: dict[str, int]) -> None:
        line = (
            f"{counted(counts['samples'], 'image')} with masks in {self.folder} "
            f"(in {counts['empty']} a class has no pixels)"
        )
        if counts["failed"]:
            line += f"; {counts['failed']} failed twice, see {self.folder.path('failed.jsonl')}"
        if self.folder.exists(SHEET):
            line += f"; look at {self.folder.path(SHEET)}"
        self._say(line)

    def _shared_scan(self) -> np.ndarray:
        """Which samples exist, as host 0 finds them."""
        if hosts.is_first():
            bits = np.packbits(find_existing(self.folder, self.layout))
        else:
            bits = np.zeros(-(-self.layout.num_images // 8), np.uint8)
        return np.unpackbits(hosts.share(bits), count=self.layout.num_images).astype(bool)

    def _say(self, text: str) -> None:
        if hosts.is_first():
            print(text, flush=True)


def _failed_if_complete(config: RunConfig, folder: Folder, settings: dict[str, Any]) -> int | None:
    """Checks for a complete folder and says so; needs no lock.

    Returns:
        Number of its samples that failed; None if there is something to do.
    """
    failed = -1
    if hosts.is_first():
        require_resumable(folder, settings)
        count, counts = config.num_images, complete_counts(folder)
        layout = ShardLayout(count, config.shard_size, config.batch_size)
        is_complete = counts is not None and counts["num_images"] == count
        if is_complete and find_existing(folder, layout).all():
            failed = counts["failed"]
            if find_leftovers(folder) or folder.exists(LOCK):
                # Left by a run that was killed at its very end; storage may be read-only by now.
                with contextlib.suppress(OSError), hold_lock(folder):
                    remove_leftovers(folder)
            but = f", but for {failed} that failed" if failed else ""
            there = "the image is" if count == 1 else f"all {count} images are"
            print(f"{there} in {folder} already{but}; nothing to do", flush=True)
    failed = hosts.gather(failed)[0]
    return None if failed < 0 else failed


@contextlib.contextmanager
def _opened(folder: Folder, settings: dict[str, Any]) -> Iterator[None]:
    """Locks the folder against other runs and writes its settings."""
    token = hosts.share(np.frombuffer(os.urandom(8), np.uint8)).tobytes().hex()
    mark = f"shards/{SCRATCH}{token}"
    with contextlib.ExitStack() as stack:
        if hosts.is_first():
            require_resumable(folder, settings)
            folder.make()
            stack.enter_context(hold_lock(folder))
            for notice in require_resumable(folder, settings):
                print(f"note: {notice}; new images may differ by rounding", flush=True)
            write_settings(folder, settings)
            folder.make("shards")
            remove_leftovers(folder)
            folder.write(mark, b"")
            stack.callback(_remove_mark, folder, mark)
        hosts.wait_for_all("folder opened")
        if not folder.exists(mark):
            raise UserError(
                f"{folder} is not the folder that host 0 writes; give all hosts the same one, on "
                "storage that they share"
            )
        yield


def _remove_mark(folder: Folder, name: str) -> None:
    with contextlib.suppress(OSError):  # would hide what ended the run
        folder.remove(name)
