"""Timing, memory and tables for the benchmarks.

A variant is a function that returns a dict of figures. `in_own_process` calls it in a new process,
so that its peak memory is its own and no other library has threads there:

    python -m experiments.benchmarks.measuring MODULE FUNCTION ARGUMENTS_AS_JSON
"""

import importlib
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

MIB, GIB = 2**20, 2**30


def use_cores(count: int) -> None:
    """Restricts this process and its children to the first `count` of its cores."""
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        raise ValueError(f"--cores={count}, but this process may use {len(cores)}")
    os.sched_setaffinity(0, cores[:count])


def machine_line() -> str:
    """Names the CPU, the cores in use, the load before the run, and the versions of libraries."""
    cpu, *versions = describe_machine("jax", "torch")
    return ", ".join([cpu, f"load {os.getloadavg()[0]:.1f}", *versions])


def describe_machine(*libraries: str) -> list[str]:
    """Names the CPU with the cores in use, and the versions of Python and of libraries."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    cores = f"{cpu}, {len(os.sched_getaffinity(0))} cores"
    versions = [f"{name} {importlib.metadata.version(name)}" for name in libraries]
    return [cores, f"Python {platform.python_version()}", *versions]


def best_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Times the fastest of `repeats` calls; `call` must wait for its result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_own_process(variant: Callable[..., dict[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Calls a function of a module in a new process.

    Args:
        variant: returns figures, as JSON values.
        arguments: its arguments, as JSON values.

    Returns:
        The figures, and the process's peak memory in bytes as "peak_memory".
    """
    # A script that runs with `python -m` is "__main__", and its spec has the name to import.
    module = sys.modules[variant.__module__].__spec__.name
    print(f"measuring {variant.__name__} {arguments}", file=sys.stderr)
    command = [sys.executable, "-m", __spec__.name, module, variant.__name__, json.dumps(arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    return "\n".join(_table_lines(header, rows))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a Markdown table, each row as soon as it is ready."""
    for line in _table_lines(header, rows):
        print(line, flush=True)


def _table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for line in itertools.chain((header, ["---"] * len(header)), rows):
        yield f"| {' | '.join(line)} |"


def _main(module: str, function: str, arguments: str) -> None:
    figures = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(figures | {"peak_memory": peak_memory()}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
