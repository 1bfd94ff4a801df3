"""Measures a GPU in at most eight minutes: this package beside torch, and recording beside not.

    python -m experiments.benchmarks.gpu [--config=small --dtype=float32 --batches=1]

UNet calls of Stable Diffusion 1.4 with guidance and random weights in bfloat16, for batches of 1, 4
and 16 images. Each variant has a process of its own, so that memory is its own, and a row is
printed as soon as it is ready; what does not start in time is left out. Without a GPU the script
runs on the CPU, for which the small config is meant.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.measuring import (
    GIB,
    best_seconds,
    describe_machine,
    in_own_process,
    print_table,
)
from experiments.benchmarks.networks import (
    TOKENS,
    UNETS,
    make_unet_config,
    random_inputs,
    random_params,
)
from seediff_jax.errors import UserError
from seediff_jax.models.capture import NO_CAPTURE, published_capture
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet

ROW_FLOPS = {"sd1": 803.273e9}
"""FLOPs of one row of a UNet call, counted on diffusers' modules."""

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by a part of the GPU's name, from NVIDIA's data sheets."""

CALLS = 51
"""UNet calls of 50 PNDM steps; images/s are those of the calls alone."""


def measure_ours(
    config: str, dtype: str, batch: int, attention: str, is_recorded: bool
) -> dict[str, Any]:
    """Measures this package; with `is_recorded` the published layers of the prompt's rows."""
    unet_config, device = make_unet_config(config), jax.devices()[0]
    capture = published_capture(unet_config) if is_recorded else NO_CAPTURE
    unet = UNet(unet_config, capture, jnp.dtype(dtype), attention)
    columns = TokenColumns(jnp.full((batch * is_recorded, TOKENS, 1), 1 / TOKENS))
    inputs = (*random_inputs(unet_config, 2 * batch), columns)
    with jax.default_device(jax.devices("cpu")[0]):
        params = random_params(lambda: UNet(unet_config).init(jax.random.key(0), *inputs))
        params = jax.tree.map(lambda x: x.astype(dtype if x.ndim > 1 else x.dtype), params)
    arguments = jax.device_put((params, *inputs), device)
    try:
        compiled = jax.jit(unet.apply).lower(*arguments).compile()
    except UserError as error:
        return {"refused": str(error)}
    sizes = compiled.memory_analysis()
    taken = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    jax.block_until_ready(compiled(*arguments))
    seconds = _seconds(lambda: jax.block_until_ready(compiled(*arguments)))
    return {"seconds": seconds, "device": device.device_kind, "bytes": taken}


def measure_torch(config: str, dtype: str, batch: int, keep: bool) -> dict[str, Any]:
    """Measures diffusers; with `keep` each layer stores its probabilities, else it uses SDPA."""
    import torch

    from experiments.benchmarks.torch_unet import keep_probs, make_unet, to_torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet, kept = make_unet(UNETS[config]).to(device, getattr(torch, dtype)), []
    if keep:
        keep_probs(unet, kept)
    latents, timesteps, text = to_torch(random_inputs(make_unet_config(config), 2 * batch))
    latents, text = (x.to(device, getattr(torch, dtype)) for x in (latents, text))
    timesteps = timesteps.to(device)

    @torch.inference_mode()
    def call():
        kept.clear()
        unet(latents, timesteps, text)
        if device == "cuda":
            torch.cuda.synchronize()

    call()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    call()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"seconds": _seconds(call), "bytes": peak}


def _seconds(call: Any) -> float:
    """Best of as many calls as fit into a second, at least two."""
    once = best_seconds(call, 1)
    return min(once, best_seconds(call, max(1, min(20, int(1 / once)))))


