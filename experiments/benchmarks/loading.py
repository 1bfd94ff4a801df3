"""Measures seconds and memory of loading a model of Stable Diffusion 1.4's size, and of diffusers.


    python -m experiments.benchmarks.loading [--model=sd1] [--repeats=3]

Each load runs in its own process. It reads the same folder from a warm page cache, then reads all
weights once, because torch may map the files and not read them before. Libraries are imported
before the clock starts, but the seconds of the process include them. Peak memory is resident
memory. It includes mapped files, which the system can drop at any time, so the anonymous part is
listed as well; it is sampled every 5 ms.

A plain copy of the files into new memory, by one thread, is measured too. A loader whose weights
are not the mapped files does at least that much. On a virtual machine, touching memory for the
first time can cost far more than the copy itself.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
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

LOADS = (("float32", "float32"), ("float16", "float16"), ("float16", "bfloat16"))
"""The dtype of the stored weights and that of the loaded ones."""


def write_model(model: str, folder: str, dtype: str) -> dict[str, Any]:
    """Writes a folder with random weights; returns their size as "bytes"."""
    from experiments.benchmarks.networks import make_random_model
    from seediff_jax.checkpoints.diffusers_folder import save_model

    save_model(make_random_model(model), folder, dtype=dtype)
    return {"bytes": sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))}


def load_ours(folder: str, dtype: str) -> dict[str, Any]:
    """Loads a folder with `load_model`."""
    import jax
    import numpy as np
    from transformers import CLIPTokenizer  # as diffusers does

    from seediff_jax.checkpoints.load import load_model

    del CLIPTokenizer

    with measured() as figures:
        model = load_model(folder, dtype=dtype)
        figures["load"] = time.perf_counter()
        # The arrays of a CPU are NumPy's; a sum by JAX would have to be compiled.
        for leaf in jax.tree.leaves(model.params):
            np.asarray(leaf).view(np.uint8).max()
    return figures


def load_diffusers(folder: str, dtype: str) -> dict[str, Any]:
    """Loads a folder with diffusers' pipeline."""
    import torch
    from diffusers import StableDiffusionPipeline

    with measured() as figures:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
        figures["load"] = time.perf_counter()
        for part in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
            for parameter in part.parameters():
                parameter.data.view(torch.uint8).max()
    return figures


def load_copy(folder: str, dtype: str) -> dict[str, Any]:
    """Copies the files of a folder into memory; ignores the dtype."""
    import numpy as np

    del dtype
    with measured() as figures:
        copies = []
        for path in Path(folder).rglob("*.safetensors"):
            copies.append(np.empty(path.stat().st_size, np.uint8))
            with open(path, "rb", buffering=0) as file:
                read = 0
                while read < copies[-1].size:
                    read += file.readinto(copies[-1][read:])
        figures["load"] = time.perf_counter()
        for copy in copies:
            copy.max()
    return figures


@contextlib.contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Yields a dict in which the block stores the time when the model is loaded, as "load".

    Afterwards the dict has seconds as "load", "read" and "cpu" (of all cores, for both), and bytes
    as "before" (resident before the block), "peak" (largest resident memory of this process) and
    "anonymous" (largest sample of anonymous memory).
    """
    figures: dict[str, Any] = {"before": resident("VmRSS")}
    done = threading.Event()
    samples = []

    def watch():
        while not done.wait(0.005):
            samples.append(resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        yield figures
    finally:
        end, figures["cpu"] = time.perf_counter(), time.process_time() - start_cpu
        done.set()
        watcher.join()
    figures["read"] = end - figures["load"]
    figures["load"] -= start
    figures["peak"] = resident("VmHWM")
    figures["anonymous"] = max(samples)


def resident(field: str) -> int:
    """Reads a line of this process's /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


def fastest(load: Any, folder: str, dtype: str, repeats: int) -> dict[str, Any]:
    """Measures the fastest of several loads, with the seconds of its whole process."""
    runs = []
    for _ in range(repeats):
        for path in Path(folder).rglob("*.safetensors"):  # into the page cache
            with open(path, "rb") as file, open(os.devnull, "wb") as nowhere:
                shutil.copyfileobj(file, nowhere)
        start = time.perf_counter()
        figures = in_own_process(load, folder=folder, dtype=dtype)
        runs.append(figures | {"process": time.perf_counter() - start})
    return min(runs, key=lambda run: run["load"] + run["read"])


LOADERS = {"seediff_jax": load_ours, "diffusers": load_diffusers, "plain copy": load_copy}


def make_rows(model: str, scratch: Path, repeats: int) -> Iterator[list[str]]:
    """Measures every loader on every folder."""
    stored_sizes: dict[str, int] = {}
    for stored, loaded in LOADS:
        folder = str(scratch / stored)
        if stored not in stored_sizes:
            written = in_own_process(write_model, model=model, folder=folder, dtype=stored)
            stored_sizes[stored] = written["bytes"]
        size = stored_sizes[stored]
        for name, load in LOADERS.items():
            run = fastest(load, folder, loaded, repeats)
            yield [
                f"{stored}, {size / GIB:.2f} GiB",
                loaded,
                name,
                *(f"{run[key]:.1f}" for key in ("load", "read", "cpu", "process")),
                *(f"{run[key] / GIB:.2f}" for key in ("before", "peak", "anonymous")),
                f"{run['peak'] / size:.2f}",
            ]


def main(_) -> None:
    """Prints the table."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    header = ["stored", "loaded", "by", "load s", "then read s", "CPU s", "process s"]
    header += ["GiB before", "peak GiB", "anonymous GiB", "peak / file"]
    with tempfile.TemporaryDirectory() as scratch:
        print_table(header, list(make_rows(values.model, Path(scratch), values.repeats)))


if __name__ == "__main__":
    flags.DEFINE_enum("model", "sd1", ["sd1", "small"], "Size of the model.")
    flags.DEFINE_integer("repeats", 3, "Processes for each row, of which the fastest counts.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
