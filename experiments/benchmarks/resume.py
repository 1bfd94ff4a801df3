"""How long a run takes to go on in a folder of a million samples, to close it, and to find it done.

    python -m experiments.benchmarks.resume [--num_images=1000000] [--scratch=FOLDER]

The samples of the first shard are made by the driver with a simulated device, the other shards get
their lines and seals with other indices, and no pictures: none is looked at. The last shard is half
done, in its journal. Files are in the page cache, as they were just written.
"""

import hashlib
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks.measuring import (
    GIB,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.simulated import (
    SimulatedDevice,
    make_pool,
    make_records,
    run_driver,
    simulated_config,
)
from seediff_jax.closing import reopen
from seediff_jax.encoding import EncodedSample
from seediff_jax.journal import Journal
from seediff_jax.run_config import RunConfig
from seediff_jax.storage import Folder, open_folder

_SHARD_SIZE, _BATCH_SIZE, _SIDE = 1000, 4, 64


def make_folder(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Makes the folder of a run that was stopped in its last shard; "bytes" are those of lines."""
    config = _config(scratch, num_images, num_prompts)
    _run(_config(scratch, _SHARD_SIZE, num_prompts))
    folder = open_folder(config.output)
    reopen(folder)
    lines = folder.read("shards/00000.jsonl").decode().splitlines(keepends=True)
    seal = folder.read("shards/00000.json").decode()
    last = num_images // _SHARD_SIZE - 1
    for shard in range(1, last):
        _copy_shard(folder, shard, lines, seal)
    samples = [
        EncodedSample(index, json.loads(_renumbered(line, index)), {})
        for index, line in enumerate(lines[: _SHARD_SIZE // 2], last * _SHARD_SIZE)
    ]
    for k in range(0, len(samples), _BATCH_SIZE):
        Journal(folder, last).add(samples[k : k + _BATCH_SIZE])
    return {"bytes": last * sum(map(len, lines))}


def go_on(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Runs the driver on the folder; seconds of its parts.

    "model" is until the model is there, "folder" from then until the first round starts, "rounds"
    until all are written, "close" until the end.
    """
    begin, wall = time.perf_counter(), time.time() - time.perf_counter()
    config, made = _config(scratch, num_images, num_prompts), []
    device, line = _run(config, made)
    end = time.perf_counter()
    ready, (first, _), written = made[0], device.first_call, line["time"] - wall
    return {
        "model": ready - begin,
        "folder": first - ready,
        "rounds": written - first,
        "close": end - written,
    }


def go_on_again(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Runs the driver on the complete folder; seconds of its parts, of which "rounds" has none."""
    begin, made = time.perf_counter(), []
    device, _ = _run(_config(scratch, num_images, num_prompts), made)
    if device.first_call is not None:
        raise RuntimeError("the folder was not complete")
    return {"model": made[0] - begin, "folder": time.perf_counter() - made[0]}


def _config(scratch: str, num_images: int, num_prompts: int) -> RunConfig:
    return simulated_config(
        Path(scratch) / "out",
        ["files"],
        num_images,
        records=make_records(num_prompts),
        shard_size=_SHARD_SIZE,
        batch_size=_BATCH_SIZE,
    )


def _run(config: RunConfig, made: list[float] | None = None) -> Any:
    def make_device(mesh):
        if made is not None:
            made.append(time.perf_counter())
        return SimulatedDevice(make_pool(_SIDE, 4), np.inf, mesh, clock=time.perf_counter)

    return run_driver(config, make_device)


def _copy_shard(folder: Folder, shard: int, lines: list[str], seal: str) -> None:
    """Writes the lines of the first shard, and its seal, as those of another one."""
    first = shard * _SHARD_SIZE
    name = f"shards/{shard:05d}.jsonl"
    content = "".join(_renumbered(line, i) for i, line in enumerate(lines, first)).encode()
    Path(folder.path(name)).write_bytes(content)
    facts = json.loads(seal) | {"shard": shard}
    digest = hashlib.sha256(content).hexdigest()
    facts["files"] = {name: {"bytes": len(content), "sha256": digest}}
    Path(folder.path(f"shards/{shard:05d}.json")).write_text(json.dumps(facts, indent=1))


def _renumbered(line: str, index: int) -> str:
    """A line of the first shard as that of another index; its hashes stay."""
    line = re.sub(r'"index": \d+', f'"index": {index}', line, count=1)
    return re.sub(r"/\d{6}\.", f"/{index:06d}.", line)


def main(_) -> None:
    """Prints the table."""
    values = flags.FLAGS
    if values.num_images % _SHARD_SIZE or values.num_images < 2 * _SHARD_SIZE:
        raise ValueError(f"--num_images={values.num_images} must be 2 or more times {_SHARD_SIZE}")
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    rows = []
    for prompts in values.prompts:
        with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
            arguments = {"scratch": scratch, "num_images": values.num_images}
            arguments["num_prompts"] = int(prompts)
            size = in_own_process(make_folder, **arguments)["bytes"]
            for name, variant in (("goes on", go_on), ("is complete", go_on_again)):
                run = in_own_process(variant, **arguments)
                rows.append(
                    [
                        f"{values.num_images:,}, {size / GIB:.2f} GiB of lines",
                        f"{int(prompts):,}",
                        name,
                        *(f"{run[key]:.1f}" for key in ("model", "folder")),
                        *(f"{run[key]:.1f}" if key in run else "" for key in ("rounds", "close")),
                        f"{run['peak_memory'] / GIB:.2f}",
                    ]
                )
    header = ["finished samples", "prompts", "the run", "model s", "folder s", "500 samples s"]
    print_table([*header, "close s", "peak GiB"], rows)


if __name__ == "__main__":
    flags.DEFINE_integer("num_images", 10**6, "Samples of the run, a multiple of 1000.")
    flags.DEFINE_list("prompts", ["80", "100000"], "Numbers of different prompts.")
    flags.DEFINE_string("scratch", None, "Folder for the dataset; by default the system's.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
