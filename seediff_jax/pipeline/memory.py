"""Compiles the two programs from shapes alone, to know the memory of a batch before it runs.

    mesh, model, batch size -> abstract arrays -> PairPrograms, lowered -> compiled -> memory

Nothing runs and nothing is allocated. A mesh may consist of the devices of another machine
(`jax.experimental.topologies`), and the model of `jax.ShapeDtypeStruct`s.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from seediff_jax.checkpoints.param_loading import weight_dtype
from seediff_jax.checkpoints.parameters import parameters
from seediff_jax.models.model import Model, ModelConfig
from seediff_jax.pipeline.mesh import weight_sharding
from seediff_jax.pipeline.programs import PairPrograms
from seediff_jax.pipeline.segment_images import network_size
from seediff_jax.pipeline.settings import DATA, PairSettings
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.guidance import uses_guidance
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.segment_config import SegmentConfig

DEFAULT_SETTINGS = PairSettings()
"""The published settings."""


class Programs(NamedTuple):
    """The two programs of a batch, lowered.

    Attributes:
        sample: `.compile()` gives its memory and its cost.
        make_masks: the same.
        weight_bytes: of the model, on each device.
    """

    sample: jax.stages.Lowered
    make_masks: jax.stages.Lowered
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Bytes per device while a program runs.

    Attributes:
        arguments: arguments that it reads.
        outputs: its results, which have memory of their own.
        temporaries: its intermediate values.
        code: the program itself.
        aliased: part of the outputs that reuses the memory of arguments.
        idle: weights that it does not read, but that stay for the other program.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    aliased: int
    idle: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        held = self.arguments + self.idle + self.outputs - self.aliased
        return held + self.temporaries + self.code


def abstract_model(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Model:
    """Makes a Model as `make_model` does, with only the shapes and dtypes of its weights."""
    params = {
        path: jax.ShapeDtypeStruct(
            parameter.shape, weight_dtype(len(parameter.shape), config.dtype_of(path[0], dtype))
        )
        for path, parameter in parameters(config).items()
    }
    return Model(params=unflatten_dict(params), config=config, dtype=jnp.dtype(dtype))


def abstract_programs(
    mesh: Mesh,
    model: Model,
    batch_size: int,
    settings: PairSettings = DEFAULT_SETTINGS,
    *,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> Programs:
    """Lowers both programs for a batch that is split over the data axis of a mesh.

    Args:
        mesh: from `make_mesh`; its devices say what is compiled for.
        model: with its weights, or with their shapes.
        batch_size: images on all devices together.
        settings: of the run.
        num_classes: c, the number of classes per image.
        has_unnamed: whether a run looks for classes that no prompt names.

    Raises:
        ValueError: the batch does not split evenly over the data axis.
    """
    if batch_size % mesh.shape[DATA]:
        raise ValueError(
            f"a batch of {batch_size} images does not split evenly over {mesh.shape[DATA]} devices"
        )

    def placed(leaf):
        sharding = weight_sharding(mesh, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    model = jax.tree.map(placed, model)
    programs = PairPrograms(model, settings, mesh)
    return lower_programs(programs, model, settings.sampling, batch_size, num_classes, has_unnamed)


def lower_programs(
    programs: PairPrograms,
    model: Model,
    sampling: SamplingConfig | SegmentConfig,
    batch_size: int,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> Programs:
    """Lowers both programs of a model; programs that ran with such batches are compiled already.

    The programs are under shard_map; the other arguments are as of `abstract_programs`.
    """
    encoders = () if model.config.tokenizer_2 is None else (2,)
    length = model.tokenizer.max_length
    token_ids = jax.ShapeDtypeStruct((batch_size, *encoders, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, num_classes, length), jnp.bool)
    inputs = PairInputs(
        token_ids=token_ids,
        negative_token_ids=token_ids if uses_guidance(model, sampling) else None,
        class_token_mask=mask,
        indices=jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        unnamed_token_ids=token_ids if has_unnamed else None,
        unnamed_token_mask=mask if has_unnamed else None,
    )
    if sampling.presence_draws:
        shape = (batch_size, 1 + num_classes, *encoders, length)
        inputs = inputs.replace(evidence_token_ids=jax.ShapeDtypeStruct(shape, jnp.int32))
    if isinstance(sampling, SegmentConfig):
        shape = (batch_size, *network_size(model, sampling), 3)
        inputs = inputs.replace(images=jax.ShapeDtypeStruct(shape, jnp.uint8))
    weights = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(model)
    )
    return Programs(*programs.lower(inputs), sum(weights))


def program_memory(
    compiled: jax.stages.Compiled, weight_bytes: int, reads_weights: bool
) -> ProgramMemory:
    """Reads the memory of a compiled program from the compiler.

    Args:
        compiled: one of Programs.
        weight_bytes: bytes of the weights, which stay on the device.
        reads_weights: whether the program reads them; JAX drops arguments that are not read.
    """
    sizes = compiled.memory_analysis()
    read = sizes.argument_size_in_bytes if reads_weights else 0
    return ProgramMemory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        idle=max(0, weight_bytes - read),
    )


def run_bytes(sample: ProgramMemory, masks: ProgramMemory, rounds: int) -> int:
    """Computes the peak bytes per device in a run.

    Args:
        sample: memory of the sampling program.
        masks: memory of the mask program.
        rounds: number of batches that are on the device or queued. Memory for results is allocated
            when a program is queued, not when it runs.
    """
    running = max(sample.total + masks.outputs, masks.total)
    return running + (rounds - 1) * (sample.outputs + masks.outputs)
