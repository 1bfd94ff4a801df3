"""Compares one UNet call with torch: is recording attention cheap in time and memory?

    python -m experiments.benchmarks.unet_call [--config=small]

float32, the two rows of one guided image. The target, with the published layers recorded: at most
1.5 times the seconds of torch with fused attention, and less time and memory than torch when it
keeps the probabilities of all layers, which is how the authors' release reads attention.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.benchmarks.measuring import (
    GIB,
    best_seconds,
    in_own_process,
    machine_line,
    peak_memory,
    print_table,
    use_cores,
)
from experiments.benchmarks.networks import (
    TOKENS,
    UNETS,
    make_unet_config,
    random_inputs,
    random_params,
)
from seediff_jax.driver.arithmetic import avoid_ynnpack
from seediff_jax.models.capture import published_capture
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet

BATCH_SIZE = 2


def measure_ours(config: str, captured: bool, repeats: int) -> dict[str, Any]:
    """Measures this package; `captured` records the published layers of the conditional row."""
    avoid_ynnpack()
    call = make_our_call(config, captured)
    return _measure(lambda: jax.block_until_ready(call()), repeats)


def make_our_call(config: str, captured: bool) -> Callable[[], Any]:
    """Makes a compiled UNet call, bound to random weights and inputs."""
    unet_config = make_unet_config(config)
    unet = UNet(unet_config, published_capture(unet_config))
    columns = TokenColumns(jnp.full((int(captured), TOKENS, 1), 1 / TOKENS))
    inputs = (*map(jnp.asarray, random_inputs(unet_config, BATCH_SIZE)), columns)
    variables = random_params(lambda: unet.init(jax.random.key(0), *inputs))
    return functools.partial(jax.jit(unet.apply), variables, *inputs)


def measure_torch(config: str, keep: bool, repeats: int) -> dict[str, Any]:
    """Measures diffusers; with `keep` each layer stores its probabilities, else it uses SDPA."""
    import torch

    from experiments.benchmarks.torch_unet import keep_probs, make_unet, to_torch

    unet, kept = make_unet(UNETS[config]), []
    if keep:
        keep_probs(unet, kept)
    inputs = to_torch(random_inputs(make_unet_config(config), BATCH_SIZE))

    @torch.inference_mode()
    def call():
        kept.clear()
        unet(*inputs)

    return _measure(call, repeats)


def _measure(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    memory_before, start = peak_memory(), time.perf_counter()
    call()
    first = time.perf_counter() - start
    return {"before": memory_before, "first": first, "seconds": best_seconds(call, repeats)}


VARIANTS = {
    "torch, fused attention": (measure_torch, {"keep": False}),
    "torch, all layers' probabilities kept": (measure_torch, {"keep": True}),
    "ours, nothing recorded": (measure_ours, {"captured": False}),
    "ours, published layers recorded": (measure_ours, {"captured": True}),
}


def _row(
    name: str, figures: dict[str, Any], fused: dict[str, Any], kept: dict[str, Any]
) -> tuple[str, ...]:
    """Makes a row: seconds and memory, and their ratios to both torch variants."""
    seconds, memory = figures["seconds"], figures["peak_memory"]
    return (
        name,
        f"{seconds:.2f}",
        f"{seconds / fused['seconds']:.2f}",
        f"{seconds / kept['seconds']:.2f}",
        f"{memory / GIB:.2f}",
        f"{memory / kept['peak_memory']:.2f}",
        f"{figures['before'] / GIB:.2f}",
        f"{figures['first']:.1f}",
    )


def main(_) -> None:
    """Measures each variant in its own process and prints the table."""
    use_cores(flags.FLAGS.cores)
    print(f"{machine_line()}\n")
    arguments = {"config": flags.FLAGS.config, "repeats": flags.FLAGS.repeats}
    results = {
        name: in_own_process(variant, **arguments, **options)
        for name, (variant, options) in VARIANTS.items()
    }
    fused, kept, *_ = results.values()
    header = (
        "UNet call, batch 2, float32",
        "seconds",
        "ratio to fused",
        "ratio to kept",
        "peak GiB",
    )
    header += ("ratio to kept", "GiB before the call", "first call, s")
    print_table(header, [_row(name, figures, fused, kept) for name, figures in results.items()])


if __name__ == "__main__":
    flags.DEFINE_enum("config", "sd1", list(UNETS), "Size of the UNet.")
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Timed calls; the fastest counts.", lower_bound=1)
    app.run(main)
