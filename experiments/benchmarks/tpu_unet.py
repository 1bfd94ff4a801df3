"""Compiles one UNet call for a TPU chip, by the compiler alone: no TPU is needed.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.tpu_unet [--calls=v5e:1x1/2/auto/recorded]

Stable Diffusion 1.4 in bfloat16, 64 x 64 latents, with guidance, with the published layers recorded
and without, by XLA's attention and by what `--attention=auto` takes. Each program has a process of
its own and takes a minute. Writes docs/tpu_unet.json after each, from which tpu_memory.py makes its
page, and prints the table. What the JSON file has is not compiled again. Needs libtpu:
pip install 'seediff_jax[tpu]'.
"""

import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.hlo_bytes import bytes_by_part
from experiments.benchmarks.measuring import in_own_process
from experiments.benchmarks.networks import TOKENS, make_unet_config
from experiments.benchmarks.tpu_topologies import make_topology_mesh
from experiments.benchmarks.tpu_unet_table import JSON_FILE, render_calls
from seediff_jax.models.capture import NO_CAPTURE, layer_sizes, published_capture
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet
from seediff_jax.pipeline.batch_size import QUICK
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.settings import DATA


def _calls() -> list[str]:
    """Slice, images per chip, attention, and whether the published layers are recorded."""
    chips = ("v5e:1x1", "v6e:1x1", "v5p:2x2x1", "v4:2x2x1")
    kinds = ("auto/recorded", "auto/plain", "xla/recorded")
    return [f"{chip}/{batch}/{kind}" for chip in chips for batch in (2, 8, 16, 1) for kind in kinds]


def compile_call(topology: str, images: int, attention: str, is_recorded: bool) -> Any:
    """Compiles a UNet call of `images` images for one chip of a slice.

    A recorded one adds its self-attention to that of earlier calls, in place, as sampling does.
    """
    config = make_unet_config("sd1")
    capture = published_capture(config) if is_recorded else NO_CAPTURE
    unet = UNet(config, capture, jnp.bfloat16, attention)
    mesh = make_mesh(devices=make_topology_mesh(topology).devices.flat[:1])
    rows, side = 2 * images, config.sample_size
    weights = jax.ShapeDtypeStruct((images * is_recorded, TOKENS, 1), jnp.float32)
    sizes = layer_sizes(config, (side, side))
    locations = {name: math.prod(sizes[name]) for name in capture.self_layers}
    totals = {
        name: jax.ShapeDtypeStruct((images, n, n), jnp.float32) for name, n in locations.items()
    }
    inputs = (
        jax.ShapeDtypeStruct((rows, side, side, config.in_channels), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.ShapeDtypeStruct((rows, TOKENS, config.cross_attention_dim), jnp.float32),
        TokenColumns(weights, totals=totals),
    )
    variables = stored_variables(unet.init, *inputs)
    # Kernels are compiled for the devices of the mesh that is mapped over.
    call = jax.shard_map(unet.apply, mesh=mesh, in_specs=(P(), *[P(DATA)] * 4), out_specs=P(DATA))
    return jax.jit(call, donate_argnums=4).lower(variables, *inputs).compile(QUICK)


def stored_variables(init: Callable[..., Any], *inputs: jax.ShapeDtypeStruct) -> Any:
    """Shapes of a network's variables, as a bfloat16 run stores them."""

    def stored(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if leaf.ndim > 1 else jnp.float32)

    return jax.tree.map(stored, jax.eval_shape(init, jax.random.key(0), *inputs))


def measure(topology: str, images: int, attention: str, is_recorded: bool) -> dict[str, Any]:
    """Returns the compiler's figures of a call: FLOPs, bytes, seconds and bytes of temporaries."""
    start = time.perf_counter()
    try:
        compiled = compile_call(topology, images, attention, is_recorded)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error).splitlines()[0][:300]}
    program = compiled.as_text()
    return figures_of(compiled) | {
        "kernels": program.count('custom_call_target="tpu_custom_call"'),
        "parts": bytes_by_part(program),
        "seconds": round(time.perf_counter() - start, 1),
    }


def figures_of(compiled: jax.stages.Compiled) -> dict[str, Any]:
    """Returns what the compiler says of a program: FLOPs, bytes, seconds, bytes of temporaries."""
    cost = compiled.cost_analysis()
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "roofline_s": cost.get("optimal_seconds", math.nan),
        "temporaries": compiled.memory_analysis().temp_size_in_bytes,
    }


def main(_) -> None:
    """Compiles what is missing, writes the JSON file and prints the table."""
    for key in flags.FLAGS.calls:
        if key in _read()["results"]:
            continue
        topology, images, attention, kind = key.split("/")
        figures = in_own_process(
            measure,
            topology=topology,
            images=int(images),
            attention=attention,
            is_recorded=kind == "recorded",
        )
        content = _read()  # another slice may be measured at the same time
        content["results"][key] = figures
        JSON_FILE.write_text(json.dumps(content, indent=1) + "\n")
    print(render_calls(_read()))


def _read() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    if not JSON_FILE.exists():
        return {"versions": versions, "results": {}}
    content = json.loads(JSON_FILE.read_text())
    if content["versions"] != versions:
        raise RuntimeError(f"{JSON_FILE} is of {content['versions']}, installed are {versions}")
    return content


if __name__ == "__main__":
    flags.DEFINE_list("calls", _calls(), "Calls to compile, as in v5e:1x1/2/auto/recorded.")
    app.run(main)
