"""Measures the HBM of a TPU chip per batch size, by the compiler alone: no TPU is needed.

    JAX_PLATFORMS=cpu python -m experiments.benchmarks.tpu_memory [--topologies=v5e:1x1]

Compiles sampling and masks of Stable Diffusion 1.4 (bfloat16, 512 x 512, 50 PNDM steps, guidance,
published capture, one class) ahead of time, each slice and batch in its own process. Writes
docs/tpu_memory.json after each, then docs/tpu_memory.md, which has the UNet calls of tpu_unet.py
as well. What the JSON file has is not compiled again. Needs libtpu: pip install 'seediff_jax[tpu]'.
"""

import dataclasses
import importlib.metadata
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.measuring import in_own_process
from experiments.benchmarks.networks import TOKENS, make_abstract_model, make_unet_config
from experiments.benchmarks.tpu_memory_table import (
    JSON_FILE,
    MARKDOWN_FILE,
    PROGRAMS,
    key_of,
    render,
)
from experiments.benchmarks.tpu_topologies import (
    TOPOLOGIES,
    collectives_in,
    make_topology_mesh,
    refused_gib,
)
from experiments.benchmarks.tpu_unet_table import JSON_FILE as CALLS_FILE
from seediff_jax.models.capture import NO_CAPTURE
from seediff_jax.models.transformer import TokenColumns, Transformer
from seediff_jax.pipeline.batch_size import QUICK
from seediff_jax.pipeline.memory import abstract_programs, program_memory
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.sampling.config import SamplingConfig

EFFORTS = {"quick": QUICK, "full": {}}
"""Compiler options; "full" is what runs on a TPU, and takes ten times as long."""


def measure(topology: str, batch: int, effort: str, attention: str = "auto") -> dict[str, Any]:
    """Compiles both programs for `batch` images per chip; returns the figures of each by name."""
    mesh, model = make_topology_mesh(topology), make_abstract_model("sd1", jnp.bfloat16)
    figures = {
        "topology": topology,
        "kind": mesh.devices.flat[0].device_kind,
        "chips": mesh.size,
        "batch": batch,
        "effort": effort,
        "attention": attention,
    }
    settings = PairSettings(sampling=SamplingConfig(attention=attention))
    programs = abstract_programs(mesh, model, batch * mesh.size, settings)
    for name in PROGRAMS:
        start = time.perf_counter()
        try:
            compiled = getattr(programs, name).compile(EFFORTS[effort])
        except jax.errors.JaxRuntimeError as error:
            if (gib := refused_gib(str(error))) is None:
                raise
            return figures | {name: {"needed_gib": gib[0]}}
        figures[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "flops": compiled.cost_analysis()["flops"],
            "collectives": collectives_in(compiled.as_text()),
            "memory": dataclasses.asdict(
                program_memory(compiled, programs.weight_bytes, name == "sample")
            ),
        }
    return figures


def find_available(topology: str) -> dict[str, Any]:
    """Finds the GiB of HBM that programs may take; the compiler states it in a refusal."""
    sharding = NamedSharding(make_topology_mesh(topology), P())
    huge = jax.ShapeDtypeStruct((2**18, 2**18), jnp.float32, sharding=sharding)
    try:
        jax.jit(lambda x: jnp.sum(x @ x.T, axis=1)).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
        return {"gib": refused_gib(str(error))[1]}
    raise RuntimeError(f"{topology}: a matrix of 256 GiB was not refused")


def compile_attention(images: int) -> dict[str, Any]:
    """Compiles the finest transformer of the UNet for a v5e chip, at full effort and with guidance.

    Without `widen_compiler_stack`, libtpu 0.0.42.1 crashes on it for 8 images.
    """
    module = Transformer(8, 1, make_unet_config("sd1"), "", NO_CAPTURE, jnp.bfloat16)
    rows, whole = 2 * images, NamedSharding(make_topology_mesh("v5e:1x1"), P())
    inputs = (
        jax.ShapeDtypeStruct((rows, 64, 64, 320), jnp.bfloat16),
        jax.ShapeDtypeStruct((rows, TOKENS, 768), jnp.bfloat16),
        TokenColumns(jax.ShapeDtypeStruct((0, TOKENS, 1), jnp.float32)),
    )
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    arguments = jax.tree.map(lambda leaf: leaf.update(sharding=whole), (variables, *inputs))
    compiled = jax.jit(module.apply).lower(*arguments).compile()
    return {"temporaries": compiled.memory_analysis().temp_size_in_bytes}


def main(_) -> None:
    """Compiles what is missing, and writes both files."""
    values = flags.FLAGS
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    empty = {"versions": versions, "available_gib": {}, "results": {}}
    content = json.loads(JSON_FILE.read_text()) if JSON_FILE.exists() else empty
    if content["versions"] != versions:
        raise RuntimeError(f"{JSON_FILE} is of {content['versions']}, installed are {versions}")

    def save() -> None:
        JSON_FILE.write_text(json.dumps(content, indent=1) + "\n")

    for topology in values.topologies:
        if topology not in content["available_gib"]:
            found = in_own_process(find_available, topology=topology)
            content["available_gib"][topology] = found["gib"]
            save()
        for batch in map(int, values.batches):
            key = key_of(topology, batch, values.effort, values.attention)
            if key not in content["results"]:
                content["results"][key] = in_own_process(
                    measure,
                    topology=topology,
                    batch=batch,
                    effort=values.effort,
                    attention=values.attention,
                )
                save()
    MARKDOWN_FILE.write_text(render(content, json.loads(CALLS_FILE.read_text())))


if __name__ == "__main__":
    flags.DEFINE_list("topologies", [*TOPOLOGIES], "Slices, of tpu_topologies.TOPOLOGIES.")
    flags.DEFINE_list("batches", ["4", "8", "16", "32", "64"], "Images per chip.")
    flags.DEFINE_enum("attention", "auto", ["auto", "xla"], "Setting of the programs.")
    flags.DEFINE_enum("effort", "quick", [*EFFORTS], "How hard the compiler works.")
    app.run(main)
