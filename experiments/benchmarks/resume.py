"""Times how a run resumes in a folder of a million samples, closes it, and finds it complete.

    python -m experiments.benchmarks.resume [--num_images=1000000] [--scratch=FOLDER]

The samples of the first shard are made by the driver with a simulated device, the other shards get
their lines and summaries with other indices, and no pictures: none is looked at. The last shard is
half done, in its journal. Files are in the page cache, as they were just written.
"""

import hashlib
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.benchmarks.measuring import (
    GIB,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.simulated import (
    make_pool,
    now,
    run_driver,
    simulated_config,
)
from seediff_jax.dataset.checksums import (
    add_checksum,
    json_line,
    json_with_checksum,
    parse_json_with_checksum,
)
from seediff_jax.dataset.complete import mark_incomplete
from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.journal import Journal
from seediff_jax.driver.config import RunConfig
from seediff_jax.files.folder import Folder, open_folder

_SHARD_SIZE, _BATCH_SIZE = 1000, 4
_SIDE, _POOL = 64, 4


def make_folder(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Makes the folder of a run that stopped in its last shard; returns the "bytes" of lines."""
    config = _config(scratch, num_images, num_prompts)
    run_driver(_config(scratch, _SHARD_SIZE, num_prompts), make_pool(_SIDE, _POOL))
    folder = open_folder(config.output)
    mark_incomplete(folder)
    lines = folder.read("shards/00000.jsonl").decode().splitlines(keepends=True)
    summary = folder.read("shards/00000.json").decode()
    last = num_images // _SHARD_SIZE - 1
    for shard in range(1, last):
        _copy_shard(folder, shard, lines, summary)
    samples = [
        EncodedSample(index, json.loads(renumbered(line, index)), {})
        for index, line in enumerate(lines[: _SHARD_SIZE // 2], last * _SHARD_SIZE)
    ]
    journal = Journal(folder, last, range(last * _SHARD_SIZE, num_images))
    for k in range(0, len(samples), _BATCH_SIZE):
        journal.add(samples[k : k + _BATCH_SIZE])
    return {"bytes": last * sum(map(len, lines))}


def resume_run(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Runs the driver on the unfinished folder; returns the seconds of its parts.

    "model" ends when the model is loaded and the prompts are checked, "folder" when the first round
    starts, "rounds" when all are written, "close" when the run ends.
    """
    start = now().time
    run = run_driver(_config(scratch, num_images, num_prompts), make_pool(_SIDE, _POOL))
    return {
        "model": run.ready.time - start,
        "folder": run.first_round.time - run.ready.time,
        "rounds": run.written.time - run.first_round.time,
        "close": now().time - run.written.time,
    }


def run_again(scratch: str, num_images: int, num_prompts: int) -> dict[str, Any]:
    """Runs the driver on the complete folder; returns the seconds of its two parts."""
    start = now().time
    run = run_driver(_config(scratch, num_images, num_prompts), make_pool(_SIDE, _POOL))
    if run.first_round is not None:
        raise RuntimeError("the folder was not complete")
    return {"model": run.ready.time - start, "folder": now().time - run.ready.time}


def _config(scratch: str, num_images: int, num_prompts: int) -> RunConfig:
    return simulated_config(
        Path(scratch) / "out",
        ["files"],
        num_images,
        num_prompts,
        shard_size=_SHARD_SIZE,
        batch_size=_BATCH_SIZE,
    )


def _copy_shard(folder: Folder, shard: int, lines: list[str], summary: str) -> None:
    """Writes the lines of the first shard, and its summary, as those of another one."""
    first = shard * _SHARD_SIZE
    name = f"shards/{shard:05d}.jsonl"
    content = "".join(renumbered(line, i) for i, line in enumerate(lines, first)).encode()
    Path(folder.path(name)).write_bytes(content)
    facts = parse_json_with_checksum(summary.encode()) | {"shard": shard}
    digest = hashlib.sha256(content).hexdigest()
    facts["files"] = {name: {"bytes": len(content), "sha256": digest}}
    Path(folder.path(f"shards/{shard:05d}.json")).write_bytes(json_with_checksum(facts))


def renumbered(line: str, index: int) -> str:
    """Makes a line of the first shard that of another index; hashes of files stay."""
    line = re.sub(r'"index": \d+', f'"index": {index}', line, count=1)
    record = json.loads(re.sub(r"/\d{6}\.", f"/{index:06d}.", line))
    del record["crc32"]
    return json_line(add_checksum(record)).decode()


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
            for name, variant in (("resumes", resume_run), ("is complete", run_again)):
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
