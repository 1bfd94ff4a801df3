"""The mesh: how devices are laid out, where weights lie, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from seediff_jax.pipeline.mesh import local_rows_of, make_mesh, weight_sharding
from seediff_jax.pipeline.settings import MeshShape, parse_mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """Stands in for a device of a host."""

    id: int
    process_index: int


# Two hosts whose devices are numbered in turn, as on a pod that is laid out by tiles.
TILED = [Device(k, k // 2 % 2) for k in range(8)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data:-1", MeshShape(-1, 1)),
        ("data:-1,model:2", MeshShape(-1, 2)),
        ("model:4", MeshShape(-1, 4)),
        ("data:3, model:2", MeshShape(3, 2)),
        ("", MeshShape()),
    ],
)
def test_a_mesh_is_read_from_its_axes(text, expected):
    assert parse_mesh(text) == expected


@pytest.mark.parametrize(
    "text", ["8", "data", "data:0", "data:-2", "tensor:2", "data:1,data:2", "model:-1"]
)
def test_another_form_of_mesh_is_refused(text):
    with pytest.raises(ValueError, match="must be like data:-1,model:2"):
        parse_mesh(text)


def test_rows_are_in_one_host_whatever_the_order_of_devices():
    mesh = make_mesh(MeshShape(model=2), TILED)
    assert mesh.shape == {"data": 4, "model": 2}
    assert [[device.id for device in row] for row in mesh.devices] == [
        [0, 1],
        [4, 5],
        [2, 3],
        [6, 7],
    ]
    assert local_rows_of(mesh) == [0, 1]  # this process is host 0


@pytest.mark.parametrize("shape", [MeshShape(3), MeshShape(-1, 3), MeshShape(16), MeshShape(8, 2)])
def test_a_mesh_that_the_devices_do_not_fill_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        make_mesh(shape)


def test_weights_are_never_split_over_hosts():
    with pytest.raises(ValueError, match="model:8 must divide the devices of each host.*has 4"):
        make_mesh(MeshShape(model=8), TILED)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((320, 640), P(None, "model")),
        ((3, 3, 64, 64), P(None, None, None, "model")),
        ((320, 321), P()),
        ((320,), P()),
        ((), P()),
    ],
)
def test_large_weights_are_split_by_their_last_axis(shape, spec):
    sharding = weight_sharding(make_mesh(MeshShape(model=2)), shape)
    assert sharding.spec == spec
    split = np.prod(shape, dtype=int) // (2 if spec != P() else 1)
    placed = jax.device_put(np.zeros(shape, np.float32), sharding)
    assert {shard.data.size for shard in placed.addressable_shards} == {split}


def test_without_a_model_axis_every_device_has_all_weights():
    assert weight_sharding(make_mesh(), (320, 640)).spec == P()
