"""Measures what a sample costs the host: in every format, at several speeds of a simulated device.

    python -m experiments.benchmarks.host_overhead [--formats=files,webdataset+npz --seconds=8]

The first table has a run of the driver a line: samples of 512 x 512 pixels in blocks of 4, for as
many seconds as asked for, in shards of 100; the device alone is simulated. A format may
be followed by +npz or +png for soft masks, and by +seeds for seed maps. CPU seconds are those of
the whole process from the first round to the last finished shard. "The device waits" is the share
of that time in which it had no round. The second table takes a sample's way apart.
"""

import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from experiments.benchmarks.measuring import (
    MIB,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.simulated import (
    NUM_CLASSES,
    SimulatedDevice,
    load_simulated_model,
    make_pool,
    now,
    run_driver,
    simulated_config,
)
from seediff_jax.dataset.encoding import PARTS, EncodedSample, Sample, encode
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.formats.names import SOFT, kept_parts
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.shards import Dataset, make_formats
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.sample_maker import PairMaker, class_mask, make_record
from seediff_jax.files.folder import open_folder
from seediff_jax.masks.config import MaskConfig
from seediff_jax.models.model import Model
from seediff_jax.pipeline.programs import PairRows
from seediff_jax.sampling.inputs import ClassLists, pair_inputs

_SIDE, _BATCH_SIZE, _SHARD_SIZE = 512, 4, 100
_REPEATS = 5
_MOST = 100  # samples for each second of a run at no limit
# The first image is not drawn as a strip, whose program would have to be compiled.
_MASKS = MaskConfig(method="cross_attention")
_WITH_MAPS = ("files+npz+seeds", "webdataset+npz+seeds", "webdataset+png", "array_record+npz+seeds")


class Kind(NamedTuple):
    """A format, and what it stores in addition to images and masks."""

    format: str
    soft_masks: str | None
    seed_maps: bool


def parse_kind(text: str) -> Kind:
    """Parses a text like "webdataset+npz+seeds".

    Raises:
        ValueError: the format or what it is to store is unknown.
    """
    name, *kept = text.split("+")
    soft = [word for word in kept if word in SOFT]
    if name not in FORMATS or len(soft) > 1 or set(kept) - {*SOFT, "seeds"}:
        raise ValueError(f"{text!r} must be one of {', '.join(FORMATS)}, as in files+npz+seeds")
    return Kind(name, soft[0] if soft else None, "seeds" in kept)


def measure_run(scratch: str, kind: str, speed: float | None, num_images: int) -> dict[str, float]:
    """Runs the driver; returns samples per second, CPU seconds per sample, waiting share."""
    name, soft_masks, seed_maps = parse_kind(kind)
    config = simulated_config(
        Path(scratch) / "out",
        [name],
        num_images,
        soft_masks=soft_masks,
        seed_maps=seed_maps,
        batch_size=_BATCH_SIZE,
        shard_size=_SHARD_SIZE,
        masks=_MASKS,
    )
    run = run_driver(config, make_pool(_SIDE), speed or math.inf)
    seconds = run.written.time - run.first_round.time
    return {
        "reached": num_images / seconds,
        "cpu": (run.written.cpu - run.first_round.cpu) / num_images,
        "waits": 1 - run.log["device_busy"],
    }


def measure_steps(scratch: str, kinds: list[str]) -> dict[str, Any]:
    """Measures each step of a sample: its name, CPU seconds and wall seconds."""
    config = simulated_config(Path(scratch) / "out", ["files"], 10**5, masks=_MASKS)
    model, pool = load_simulated_model(config.model), make_pool(_SIDE)
    dataset = _open_dataset(config, *kinds)
    exists = np.zeros(config.num_images, bool)
    maker = PairMaker(config, model, SimulatedDevice(pool, math.inf), dataset, exists, 1)
    parts = {part for each in dataset.formats for part in each.parts}
    sample = _describe(config, pool)
    steps = [
        *_round_steps(config, model, maker),
        ("mask and record", lambda: _describe(config, pool), 1),
        *_encoding_steps(sample, parts),
    ]
    files = encode(sample, parts).files
    costs = [[name, *_cost(call, count)] for name, call, count in steps]
    for kind in kinds:
        for name, call, count in _writing_steps(_open_dataset(config, kind), sample, files):
            costs.append([f"{name}, {kind}", *_cost(call, count)])
    return {"steps": costs}


Step = tuple[str, Callable[[], Any], int]
"""A name, a call, and the number of samples that the call handles."""


def _open_dataset(config: RunConfig, *kinds: str) -> Dataset:
    """Opens a new dataset in these formats."""
    place = Path(config.output, "-".join(kinds))
    scratch = place / "scratch"
    scratch.mkdir(parents=True)
    layout = ShardLayout(config.num_images, _SHARD_SIZE, _BATCH_SIZE)
    formats = []
    for kind in map(parse_kind, kinds):
        kept = kept_parts({"soft_masks": kind.soft_masks, "seed_maps": kind.seed_maps})
        formats += make_formats([kind.format], config.class_names, kept)
    return Dataset(open_folder(place), layout, formats, scratch)


def _round_steps(config: RunConfig, model: Model, maker: PairMaker) -> Iterator[Step]:
    records = [config.record(index) for index in range(_BATCH_SIZE)]
    prompts, classes = [r.prompt for r in records], [r.named for r in records]
    round_ = maker.start([0])
    lists = ClassLists(classes, num_classes=NUM_CLASSES)
    yield (
        "tokenise new prompts",
        lambda: pair_inputs(model, prompts, lists, range(_BATCH_SIZE)),
        _BATCH_SIZE,
    )
    yield "start a round of known prompts", lambda: maker.start([0]), _BATCH_SIZE
    yield "copy from the device", lambda: maker.fetch(round_), _BATCH_SIZE


def _describe(config: RunConfig, pool: PairRows) -> Sample:
    """Makes the second sample, which has two classes, as it is before encoding."""
    index, record = 1, config.record(1)
    ids = [config.class_names.index(name) + 1 for name in record.classes]
    mask = class_mask(pool.label_maps[index], ids)
    row = make_record(
        index,
        record,
        config.class_names,
        mask,
        token_positions=[[k] for k in ids],
        seed_counts=pool.seed_counts[index],
        scores=pool.scores[index],
        presence=pool.presence[index],
    )
    soft, seeds = pool.soft_masks[index], pool.seed_maps[index]
    seeds = seeds.reshape(NUM_CLASSES, math.isqrt(seeds.shape[-1]), -1)
    return Sample(index, pool.images[index], mask, row, soft, seeds)


def _encoding_steps(sample: Sample, parts: Collection[str]) -> Iterator[Step]:
    for part in (part for part in PARTS if part in parts):
        yield f"encode {part}", lambda part=part: encode(sample, [part]), 1
    for part, content in encode(sample, parts).files.items():
        yield f"SHA-256 of {part}", lambda c=content: hashlib.sha256(c).hexdigest(), 1


def _writing_steps(dataset: Dataset, sample: Sample, files: Mapping[str, bytes]) -> Iterator[Step]:
    """Yields the steps of a format: writing a block, and finishing a shard of blocks."""
    own = {part: files[part] for each in dataset.formats for part in each.parts}
    blocks, shards = itertools.count(), itertools.count()

    def write() -> None:
        first = next(blocks) * _BATCH_SIZE
        indices = range(first, first + _BATCH_SIZE)
        dataset.write([EncodedSample(i, sample.record | {"index": i}, own) for i in indices])

    yield "hash and write", write, _BATCH_SIZE
    for _ in range((_REPEATS + 1) * _SHARD_SIZE // _BATCH_SIZE):
        write()
    yield "finish a shard", lambda: dataset.finish(next(shards)), _SHARD_SIZE


def _cost(call: Callable[[], Any], samples: int) -> tuple[float, float]:
    """Measures CPU and wall seconds per sample: the least of several calls, after a first one."""
    call()
    costs = []
    for _ in range(_REPEATS):
        start = now()
        call()
        end = now()
        costs.append((end.cpu - start.cpu, end.time - start.time))
    return tuple(min(column) / samples for column in zip(*costs, strict=True))


def _run_rows(values: flags.FlagValues) -> Iterator[list[str]]:
    for kind, text in itertools.product(values.formats, values.speeds):
        speed = None if text == "unlimited" else float(text)
        count = math.ceil(values.seconds * (speed or _MOST))
        with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
            load = os.getloadavg()[0]
            arguments = {"kind": kind, "speed": speed, "num_images": count}
            run = in_own_process(measure_run, scratch=scratch, **arguments)
        yield [
            kind,
            text,
            f"{run['reached']:.1f}",
            f"{run['cpu'] * 1000:.1f}",
            f"{run['waits']:.1%}",
            f"{run['peak_memory'] / MIB:.0f}",
            f"{load:.1f}",
        ]


def main(_) -> None:
    """Prints both tables."""
    values = flags.FLAGS
    for kind in values.formats:
        parse_kind(kind)
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    header = ["format", "samples/s of the device", "reached", "CPU ms per sample"]
    header += ["the device waits", "peak MiB", "load before"]
    print_table(header, _run_rows(values))
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        steps = in_own_process(measure_steps, scratch=scratch, kinds=values.formats)["steps"]
    print(f"\nLoad {os.getloadavg()[0]:.1f}\n")
    costs = [[name, f"{cpu * 1000:.3f}", f"{wall * 1000:.3f}"] for name, cpu, wall in steps]
    print_table(["step", "CPU ms per sample", "wall ms per sample"], costs)


if __name__ == "__main__":
    formats = "Formats, one run each; +npz or +png adds soft masks, +seeds adds seed maps."
    flags.DEFINE_list("formats", [*FORMATS, *_WITH_MAPS], formats)
    speeds = "Samples per second of the device; unlimited makes a round as soon as it is requested."
    flags.DEFINE_list("speeds", ["1", "10", "100", "unlimited"], speeds)
    flags.DEFINE_float("seconds", 20, "Seconds of a run, if the device can be kept busy.")
    flags.DEFINE_string("scratch", None, "Folder for the datasets; by default the system's.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
