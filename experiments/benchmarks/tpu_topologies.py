"""Describes TPU devices, so that libtpu can compile for them without a TPU.

Needs libtpu (`pip install 'seediff_jax[tpu]'`).
"""

import os
import re

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from seediff_jax.driver.hosts import widen_compiler_stack
from seediff_jax.pipeline.mesh import make_mesh

_ONE_CHIP = {"chips_per_host_bounds": (1, 1, 1)}
TOPOLOGIES = {
    "v5e:1x1": _ONE_CHIP,
    "v5e:2x2": {},
    "v5e:16x16": {},
    "v6e:1x1": _ONE_CHIP,
    "v5p:2x2x1": {},
    "v4:2x2x1": {"chip_config_name": "megacore"},
}
"""The compiler's name of a slice -> its options. They have 1, 4, 256, 1, 4 and 4 chips."""

_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# By default libtpu asks the cloud about its machine and allows only one process at a time.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def make_topology_mesh(name: str) -> Mesh:
    """Makes the mesh of a run on the chips of one of TOPOLOGIES.

    Raises:
        RuntimeError: libtpu is not installed.
    """
    jax.config.update("jax_platforms", "cpu")
    widen_compiler_stack()
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, **TOPOLOGIES[name]
        )
    except Exception as error:
        raise RuntimeError(
            "programs for TPUs are compiled by libtpu: pip install 'seediff_jax[tpu]'"
        ) from error
    return make_mesh(devices=described.devices)


def collectives_in(program: str) -> list[str]:
    """Lists the instructions in a compiled program's text that exchange data between devices."""
    return [name for name in _COLLECTIVES if re.search(rf"\s{name}(-start)?\(", program)]


def refused_gib(error: str) -> tuple[float, float] | None:
    """Reads the needed and available GiB from the compiler's refusal; None from other errors."""
    numbers = re.search(r"\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", error)
    return (float(numbers[1]), float(numbers[2])) if numbers else None
