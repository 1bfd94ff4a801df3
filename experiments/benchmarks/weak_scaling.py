"""How the work of a batch is split: FLOPs and memory of each device on 1, 2, 4 and 8 of them.

    python -m experiments.benchmarks.weak_scaling [--config=small --global_batch=8]

Compiles the sampling program for simulated CPU devices, each number of them in a process of its
own, and counts in what was compiled; nothing is run. With one batch split over n devices, each must
do 1/n of the work, hold all weights and 1/n of the rest, and exchange nothing.
"""

from typing import Any

import jax
from absl import app, flags

from experiments.benchmarks.hlo_flops import count_flops
from experiments.benchmarks.measuring import GIB, in_own_process, print_table
from experiments.benchmarks.networks import UNETS, make_abstract_model
from experiments.benchmarks.tpu_topologies import collectives_in
from seediff_jax.programs import abstract_programs, program_memory
from seediff_jax.sharding import make_mesh

_TEXT_KEYS = 2 * 2 * 77 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)
HAND_COUNT = {
    "sd1": 2 * (51 * (803.273e9 - _TEXT_KEYS) + _TEXT_KEYS + 13.299e9) + 2514.52e9,
}
"""FLOPs of an image of 50 PNDM steps, which are 51 UNet calls, with guidance: those of the layers
of diffusers' UNet and VAE and of transformers' CLIP. The compiler moves keys and values of the text
out of the loop."""


def measure(config: str, devices: int, global_batch: int) -> dict[str, Any]:
    """Compiles the sampling program of a batch that is split over so many simulated devices."""
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


def main(_) -> None:
    """Prints the table."""
    values = flags.FLAGS
    rows, alone = [], None
    for devices in map(int, values.devices):
        figures = in_own_process(
            measure, config=values.config, devices=devices, global_batch=values.global_batch
        )
        alone = alone or figures["flops"] * devices
        row = (f"{devices}", f"{values.global_batch // devices}", f"{figures['flops'] / 1e12:.3f}")
        row += (f"{figures['flops'] * devices / alone:.4f}",)
        if values.config in HAND_COUNT:
            hand = HAND_COUNT[values.config] * values.global_batch / devices
            row += (f"{figures['flops'] / hand:.4f}",)
        row += tuple(
            f"{figures[name] / GIB:.3f}" for name in ("arguments", "results", "temporaries")
        )
        rows.append((*row, ", ".join(figures["collectives"]) or "none"))
    header = ("devices", "images a device", "TFLOP a device", "times devices, of the first row's")
    header += ("of a count by hand",) if values.config in HAND_COUNT else ()
    header += ("weights and arguments, GiB a device", "results", "temporaries", "collectives")
    print_table(header, rows)


if __name__ == "__main__":
    flags.DEFINE_enum("config", "sd1", list(UNETS), "Size of the model.")
    flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of simulated devices.")
    flags.DEFINE_integer("global_batch", 8, "Images on all devices together.", lower_bound=1)
    app.run(main)
