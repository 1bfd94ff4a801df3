"""The devices of a run: their mesh, and the two programs split over it.

    --mesh=data:-1,model:2     data: samples, which have nothing to do with one another
                               model: weights, for models that do not fit on one device

Samples are split by hand (`jax.shard_map`), so that no program can have a collective on the data
axis; weights on the model axis by the compiler. Kernels never see the mesh. With several hosts the
mesh spans the devices of all of them, and every host feeds and reads its own rows alone.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seediff_jax.arrays import Array
from seediff_jax.batch_masks import class_scores, seed_maps
from seediff_jax.model import Model
from seediff_jax.pair_inputs import PairInputs
from seediff_jax.pair_settings import PairScalars, PairSettings
from seediff_jax.pipeline import mask_samples, sample_inputs
from seediff_jax.sampling import SampleConfig, Samples

DATA, MODEL = "data", "model"
PARTITIONS = ("shard_map", "pmap")
_SMALL_WEIGHT = 2**14


class MeshShape(NamedTuple):
    """Devices along each axis of the mesh; -1 data is whatever the model axis leaves."""

    data: int = -1
    model: int = 1


ALL_DEVICES = MeshShape()
"""Every device makes samples of its own."""


@struct.dataclass
class PairRows:
    """What the programs make of a row of PairInputs; the first axis of every array is the row.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        label_maps: uint8 `[b, H, W]`.
        soft_masks: float32 `[b, c, H, W]`.
        seed_maps: float32 `[b, c, n0]`.
        seed_counts: int32 `[b, c]`.
        scores: float32 `[b, c]`, see `class_scores`.
        is_finite: bool `[b]` for each of `sampling.STAGES`.
    """

    images: Array
    label_maps: Array
    soft_masks: Array
    seed_maps: Array
    seed_counts: Array
    scores: Array
    is_finite: dict[str, Array]


def parse_mesh(text: str) -> MeshShape:
    """Reads "data:-1,model:2"; an axis that is not named has its default.

    Raises:
        ValueError: the text has another form or axis.
    """
    sizes = {}
    for part in filter(None, text.split(",")):
        match = re.fullmatch(rf"({DATA}|{MODEL}):(-1|[1-9]\d*)", part.strip())
        if match is None or match[1] in sizes or match[1] == MODEL and match[2] == "-1":
            raise ValueError(
                f"mesh={text!r} must be like {DATA}:-1,{MODEL}:2, where -1 stands for all devices "
                f"that are left, on the {DATA} axis alone"
            )
        sizes[match[1]] = int(match[2])
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape = ALL_DEVICES, devices: Sequence[Any] | None = None) -> Mesh:
    """Lays devices out as data x model; a row shares one copy of the weights and is in one host.

    Args:
        shape: devices along each axis.
        devices: all of them by default, of all hosts.

    Raises:
        ValueError: the devices do not fill the mesh, or a row would lie in two hosts.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    data = len(devices) // shape.model if shape.data == -1 else shape.data
    if data < 1 or data * shape.model != len(devices):
        raise ValueError(
            f"mesh {DATA}:{shape.data},{MODEL}:{shape.model} does not fit {len(devices)} devices; "
            "their product must be the number of devices"
        )
    grid = np.array(devices).reshape(data, shape.model)
    for row in grid:
        if len({device.process_index for device in row}) > 1:
            raise ValueError(
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


class PairPrograms:
    """The two compiled programs of a run on the devices of a mesh.

    Args:
        model: its weights lie as `weight_sharding` says.
        settings: of the run.
        mesh: from `make_mesh`.
        partition: "shard_map", or "pmap" for the same kernels under `jax.pmap`, which knows no
            model axis.

    Raises:
        ValueError: there is no such partition, or it does not know the mesh's model axis.
    """

    def __init__(
        self, model: Model, settings: PairSettings, mesh: Mesh, partition: str = "shard_map"
    ):
        if partition not in PARTITIONS:
            raise ValueError(f"partition={partition!r} is not one of {', '.join(PARTITIONS)}")
        if partition == "pmap" and mesh.shape[MODEL] > 1:
            raise ValueError(f"partition=pmap has no {MODEL} axis; use shard_map")
        self.mesh = mesh
        self._partition = partition
        self._model, self._scalars = model, settings.scalars()
        config = settings.sample_config(model)
        # Only what is static tells programs apart, so that another run finds them compiled.
        static = PairSettings(
            size_condition=settings.size_condition,
            mask_config=settings.mask_config,
            refine_iterations=settings.refine_iterations,
            dilations=settings.dilations,
        )
        self._sample = _split_program(partition, mesh, _sample, config, static)
        self._mask = _split_program(partition, mesh, _mask, config, static)

    def __call__(self, inputs: PairInputs) -> PairRows:
        """Starts the programs on this host's rows and returns their results, not waiting for them.

        Args:
            inputs: NumPy arrays; their rows are split evenly over this host's part of the data
                axis. All hosts call with equally many.

        Returns:
            Arrays over all hosts, of which `fetch` reads this host's rows.
        """
        samples = self._sample(self._model, self._scalars, inputs)
        return self._mask(None, self._scalars, samples)

    def lower(self, inputs: PairInputs) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """Lowers both programs for the rows of all hosts, under shard_map.

        Rows and weights may be shapes, and devices not there (`jax.experimental.topologies`).
        """
        sample, samples = self._sample.lower(self._model, self._scalars, inputs)
        masks, _ = self._mask.lower(None, self._scalars, samples)
        return sample, masks

    def fetch(self, results: Any) -> Any:
        """Waits for results of a call, or some of them, and copies this host's rows to NumPy."""

        def local(array: Array) -> np.ndarray:
            parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
            rows = np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
            # Under pmap the devices are an axis of their own.
            return rows.reshape(-1, *rows.shape[2:]) if self._partition == "pmap" else rows

        return jax.tree.map(local, results)


@functools.lru_cache(maxsize=8)
def _split_program(
    partition: str,
    mesh: Mesh,
    kernel: Callable[..., Any],
    config: SampleConfig,
    static: PairSettings,
) -> "_ShardMap | _Pmap":
    split = _ShardMap if partition == "shard_map" else _Pmap
    return split(functools.partial(kernel, config=config, static=static), mesh)


def _sample(
    model: Model,
    scalars: PairScalars,
    inputs: PairInputs,
    *,
    config: SampleConfig,
    static: PairSettings,
) -> Samples:
    return sample_inputs(model, scalars, inputs, config, static.size_condition)


def _mask(
    _: None, scalars: PairScalars, samples: Samples, *, config: SampleConfig, static: PairSettings
) -> PairRows:
    del config
    soft_masks, label_maps, seed_counts = mask_samples(scalars, samples, static)
    return PairRows(
        images=samples.images,
        label_maps=label_maps,
        soft_masks=soft_masks,
        seed_maps=seed_maps(samples.attention_maps.cross_attention),
        seed_counts=seed_counts,
        scores=class_scores(soft_masks, label_maps),
        is_finite=samples.is_finite,
    )


class _ShardMap:
    """A program split over the data axis by `jax.shard_map`."""

    def __init__(self, kernel: Callable[..., Any], mesh: Mesh):
        self._rows = NamedSharding(mesh, P(DATA))
        # An axis that is left to the compiler, even one of 1, keeps it from fusing attention.
        by_hand = {DATA} if mesh.shape[MODEL] > 1 else {DATA, MODEL}
        split = jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(P(), P(), P(DATA)),
            out_specs=P(DATA),
            axis_names=by_hand,
        )
        self._program = jax.jit(split)

    def __call__(self, model: Any, scalars: PairScalars, batch: Any) -> Any:
        return self._program(model, scalars, jax.tree.map(self._spread, batch))

    def lower(self, model: Any, scalars: PairScalars, batch: Any) -> tuple[Any, Any]:
        """The lowered program and the shapes of its results."""

        placed = functools.partial(jax.ShapeDtypeStruct, sharding=self._rows)
        rows = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), batch)
        arguments = (model, scalars, rows)
        return self._program.lower(*arguments), jax.eval_shape(self._program, *arguments)

    def _spread(self, leaf: Array | np.ndarray) -> Array:
        if isinstance(leaf, jax.Array):
            return leaf
        return jax.make_array_from_process_local_data(self._rows, leaf)


