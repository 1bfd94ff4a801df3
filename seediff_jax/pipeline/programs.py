"""The two programs of a run, sampling and masks, split over the data axis of a mesh; see `mesh`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from seediff_jax.array_typing import Array
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError
from seediff_jax.masks.label_maps import class_scores, finite_masks, make_masks, seed_maps
from seediff_jax.models.attention import place_of
from seediff_jax.models.attention_choice import Layer
from seediff_jax.models.attention_plan import describe_attention, plan_attention
from seediff_jax.models.model import Model
from seediff_jax.pipeline.generate import sample_inputs
from seediff_jax.pipeline.mesh import local_rows_of
from seediff_jax.pipeline.settings import DATA, MODEL, PARTITIONS, PairScalars, PairSettings
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.guidance import uses_guidance
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import latent_size
from seediff_jax.sampling.sampler import Samples, with_attention
from seediff_jax.sampling.segment_config import SegmentConfig

MASKS = "soft_masks"
"""The stage after those of sampling that is checked for values that are not finite."""


@struct.dataclass
class PairRows:
    """The results of the programs for PairInputs, one row per sample.

    Attributes:
        images: uint8 `[b, H, W, 3]`.
        label_maps: uint8 `[b, H, W]`.
        soft_masks: float32 `[b, c, H, W]`.
        seed_maps: float32 `[b, c, n0]`.
        seed_counts: int32 `[b, c]`.
        presence: float32 `[b, c]`, see `make_masks`.
        scores: float32 `[b, c]`, see `class_scores`.
        is_finite: bool `[b]` for some of `sampler.STAGES`, and for MASKS.
        attention_maps: what the masks were made from; None if it is not kept.
        other_label_maps: uint8 `[b, m, H, W]`, of the m methods after the first; None without any.
        other_scores: float32 `[b, m, c]`, likewise.
        other_presence: float32 `[b, m, c]`, likewise.
        other_soft_masks: float32 `[b, m, c, H, W]`, likewise; None too where images are generated.
    """

    images: Array
    label_maps: Array
    soft_masks: Array
    seed_maps: Array
    seed_counts: Array
    presence: Array
    scores: Array
    is_finite: dict[str, Array]
    attention_maps: AttentionMaps | None = None
    other_label_maps: Array | None = None
    other_scores: Array | None = None
    other_presence: Array | None = None
    other_soft_masks: Array | None = None


class PairPrograms:
    """The two compiled programs of a run on the devices of a mesh.

    Args:
        model: its weights are placed as `weight_sharding` says.
        mesh: from `make_mesh`.
        partition: "shard_map", or "pmap" for the same kernels under `jax.pmap`, which has no
            model axis.
        keeps_attention: whether the rows have their attention.

    Attributes:
        mesh: as given.
        attention: which implementation of attention each layer of the UNet uses, as one line.

    Raises:
        UserError: there is no such partition, it cannot split weights over a model axis, or the
            requested attention cannot be used.
    """

    def __init__(
        self,
        model: Model,
        settings: PairSettings,
        mesh: Mesh,
        partition: str = "shard_map",
        *,
        keeps_attention: bool = False,
    ):
        if partition not in PARTITIONS:
            raise UserError(f"partition={partition!r} is not one of {', '.join(PARTITIONS)}")
        if partition == "pmap" and mesh.shape[MODEL] > 1:
            raise UserError(f"partition=pmap has no {MODEL} axis; use shard_map")
        self.mesh, self._keeps_attention = mesh, keeps_attention
        self.attention = describe_attention(planned_attention(model, settings.sampling, mesh))
        self._model, self._scalars = model, settings.scalars()
        self._tile_scalars = settings.of_tiles.scalars()
        # Programs depend only on static settings, so that another run finds them compiled.
        self._sample = _split_program(partition, mesh, _sample, settings.static)
        self._mask = _split_program(partition, mesh, mask_rows, settings.static)

    def __call__(self, inputs: PairInputs, *, is_tile: bool = False) -> PairRows:
        """Starts the programs on this host's rows and returns their results without waiting.

        Args:
            inputs: NumPy arrays, whose rows are split evenly over this host's part of the data
                axis. All hosts call with the same number of rows.
            is_tile: whether they are tiles, see `PairSettings.of_tiles`.

        Returns:
            Arrays that span all hosts; `fetch` reads this host's rows.
        """
        scalars = self._tile_scalars if is_tile else self._scalars
        samples = self._sample(self._model, scalars, inputs)
        rows = self._mask(None, scalars, samples)
        if self._keeps_attention:
            rows = rows.replace(attention_maps=samples.attention_maps)
        return rows

    def lower(self, inputs: PairInputs) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
        """Lowers both programs for the rows of all hosts, under shard_map.

        Rows and weights may be shapes, and the devices may be described by
        `jax.experimental.topologies`.
        """
        sample, samples = self._sample.lower(self._model, self._scalars, inputs)
        masks, _ = self._mask.lower(None, self._scalars, samples)
        return sample, masks

    def fetch(self, results: Any) -> Any:
        """Waits for results of a call, or some of them, and copies this host's rows to NumPy."""
        return jax.tree.map(self._mask.local_rows, results)