def measure_parity(config: str) -> dict[str, float]:
    """Compares one recorded call in float32 on the default device with the CPU's."""
    unet_config = make_unet_config(config)
    unet = UNet(unet_config, published_capture(unet_config))
    columns = TokenColumns(jnp.full((1, TOKENS, 1), 1 / TOKENS))
    inputs = (*map(jnp.asarray, random_inputs(unet_config, 1)), columns)
    variables = random_params(lambda: unet.init(jax.random.key(0), *inputs))
    results = []
    with jax.default_matmul_precision("highest"):
        for device in (jax.devices()[0], jax.devices("cpu")[0]):
            placed = jax.device_put((variables, *inputs), device)
            results.append(jax.device_get(jax.jit(unet.apply)(*placed)))
    (noise, maps), (cpu_noise, cpu_maps) = results
    leaves = zip(jax.tree.leaves(maps), jax.tree.leaves(cpu_maps), strict=True)
    return {
        "noise": float(np.abs(noise - cpu_noise).max() / cpu_noise.std()),
        "maps": max(float(np.abs(one - other).max()) for one, other in leaves),
    }


def variants(batches: list[int]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Yields the name, function and arguments of every variant, the most telling ones first."""
    for batch in batches:
        for attention, is_recorded in itertools.product(("auto", "xla"), (False, True)):
            name = f"ours, {attention}{', recorded' if is_recorded else ''}"
            options = {"batch": batch, "attention": attention, "is_recorded": is_recorded}
            yield name, measure_ours, options
        yield "torch, SDPA", measure_torch, {"batch": batch, "keep": False}
        yield "torch, all kept", measure_torch, {"batch": batch, "keep": True}
    for batch in batches:
        options = {"batch": batch, "attention": "cudnn", "is_recorded": False}
        yield "ours, cudnn", measure_ours, options


def make_rows(config: str, dtype: str, batches: list[int], end: float) -> Iterator[list[str]]:
    """Measures until the time `end`, of `time.monotonic`; yields a row of the table for each."""
    plain: dict[tuple[int, str], float] = {}
    for name, function, options in variants(batches):
        batch = options["batch"]
        if time.monotonic() > end:
            yield [str(batch), name, "not started in time", *[""] * 5]
            continue
        figures = in_own_process(function, config=config, dtype=dtype, **options)
        if "refused" in figures:
            yield [str(batch), name, figures["refused"], *[""] * 5]
            continue
        seconds, taken = figures["seconds"], figures["bytes"]
        of = (batch, options.get("attention", "torch"))
        without = plain.setdefault(of, seconds)
        is_recording = options.get("is_recorded") or options.get("keep")
        yield [
            str(batch),
            name,
            f"{1e3 * seconds:.1f}",
            f"{batch / (CALLS * seconds):.3f}",
            _share_of_peak(config, 2 * batch, seconds, figures.get("device", "")),
            f"{100 * (seconds / without - 1):+.1f} %" if is_recording else "",
            f"{taken / GIB:.2f}" if taken else "",
            f"{figures['peak_memory'] / GIB:.2f}",
        ]


def _share_of_peak(config: str, rows: int, seconds: float, device: str) -> str:
    peak = next((rate for name, rate in PEAKS.items() if name in device), None)
    if peak is None or config not in ROW_FLOPS:
        return ""
    return f"{100 * rows * ROW_FLOPS[config] / seconds / peak:.1f} %"


HEADER = ("images", "variant", "ms per call", "images/s", "of peak", "recording adds")
HEADER += ("GiB on the device", "GiB of the process")


def main(_) -> None:
    """Prints the table, and how far the device's attention maps are from the CPU's."""
    values = flags.FLAGS
    end = time.monotonic() + 60 * values.minutes
    print(", ".join(describe_machine("jax", "torch")), flush=True)
    batches = list(map(int, values.batches))
    print_table(HEADER, make_rows(values.config, values.dtype, batches, end))
    if time.monotonic() < end:
        parity = in_own_process(measure_parity, config=values.config)
        print(
            "\nfloat32 on this device against the CPU, largest difference: noise "
            f"{parity['noise']:.1e} standard deviations, attention maps {parity['maps']:.1e}"
        )


if __name__ == "__main__":
    flags.DEFINE_enum("config", "sd1", list(UNETS), "Size of the UNet.")
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Precision.")
    flags.DEFINE_list("batches", ["4", "1", "16"], "Images at a time, in the order of measuring.")
    flags.DEFINE_float("minutes", 7.0, "No variant starts later; the last one takes up to one.")
    app.run(main)
