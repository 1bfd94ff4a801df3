"""Times a run of the driver in a fresh process, with an empty and with a filled compilation cache.

    python -m experiments.benchmarks.cold_warm [--model=FOLDER]

Each run makes images with masks. Its seconds include the start of Python and the loading of the
model. A third run, which is not timed, counts the programs that are compiled in spite of the cache.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.measuring import in_own_process, machine_line, print_table, use_cores
from seediff_jax.main import main as run_driver

_REQUESTED = "/jax/compilation_cache/compile_requests_use_cache"
_FOUND = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"


def time_driver(arguments: list[str]) -> float:
    """Runs `python -m seediff_jax.main` in a new process; returns its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "seediff_jax.main", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def count_compilations(arguments: list[str]) -> dict[str, Any]:
    """Runs the driver in this process; counts all programs, and those found in the cache.

    "seconds" are spent on compiling the others and on reading the cache.
    """
    events, seconds = [], []

    def add_seconds(event, duration, **unused):
        if event == _COMPILED:
            seconds.append(duration)

    jax.monitoring.register_event_listener(lambda event, **unused: events.append(event))
    jax.monitoring.register_event_duration_secs_listener(add_seconds)
    if run_driver(["seediff", *arguments]):
        raise RuntimeError("the driver failed; its message is above")
    programs, found = events.count(_REQUESTED), events.count(_FOUND)
    return {"programs": programs, "found": found, "seconds": sum(seconds)}


def main(_) -> None:
    """Runs the driver three times and prints the table."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        settings = [
            f"--model={values.model}",
            f"--classes={values.classes}",
            f"--num_images={values.num_images}",
            f"--batch_size={values.num_images}",
            f"--num_steps={values.num_steps}",
            f"--compilation_cache={Path(scratch, 'cache')}",
        ]
        # Each run gets its own folder, because a finished one would be left as it is.
        cold, warm = (
            time_driver([*settings, f"--output={Path(scratch, name)}"]) for name in ("cold", "warm")
        )
        arguments = [*settings, f"--output={Path(scratch, 'counted')}"]
        counts = in_own_process(count_compilations, arguments=arguments)
    compiled = counts["programs"] - counts["found"]
    header = (
        f"{values.num_images} images with masks, {values.num_steps} steps",
        "seconds",
        "of cold",
    )
    rows = [
        ("empty compilation cache", f"{cold:.1f}", "1.00"),
        ("filled compilation cache", f"{warm:.1f}", f"{warm / cold:.2f}"),
    ]
    print_table(header, rows)
    print(
        f"\nWith a filled cache, {compiled} of {counts['programs']} programs are compiled; that "
        f"and reading the others takes {counts['seconds']:.2f} s."
    )


if __name__ == "__main__":
    flags.DEFINE_string("model", "shapes", "Model of the driver.")
    flags.DEFINE_string("classes", "shapes", "Classes of the driver.")
    flags.DEFINE_integer("num_images", 4, "Images, in one batch.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 25, "Denoising steps.", lower_bound=1)
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
