"""Compiles one UNet call for an NVIDIA H100, by the compiler alone: no GPU is needed.

    python -m experiments.benchmarks.gpu_compile [--images=1,4,16]

Stable Diffusion 1.4 in bfloat16, 64 x 64 latents, with guidance, with the published layers recorded
and without, by cuDNN's attention and by XLA's. Prints the temporary memory that the compiler
states; it states neither bytes moved nor time. Needs JAX's plugin for CUDA and cuDNN, with cuDNN's
folder in LD_LIBRARY_PATH: pip install 'seediff_jax[cuda]'. JAX 0.10.2 also needs
XLA_FLAGS=--xla_gpu_enable_triton_gemm=false; without it the compiler refuses XLA's attention.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.measuring import MIB, in_own_process, print_table
from experiments.benchmarks.networks import TOKENS, make_unet_config
from experiments.benchmarks.tpu_unet import stored_variables
from seediff_jax.models import attention
from seediff_jax.models.attention_choice import Place
from seediff_jax.models.capture import NO_CAPTURE, published_capture
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet

KIND = "NVIDIA H100 80GB HBM3"
# What XLA reads of a device: the figures of an H100 SXM.
_TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 minor: 0 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{KIND}"
"""


def measure(images: int, choice: str, is_recorded: bool) -> dict[str, Any]:
    """Compiles a call of `images` images; returns its temporaries in bytes, and seconds."""
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=_TARGET
    )
    sharding = NamedSharding(Mesh(np.array(described.devices[:1]), ("data",)), P())
    # A device that is only described has no capability to ask for. JAX asks the device at hand
    # whether cuDNN may take the layers of 160 channels per head, so XLA keeps these here.
    attention.current_place = lambda: Place("cuda", KIND, (8, 0), False)
    config = make_unet_config("sd1")
    capture = published_capture(config) if is_recorded else NO_CAPTURE
    unet, rows = UNet(config, capture, jnp.bfloat16, choice), 2 * images
    inputs = (
        jax.ShapeDtypeStruct((rows, config.sample_size, config.sample_size, 4), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.ShapeDtypeStruct((rows, TOKENS, config.cross_attention_dim), jnp.float32),
        TokenColumns(jax.ShapeDtypeStruct((images * is_recorded, TOKENS, 1), jnp.float32)),
    )
    variables = stored_variables(unet.init, *inputs)
    start = time.perf_counter()
    call = jax.jit(unet.apply, in_shardings=sharding, out_shardings=sharding)
    compiled = call.lower(variables, *inputs).compile()
    return {
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
        "cudnn": compiled.as_text().count("__cudnn$fmha"),
        "seconds": time.perf_counter() - start,
    }


def main(_) -> None:
    """Compiles every call in a process of its own and prints the table."""
    rows = []
    for images in map(int, flags.FLAGS.images):
        for choice in ("auto", "xla"):
            found = [
                in_own_process(measure, images=images, choice=choice, is_recorded=is_recorded)
                for is_recorded in (False, True)
            ]
            memory = (f"{each['temporaries'] / MIB:,.0f}" for each in found)
            layers = f"cuDNN ({found[1]['cudnn']} calls)" if choice == "auto" else "XLA"
            rows.append((str(images), layers, *memory))
    header = ("images", "attention", "temporaries, MiB, nothing recorded", "recorded")
    print_table(header, rows)


if __name__ == "__main__":
    flags.DEFINE_list("images", ["1", "4", "16"], "Images per call.")
    app.run(main)