class _Pmap:
    """A program split over the data axis by `jax.pmap`."""

    def __init__(self, kernel: Callable[..., Any], mesh: Mesh):
        self._devices = list(mesh.devices[:, 0])
        self._local = len(local_rows_of(mesh))
        self._model: Any = None
        self._copies: Any = None
        self._program = jax.pmap(
            kernel, axis_name=DATA, in_axes=(0, None, 0), devices=self._devices
        )

    def __call__(self, model: Any, scalars: PairScalars, batch: Any) -> Any:
        if self._model is not model:
            # Each device has the weights already: it gets its own, and nothing is sent.
            self._model, self._copies = model, jax.tree.map(self._own_copies, model)
        return self._program(self._copies, scalars, jax.tree.map(self._split, batch))

    def _own_copies(self, array: Array) -> Array:
        copies = [shard.data[None] for shard in array.addressable_shards]
        sharding = NamedSharding(Mesh(np.array(self._devices), (DATA,)), P(DATA))
        shape = (len(self._devices), *array.shape)
        return jax.make_array_from_single_device_arrays(shape, sharding, copies)

    def _split(self, leaf: Array | np.ndarray) -> Array | np.ndarray:
        if isinstance(leaf, jax.Array):
            return leaf
        return leaf.reshape(self._local, -1, *leaf.shape[1:])