def planned_attention(
    model: Model, sampling: SamplingConfig | SegmentConfig, mesh: Mesh
) -> dict[tuple[str, Layer], int]:
    """Plans the attention of a run, see `plan_attention`; the model needs no weights.

    Raises:
        UserError: the requested attention cannot be used.
    """
    return plan_attention(
        with_attention(model, sampling).config,
        model.dtype,
        latent_size(model, sampling.height, sampling.width),
        place_of(mesh.devices.flat[0], is_split=mesh.shape[MODEL] > 1),
        is_guided=uses_guidance(model, sampling),
    )


def _own_parts(array: Array) -> np.ndarray:
    """Joins the parts of an array that lie on this host's devices, in the order of its rows."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


@functools.lru_cache(maxsize=8)
def _split_program(
    partition: str, mesh: Mesh, kernel: Callable[..., Any], settings: PairSettings
) -> "_ShardMap | _Pmap":
    split = _ShardMap if partition == "shard_map" else _Pmap
    return split(functools.partial(kernel, settings=settings), mesh)


def _sample(
    model: Model, scalars: PairScalars, inputs: PairInputs, *, settings: PairSettings
) -> Samples:
    return sample_inputs(model, scalars, inputs, settings.sampling)


def mask_rows(
    _: None, scalars: PairScalars, samples: Samples, *, settings: PairSettings
) -> PairRows:
    """Makes masks of samples; `settings` are static."""
    made = []
    all_thresholds = (scalars.thresholds, *scalars.other_thresholds)
    for config, thresholds in zip(settings.masks.each(), all_thresholds, strict=True):
        soft_masks, label_maps, seed_counts, presence = make_masks(
            samples.images, samples.attention_maps, thresholds, config=config
        )
        scores = class_scores(soft_masks, label_maps)
        is_finite = finite_masks(soft_masks)
        made.append((label_maps, scores, presence, is_finite, soft_masks, seed_counts))
    (label_maps, scores, presence, _, soft_masks, seed_counts), *others = made
    other_label_maps, other_scores, other_presence, other_soft_masks = (
        jnp.stack([each[k] for each in others], axis=1) if others else None for k in (0, 1, 2, 4)
    )
    if not isinstance(settings.sampling, SegmentConfig):
        other_soft_masks = None  # the masks of crops are joined on the host, and only these
    return PairRows(
        images=samples.images,
        label_maps=label_maps,
        soft_masks=soft_masks,
        seed_maps=seed_maps(samples.attention_maps.cross_attention),
        seed_counts=seed_counts,
        presence=presence,
        scores=scores,
        is_finite=samples.is_finite | {MASKS: jnp.stack([each[3] for each in made]).all(axis=0)},
        other_label_maps=other_label_maps,
        other_scores=other_scores,
        other_presence=other_presence,
        other_soft_masks=other_soft_masks,
    )


class _ShardMap:
    """A program split over the data axis by `jax.shard_map`."""

    def __init__(self, kernel: Callable[..., Any], mesh: Mesh):
        self._rows = NamedSharding(mesh, P(DATA))
        # An axis that is left to the compiler, even of size 1, keeps it from fusing attention.
        by_hand = {DATA} if mesh.shape[MODEL] > 1 else {DATA, MODEL}
        split = jax.shard_map(
            kernel, mesh=mesh, in_specs=(P(), P(), P(DATA)), out_specs=P(DATA), axis_names=by_hand
        )
        self._program = jax.jit(split)

    def __call__(self, model: Any, scalars: PairScalars, batch: Any) -> Any:
        return self._program(model, scalars, jax.tree.map(self._spread, batch))

    def lower(self, model: Any, scalars: PairScalars, batch: Any) -> tuple[Any, Any]:
        """Returns the lowered program and the shapes of its results."""

        placed = functools.partial(jax.ShapeDtypeStruct, sharding=self._rows)
        rows = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), batch)
        arguments = (model, scalars, rows)
        return self._program.lower(*arguments), jax.eval_shape(self._program, *arguments)

    local_rows = staticmethod(_own_parts)

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

    @staticmethod
    def local_rows(array: Array) -> np.ndarray:
        """As of _ShardMap; under pmap the devices are an axis of their own."""
        rows = _own_parts(array)
        return rows.reshape(-1, *rows.shape[2:])

    def _own_copies(self, array: Array) -> Array:
        copies = [shard.data[None] for shard in array.addressable_shards]
        sharding = NamedSharding(Mesh(np.array(self._devices), (DATA,)), P(DATA))
        shape = (len(self._devices), *array.shape)
        return jax.make_array_from_single_device_arrays(shape, sharding, copies)

    def _split(self, leaf: Array | np.ndarray) -> Array | np.ndarray:
        if isinstance(leaf, jax.Array):
            return leaf
        return leaf.reshape(self._local, -1, *leaf.shape[1:])
