"""Counts how work is split: FLOPs and memory of each device, on 1, 2, 4 and 8 devices.

    python -m experiments.benchmarks.weak_scaling [--config=small --batch_size=4 --global_batch=8]

Compiles the sampling program for simulated CPU devices, each number of them in its own process, and
counts in the compiled program; nothing is run. In the first table each device has the same number
of images (weak scaling), so its work and memory must stay the same. In the second, one batch is
split over n devices: each must do 1/n of the work, and hold all weights and 1/n of the rest. In
neither may devices exchange data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.hlo_flops import count_flops
from experiments.benchmarks.measuring import GIB, in_own_process, print_table
from experiments.benchmarks.networks import UNETS, make_abstract_model
from experiments.benchmarks.tpu_topologies import collectives_in
from seediff_jax.pipeline.memory import abstract_programs, program_memory
from seediff_jax.pipeline.mesh import make_mesh

_TEXT_KEYS = 2 * 2 * 77 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)
HAND_COUNT = {
    "sd1": 2 * (51 * (803.273e9 - _TEXT_KEYS) + _TEXT_KEYS + 13.299e9) + 2514.52e9,
}
"""FLOPs of one image of 50 PNDM steps (51 UNet calls) with guidance, counted over the layers of
diffusers' UNet and VAE and of transformers' CLIP. The compiler moves keys and values of the text
out of the loop."""


def measure(config: str, devices: int, global_batch: int) -> dict[str, Any]:
    """Compiles the sampling program for a batch that is split over simulated devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    programs = abstract_programs(make_mesh(), make_abstract_model(config), global_batch)
    compiled = programs.sample.compile()
    program, memory = compiled.as_text(), program_memory(compiled, programs.weight_bytes, True)
    return {
        "flops": count_flops(program),
        "collectives": collectives_in(program),
        "arguments": memory.arguments,
        "results": memory.outputs,
        "temporaries": memory.temporaries,
    }


def scaling_table(config: str, global_batches: Mapping[int, int]) -> None:
    """Prints a table of runs on several numbers of devices.

    Args:
        config: one of UNETS.
        global_batches: number of devices -> images on all devices together.
    """
    header = ["devices", "images per device", "TFLOP per device", "per image, ratio to first row"]
    header += ["ratio to a count by hand"] if config in HAND_COUNT else []
    header += ["weights and arguments, GiB per device", "results", "temporaries", "collectives"]
    print_table(header, _scaling_rows(config, global_batches))


def _scaling_rows(config: str, global_batches: Mapping[int, int]) -> Iterator[list[str]]:
    alone = None
    for devices, images in global_batches.items():
        run = in_own_process(measure, config=config, devices=devices, global_batch=images)
        per_image = run["flops"] * devices / images
        alone = alone or per_image
        row = [f"{devices}", f"{images // devices}", f"{run['flops'] / 1e12:.3f}"]
        row.append(f"{per_image / alone:.4f}")
        row += [f"{per_image / HAND_COUNT[config]:.4f}"] if config in HAND_COUNT else []
        row += [f"{run[name] / GIB:.3f}" for name in ("arguments", "results", "temporaries")]
        yield [*row, ", ".join(run["collectives"]) or "none"]


def main(_) -> None:
    """Prints both tables."""
    values = flags.FLAGS
    devices = [int(text) for text in values.devices]
    print(f"Weak scaling, {values.batch_size} images per device:\n")
    scaling_table(values.config, {count: count * values.batch_size for count in devices})
    print(f"\nA batch of {values.global_batch} images, split over the devices:\n")
    scaling_table(values.config, dict.fromkeys(devices, values.global_batch))


if __name__ == "__main__":
    flags.DEFINE_enum("config", "sd1", list(UNETS), "Size of the model.")
    flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of simulated devices.")
    images = "Images on each device, in the first table."
    flags.DEFINE_integer("batch_size", 1, images, lower_bound=1)
    images = "Images on all devices together, in the second table."
    flags.DEFINE_integer("global_batch", 8, images, lower_bound=1)
    app.run(main)
