"""Profiles our UNet call: the share of each kind of layer.

    python -m experiments.benchmarks.unet_parts [--config=small --nocaptured]

The compiler names the layer of each instruction, and durations are grouped by that name.
Instructions may run in parallel, so shares are relative to the sum of durations, not to wall time.
"""

import collections
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.measuring import (
    best_seconds,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.networks import UNETS
from experiments.benchmarks.unet_call import make_our_call

PARTS = {
    "projections of attention": r"/attn\d/to_|/proj_(in|out)/",
    "self-attention": r"/attn1/",
    "cross-attention": r"/attn2/",
    "feed-forward": r"/ff/",
    "norms": r"norm",
    "convolutions": r"conv|downsamplers|upsamplers",
    "sums and activations of ResNet blocks": r"/resnets",
}
"""Part -> pattern of the names of its operations; the first match counts."""

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%(\S+) = (.*)$", re.MULTILINE)
# Their events contain those of the instructions that they run.
_CONTAINERS = ("while", "call", "conditional")


def name_operations(program: str) -> dict[str, str]:
    """Maps each instruction of a compiled program to its operation, or to its first operand's."""
    named, unnamed = {}, {}
    for instruction, definition in _INSTRUCTION.findall(program):
        if operation := re.search(r'op_name="([^"]*)"', definition):
            named[instruction] = operation[1]
        else:
            unnamed[instruction] = re.findall(r"%([\w.-]+)", definition)
    inherited = {
        instruction: next((named[name] for name in operands if name in named), "")
        for instruction, operands in unnamed.items()
    }
    return named | inherited


def part_of(operation: str) -> str:
    """Names the part of an operation like "jit(apply)/UNet/conv_in/conv_general_dilated"."""
    return next((part for part, name in PARTS.items() if re.search(name, operation)), "other")


def profiled_milliseconds(call: Callable[[], Any]) -> dict[str, float]:
    """Measures the milliseconds of each instruction in one call, summed over threads."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        file = next(Path(folder).rglob("*.xplane.pb"))
        data = jax.profiler.ProfileData.from_file(str(file))
        milliseconds = collections.Counter()
        for event in (e for plane in data.planes for line in plane.lines for e in line.events):
            instruction = dict(event.stats).get("hlo_op")
            if instruction and not instruction.startswith(_CONTAINERS):
                milliseconds[instruction] += event.duration_ns / 1e6
    return milliseconds


def main(_) -> None:
    """Profiles one call after a warm-up and prints the table."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    bound = make_our_call(values.config, values.captured)
    compiled = bound.func.lower(*bound.args).compile()

    def call():
        return jax.block_until_ready(compiled(*bound.args))

    call()
    seconds = best_seconds(call, values.repeats)
    operations = name_operations(compiled.as_text())
    parts = collections.Counter()
    for instruction, milliseconds in profiled_milliseconds(call).items():
        parts[part_of(operations.get(instruction, ""))] += milliseconds
    total = sum(parts.values())
    rows = [(part, f"{ms:.0f}", f"{100 * ms / total:.1f} %") for part, ms in parts.most_common()]
    rows.append(("all instructions", f"{total:.0f}", "100.0 %"))
    rows.append(("wall time of a call without the profiler", f"{1e3 * seconds:.0f}", ""))
    print_table(("part", "ms", "share"), rows)


if __name__ == "__main__":
    flags.DEFINE_enum("config", "sd1", list(UNETS), "Size of the UNet.")
    flags.DEFINE_boolean("captured", True, "Whether the published layers are recorded.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Timed calls; the fastest counts.", lower_bound=1)
    app.run(main)
