"""Compares sets of XLA's CPU flags with the default, in pairs of processes that take turns.

    python -m experiments.benchmarks.cpu_flags [--pairs=5 --sets=no_ynnpack]

Each process times one UNet call of the embedded model's size with the published layers recorded,
and the convolutions and matrix products of Stable Diffusion 1.4 at 64 x 64 latents, float32, two
rows. A set wins a part if it is faster in every pair: with five pairs, noise alone does that once
in 32 times. Takes under four minutes on a quiet machine; on a busy one the result means nothing.

Other flags round differently. The largest difference of the UNet's result from that of the default
flags is printed, relative to its standard deviation; 0 means equal bits.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.benchmarks.measuring import (
    best_seconds,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)

DEFAULT = "default"
SETS = {
    DEFAULT: (),
    "no_convolutions": (
        "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION",
    ),
    "no_ynnpack": ("--xla_cpu_experimental_ynn_fusion_type=",),
    # XNNPACK and YNNPACK take convolutions before oneDNN can. It is in JAX 0.12, not in 0.10.2.
    "onednn": (
        "--xla_cpu_experimental_onednn_custom_call=true",
        "--xla_cpu_use_xnnpack=false",
        "--xla_cpu_experimental_ynn_fusion_type=",
    ),
}
"""Name -> flags of XLA; the driver sets those of "no_convolutions" (`driver.arithmetic`)."""

# Side and channels of 3x3 convolutions; rows, inputs and outputs of matrix products.
CONVOLUTIONS = ((64, 320), (32, 640), (16, 1280), (8, 1280), (8, 2560))
PRODUCTS = ((8192, 320, 2560), (2048, 640, 5120), (512, 1280, 10240), (512, 5120, 1280))
UNET = "UNet call, embedded model"


def measure(repeats: int, result: str) -> dict[str, Any]:
    """Times every part; the flags are those of the process. Writes the UNet's result to a file."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from experiments.benchmarks.unet_call import make_our_call

    random = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(random.standard_normal(shape, np.float32))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    unet = make_our_call("small", True)
    parts: dict[str, Callable[[], Any]] = {UNET: unet}
    for side, width in CONVOLUTIONS:
        arguments = normal(2, side, side, width), normal(3, 3, width, 1280 if side == 8 else width)
        parts[f"3x3 convolution, {side} x {side} x {width}"] = _bound(convolve, *arguments)
    for rows, inputs, outputs in PRODUCTS:
        arguments = normal(rows, inputs), normal(inputs, outputs)
        parts[f"product, {rows} x {inputs} by {outputs}"] = _bound(jnp.matmul, *arguments)
    out, _ = unet()
    np.save(result, np.asarray(out))
    seconds = {}
    for name, call in parts.items():
        jax.block_until_ready(call())  # compiles
        seconds[name] = best_seconds(lambda call=call: jax.block_until_ready(call()), repeats)
    return {"seconds": seconds}


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    import jax

    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def run_pairs(sets: Sequence[str], pairs: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Part -> set -> seconds of each process; the order is reversed in every second round."""
    import numpy as np

    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(pairs):
            for name in sets if turn % 2 == 0 else reversed(sets):
                result = str(Path(folder) / f"{name}.npy")
                os.environ["XLA_FLAGS"] = " ".join(SETS[name])
                figures = in_own_process(measure, repeats=repeats, result=result)
                for part, seconds in figures["seconds"].items():
                    found.setdefault(part, {}).setdefault(name, []).append(seconds)
        expected = np.load(Path(folder) / f"{DEFAULT}.npy")
        for name in sets:
            got = np.load(Path(folder) / f"{name}.npy")
            largest = np.abs(got - expected).max() / expected.std()
            print(f"{name}: {' '.join(SETS[name]) or 'no flags'}; UNet differs by {largest:.1e}")
    return found


def verdict(ratios: Sequence[float]) -> str:
    """Says whether a set is faster or slower than the default in every pair."""
    if max(ratios) < 1:
        return "faster"
    return "slower" if min(ratios) > 1 else "noise"


def rows_of(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[tuple[str, ...]]:
    """One row per part and set: the seconds of both, the ratio of each pair, and the verdict."""
    rows = []
    for part, by_set in found.items():
        base = by_set[DEFAULT]
        for name, seconds in by_set.items():
            if name == DEFAULT:
                continue
            ratios = [other / one for one, other in zip(base, seconds, strict=True)]
            milliseconds = (f"{1e3 * statistics.median(each):.1f}" for each in (base, seconds))
            span = f"{min(ratios):.2f} to {max(ratios):.2f}"
            middle = f"{statistics.median(ratios):.2f}"
            rows.append((part, name, *milliseconds, middle, span, verdict(ratios)))
    return rows


def _refused(name: str) -> bool:
    """Whether this jaxlib does not know a flag of the set, which would end the process."""
    environment = os.environ | {"XLA_FLAGS": " ".join(SETS[name])}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode != 0


def main(_) -> None:
    """Measures and prints the table."""
    values = flags.FLAGS
    if os.environ.get("XLA_FLAGS"):
        raise app.UsageError("XLA_FLAGS is set; unset it, this script sets its own")
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    sets = [DEFAULT]
    for name in values.sets:
        if _refused(name):
            print(f"{name}: this jaxlib does not know its flags")
        else:
            sets.append(name)
    rows = rows_of(run_pairs(sets, values.pairs, values.repeats))
    print()
    header = ("part", "flags", "default, ms", "with flags, ms", "ratio", "of the pairs", "verdict")
    print_table(header, rows)


if __name__ == "__main__":
    known = [name for name in SETS if name != DEFAULT]
    flags.DEFINE_multi_enum(
        "sets", ["no_convolutions", "no_ynnpack"], known, "Sets to compare with the default."
    )
    flags.DEFINE_integer("pairs", 5, "Pairs of processes.", lower_bound=2)
    flags.DEFINE_integer("repeats", 5, "Timed calls per part; the fastest counts.", lower_bound=1)
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
