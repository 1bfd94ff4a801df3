"""Is decoding bound by memory on a TPU? What the compiler says; no TPU is needed.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.tpu_decode [--topologies=v5e:1x1]

The VAE of Stable Diffusion 1.4 in bfloat16, 64 x 64 latents to 512 x 512 pixels. Needs libtpu:
pip install 'seediff_jax[tpu]'.
"""

from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.measuring import MIB, in_own_process, print_table
from experiments.benchmarks.networks import PARTS
from experiments.benchmarks.tpu_topologies import make_topology_mesh
from experiments.benchmarks.tpu_unet import figures_of, stored_variables
from seediff_jax.models.config import vae_config
from seediff_jax.models.vae import AutoencoderKL
from seediff_jax.pipeline.batch_size import QUICK
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.settings import DATA


def measure(topology: str, images: int) -> dict[str, Any]:
    """Returns the figures of decoding `images` images on one chip of a slice."""
    vae = AutoencoderKL(vae_config(PARTS["sd1"][1]), jnp.bfloat16)
    mesh = make_mesh(devices=make_topology_mesh(topology).devices.flat[:1])
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    latents = jax.ShapeDtypeStruct((images, 64, 64, 4), jnp.float32)

    def decode(variables, latents):
        return vae.apply(variables, latents, method="decode")

    call = jax.shard_map(decode, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P(DATA))
    variables = stored_variables(vae.init, pixels)
    return figures_of(jax.jit(call).lower(variables, latents).compile(QUICK))


def main(_) -> None:
    """Compiles each case and prints the table."""
    rows = []
    for topology in flags.FLAGS.topologies:
        for images in map(int, flags.FLAGS.images):
            figures = in_own_process(measure, topology=topology, images=images)
            values = (
                figures["flops"] / 1e12,
                figures["bytes"] / 1e9,
                1e3 * figures["roofline_s"],
                figures["temporaries"] / MIB,
            )
            rows.append((topology, f"{images}", *(f"{value:,.2f}" for value in values)))
    header = ("slice", "images", "TFLOP", "GB moved", "roofline, ms", "temporaries, MiB")
    print_table(header, rows)


if __name__ == "__main__":
    flags.DEFINE_list("topologies", ["v5e:1x1"], "Slices to compile for.")
    flags.DEFINE_list("images", ["1", "8"], "Images per chip.")
    app.run(main)
