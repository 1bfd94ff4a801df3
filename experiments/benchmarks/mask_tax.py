"""Measures what a mask costs in addition to its image: time, and memory for recorded attention.

    python -m experiments.benchmarks.mask_tax [--models=small]

The same sampling program runs with and without capture, in turn, in one process; the pair adds the
mask kernels. A model with random weights runs few steps, and its ratio at --num_steps is derived
from the seconds of a step, of decoding and of the kernels. The target is at most 1.10. At 512 x 512
pixels, attention should take 64 MiB per image at side 64, 4 MiB at 32 and 0.25 MiB at 16.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from experiments.benchmarks.measuring import (
    MIB,
    best_seconds,
    in_own_process,
    machine_line,
    print_table,
    use_cores,
)
from experiments.benchmarks.networks import UNETS, make_random_model
from seediff_jax.checkpoints.load import load_model
from seediff_jax.driver.arithmetic import avoid_ynnpack
from seediff_jax.masks.config import MaskConfig, Thresholds
from seediff_jax.masks.label_maps import make_masks
from seediff_jax.models.model import Model, decode_latents
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.sampler import sample
from seediff_jax.schedulers.step import make_steps

THRESHOLD, GUIDANCE_SCALE = np.float32(0.5), np.float32(7.5)
CAPTURES = {"image": False, "pair": True}


def measure(name: str, num_steps: int, batch_size: int, repeats: int) -> dict[str, Any]:
    """Measures time and memory of images alone, images with masks, and the parts of both."""
    avoid_ynnpack()  # as a run does
    model = make_random_model(name) if name in UNETS else load_model(name)
    programs = {key: _compile(model, num_steps, batch_size, on) for key, on in CAPTURES.items()}
    calls = {key: call for key, (call, _) in programs.items()}
    samples = calls["pair"]()
    parts = {
        "decode": _waiting(decode_latents, model, samples.latents),
        "masks": functools.partial(_make_masks, samples),
    }
    seconds = dict.fromkeys((*calls, *parts), math.inf)
    for part in parts.values():
        part()  # compiles
    for _ in range(repeats):
        for key, call in (calls | parts).items():
            seconds[key] = min(seconds[key], best_seconds(call, 1))
    maps = samples.attention_maps.self_attention
    steps = make_steps(model.scheduler_config, num_steps)
    return seconds | {
        "unet_calls": len(steps.timesteps),
        "resident": {side: leaf.nbytes / batch_size for side, leaf in maps.items()},
        "cross": samples.attention_maps.cross_attention.nbytes / batch_size,
        "memory": {key: memory / batch_size for key, (_, memory) in programs.items()},
    }


def _compile(
    model: Model, num_steps: int, batch_size: int, capture: bool
) -> tuple[Callable[[], Any], int]:
    """Compiles a sampling call that waits; returns it with the bytes of results and temporaries."""
    length, random = model.text_config.max_position_embeddings, np.random.default_rng(0)
    token_ids = random.integers(0, model.text_config.vocab_size, (batch_size, length), np.int32)
    token_mask = np.arange(length) == np.full((batch_size, 1 if capture else 0, 1), 5)
    indices = np.arange(batch_size, dtype=np.int32)
    arguments = (model, PairInputs(token_ids, token_ids, token_mask, indices))
    traced = {"rng_seed": np.uint32(0), "guidance_scale": GUIDANCE_SCALE}
    config = SamplingConfig(num_steps=num_steps)
    compiled = sample.lower(*arguments, **traced, config=config).compile()
    memory = compiled.memory_analysis()
    call = _waiting(compiled, *arguments, **traced)
    return call, memory.output_size_in_bytes + memory.temp_size_in_bytes


def _make_masks(samples: Any) -> None:
    thresholds = Thresholds(*3 * [THRESHOLD])
    masks = make_masks(samples.images, samples.attention_maps, thresholds, config=MaskConfig())
    jax.block_until_ready(masks)


def _waiting(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments, **options))


def _row(name: str, figures: dict[str, Any], batch_size: int, num_steps: int) -> tuple[str, ...]:
    """Makes a row of the table of times."""
    image, pair, masks = figures["image"], figures["pair"], figures["masks"]

    def at_all_steps(seconds):
        return (seconds - figures["decode"]) * num_steps / figures["unet_calls"] + figures["decode"]

    derived = (at_all_steps(pair) + masks) / at_all_steps(image)
    return (
        name,
        f"{batch_size}",
        f"{figures['unet_calls']}",
        f"{image:.2f}",
        f"{pair:.2f}",
        f"{figures['decode']:.2f}",
        f"{masks:.3f}",
        f"{(pair + masks) / image:.3f}",
        f"{derived:.3f}",
    )


def _memory_rows(name: str, figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Makes rows of the table of memory: each level, and what capture adds to the program."""
    rows = [
        (
            name,
            f"self-attention, side {side}",
            f"{size / MIB:.3f}",
            f"{4 * int(side) ** 4 / MIB:.3f}",
        )
        for side, size in figures["resident"].items()
    ]
    added = figures["memory"]["pair"] - figures["memory"]["image"]
    held = figures["cross"] + sum(figures["resident"].values())
    rows.append((name, "cross-attention", f"{figures['cross'] / MIB:.3f}", ""))
    rows.append(
        (
            name,
            "results and temporaries, added by capture",
            f"{added / MIB:.3f}",
            f"{held / MIB:.3f}",
        )
    )
    return rows


def main(_) -> None:
    """Measures each model in its own process."""
    values = flags.FLAGS
    use_cores(values.cores)
    print(f"{machine_line()}\n")
    rows, memory_rows = [], []
    for name in values.models:
        is_random = name in UNETS
        steps = values.random_steps if is_random else values.num_steps
        batch_size = 1 if is_random else values.batch_size
        figures = in_own_process(
            measure, name=name, num_steps=steps, batch_size=batch_size, repeats=values.repeats
        )
        rows.append(_row(name, figures, batch_size, values.num_steps))
        memory_rows += _memory_rows(name, figures)
    header = (
        "model",
        "images",
        "UNet calls",
        "sampling, s",
        "with capture, s",
        "decoding part, s",
    )
    print_table(
        (*header, "masks, s", "image + mask, ratio", f"ratio at {values.num_steps} calls"), rows
    )
    print()
    print_table(("model", "memory per image", "MiB", "expected MiB"), memory_rows)


if __name__ == "__main__":
    models = f"Models to load, or random ones: {', '.join(UNETS)}."
    flags.DEFINE_list("models", ["shapes", "sd1"], models)
    flags.DEFINE_integer("num_steps", 50, "Steps of loaded models.", lower_bound=1)
    flags.DEFINE_integer("random_steps", 2, "Steps of random models.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 4, "Images at a time of loaded models.", lower_bound=1)
    flags.DEFINE_integer("repeats", 3, "Timed calls; the fastest counts.", lower_bound=1)
    flags.DEFINE_integer("cores", 2, "CPU cores to use.", lower_bound=1)
    app.run(main)
