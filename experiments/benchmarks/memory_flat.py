"""Measures the memory of a run over 100,000 samples, which must not grow.

    python -m experiments.benchmarks.memory_flat [--formats=webdataset] [--scratch=/dev/shm]

The driver runs with a simulated device that has its samples, of 64 x 64 pixels, as soon as they are
requested. Memory is resident and anonymous (without mapped files), read before a round while all
threads work. The slope is that of a line fitted to the second half.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments.benchmarks.loading import resident
from experiments.benchmarks.measuring import (
    MIB,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.simulated import make_pool, run_driver, simulated_config

_SIDE, _BATCH_SIZE = 64, 4
_SAMPLES = 1000  # measurements of memory per run
_LINES = 10


def measure(scratch: str, formats: list[str], num_images: int) -> dict[str, Any]:
    """Runs the driver; returns "counts" of samples, "bytes" of memory and "seconds"."""
    config = simulated_config(
        Path(scratch) / "out", formats, num_images, num_prompts=20000, batch_size=_BATCH_SIZE
    )
    step = max(num_images // _SAMPLES, 1)
    counts: list[int] = []
    sizes: list[int] = []
    seconds: list[float] = []
    start = time.monotonic()

    def watch(asked: int) -> None:
        if not counts or asked - counts[-1] >= step:
            counts.append(asked)
            sizes.append(resident("RssAnon"))
            seconds.append(time.monotonic() - start)

    run_driver(config, make_pool(_SIDE), watch=watch)
    return {"counts": counts, "bytes": sizes, "seconds": seconds}


def main(_) -> None:
    """Prints the table."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    with tempfile.TemporaryDirectory(dir=values.scratch) as scratch:
        arguments = {"formats": values.formats, "num_images": values.num_images}
        run = in_own_process(measure, scratch=scratch, **arguments)
    counts, sizes = np.array(run["counts"]), np.array(run["bytes"])
    places = np.searchsorted(counts, np.linspace(0, counts[-1], _LINES + 1))
    rows = [[f"{counts[k]:,}", f"{run['seconds'][k]:.0f}", f"{sizes[k] / MIB:.1f}"] for k in places]
    print_table(["samples", "seconds", "anonymous MiB"], rows)
    half = counts >= values.num_images / 2
    slope = np.polyfit(counts[half], sizes[half], 1)[0]
    print(f"\nSlope of the second half: {slope:.0f} bytes per sample.")


if __name__ == "__main__":
    flags.DEFINE_list("formats", ["webdataset"], "Formats of the run.")
    flags.DEFINE_integer("num_images", 10**5, "Samples of the run.", lower_bound=100)
    flags.DEFINE_string("scratch", None, "Folder for the dataset; by default the system's.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
