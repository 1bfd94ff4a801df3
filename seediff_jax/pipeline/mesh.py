"""The devices of a run: their mesh, and how weights are divided over it.

    --mesh=data:-1,model:2     data: samples, which are independent of one another
                               model: weights, for models that do not fit on one device

Samples are split explicitly (`jax.shard_map`), so that no program can have a collective on the data
axis. The compiler splits weights over the model axis. Kernels never see the mesh. With several
hosts the mesh spans the devices of all of them, and each host feeds and reads only its own rows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seediff_jax.errors import UserError
from seediff_jax.pipeline.settings import ALL_DEVICES, DATA, MODEL, MeshShape

_SMALL_WEIGHT = 2**14


def make_mesh(shape: MeshShape = ALL_DEVICES, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out as data x model; a row shares one copy of the weights and is in one host.

    Args:
        shape: devices along each axis.
        devices: all of them by default, of all hosts.

    Raises:
        UserError: the devices do not fill the mesh, or a row would lie in two hosts.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    data = len(devices) // shape.model if shape.data == -1 else shape.data
    if data < 1 or data * shape.model != len(devices):
        raise UserError(
            f"mesh={DATA}:{shape.data},{MODEL}:{shape.model} does not fit {len(devices)} devices; "
            "their product must be the number of devices"
        )
    grid = np.array(devices).reshape(data, shape.model)
    for row in grid:
        if len({device.process_index for device in row}) > 1:
            raise UserError(
                f"{MODEL}:{shape.model} must divide the devices of each host, of which the first "
                f"has {sum(d.process_index == devices[0].process_index for d in devices)}"
            )
    return Mesh(grid, (DATA, MODEL))


def local_rows_of(mesh: Mesh) -> list[int]:
    """Positions on the data axis that this host feeds."""
    hosts = [row[0].process_index for row in mesh.devices]
    return [i for i, host in enumerate(hosts) if host == jax.process_index()]


def weight_sharding(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """Where a weight lies: a copy on each row, split over the model axis by its last axis.

    Small weights, and those whose last axis does not divide, are whole on every device.
    """
    count = mesh.shape[MODEL]
    splits = count > 1 and np.prod(shape) >= _SMALL_WEIGHT and shape[-1] % count == 0
    return NamedSharding(mesh, P(*[None] * (len(shape) - 1), MODEL) if splits else P())
