"""Which flags of the TPU compiler make one UNet call cheaper: those that public recipes set.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.tpu_flags [--call=v5e:1x1/8/auto]

The flags for collectives are left out: a UNet call has none. Each set is given as
LIBTPU_INIT_ARGS to a process of its own, which compiles the call with the published layers recorded
and no TPU. Prints bytes, roofline time and temporaries by the compiler. Needs libtpu:
pip install 'seediff_jax[tpu]'.
"""

import os
import subprocess

from absl import app, flags

from experiments.benchmarks.measuring import MIB, in_own_process, print_table
from experiments.benchmarks.tpu_unet import measure

SETS = (
    "",
    "--xla_tpu_scoped_vmem_limit_kib=32768",
    "--xla_tpu_scoped_vmem_limit_kib=65536",
    "--xla_tpu_scoped_vmem_limit_kib=98304",
    "--xla_tpu_rwb_fusion=false",
    "--xla_tpu_dot_dot_fusion=false",
    "--xla_tpu_nd_short_transfer_max_chunks=2048",
    "--xla_tpu_autofdo=false",
)


def main(_) -> None:
    """Compiles the call with each set and prints the table."""
    topology, images, attention = flags.FLAGS.call.split("/")
    call = {"topology": topology, "images": int(images), "attention": attention}
    rows = []
    for args in SETS:
        os.environ["LIBTPU_INIT_ARGS"] = args
        try:
            figures = in_own_process(measure, **call, is_recorded=True)
        except subprocess.CalledProcessError as error:
            rows.append((args, f"the compiler ended with status {error.returncode}", "", ""))
            continue
        if "refused" in figures:
            rows.append((args, figures["refused"], "", ""))
            continue
        roofline, temporaries = figures["roofline_s"], figures["temporaries"]
        columns = (figures["bytes"] / 1e9, 1e3 * roofline, temporaries / MIB)
        rows.append((args or "none", *(f"{value:,.1f}" for value in columns)))
    print_table(("LIBTPU_INIT_ARGS", "GB moved", "roofline, ms", "temporaries, MiB"), rows)


if __name__ == "__main__":
    flags.DEFINE_string("call", "v5e:1x1/8/auto", "Slice, images and attention of the call.")
    app.run(main)
