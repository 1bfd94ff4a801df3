"""The two compiled programs as shapes alone: what a batch costs, before it is run.

    mesh, model, batch size -> abstract arrays -> PairPrograms, lowered -> compiled -> memory

Nothing runs and nothing is allocated. A mesh may consist of the devices of another machine
(`jax.experimental.topologies`), and the model of `jax.ShapeDtypeStruct`s.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.typing import DTypeLike

from seediff_jax.checkpoints import expected_shapes
from seediff_jax.model_config import ModelConfig
from seediff_jax.model_state import Model, model_of
from seediff_jax.pair_inputs import PairInputs
from seediff_jax.pair_settings import PairSettings
from seediff_jax.sharding import DATA, PairPrograms, weight_sharding

PUBLISHED = PairSettings()
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
    """Bytes on each device while a program runs.

    Attributes:
        arguments: arguments that it reads.
        outputs: its results, which have memory of their own.
        temporaries: what it needs in between.
        code: the program itself.
        aliased: part of the outputs that takes the place of arguments.
        idle: weights that it does not read, but that stay there for the other program.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    aliased: int
    idle: int

    @property
    def total(self) -> int:
        """All of it."""
        held = self.arguments + self.idle + self.outputs - self.aliased
        return held + self.temporaries + self.code


def abstract_model(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Model:
    """A Model like that of `make_model`, with the shapes and dtypes of its weights alone."""
    shapes = flatten_dict(expected_shapes(config))
    params = {
        path: leaf.update(dtype=config.dtype_of(path[0], dtype) if leaf.ndim > 1 else jnp.float32)
        for path, leaf in shapes.items()
    }
    return model_of(config, unflatten_dict(params), dtype, "abstract", "")


def abstract_programs(
    mesh: Mesh,
    model: Model,
    batch_size: int,
    settings: PairSettings = PUBLISHED,
    *,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> Programs:
    """Lowers both programs for a batch that is split over the data axis of a mesh.

    Args:
        mesh: from `make_mesh`; its devices say what is compiled for.
        model: weights, or their shapes.
        batch_size: images on all devices together.
        settings: of the run.
        num_classes: c, the classes of an image.
        has_unnamed: whether classes are looked for that no prompt names.

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
    return lower_programs(programs, model, batch_size, num_classes, has_unnamed)


def lower_programs(
    programs: PairPrograms,
    model: Model,
    batch_size: int,
    num_classes: int = 1,
    has_unnamed: bool = False,
) -> Programs:
    """Lowers both programs of a model; those that ran with such batches are compiled already.

    Args:
        programs: under shard_map.
        model: theirs.
        batch_size: images on all devices together.
        num_classes: c, the classes of an image.
        has_unnamed: whether classes are looked for that no prompt names.
    """
    inputs = _abstract_inputs(model, batch_size, num_classes, has_unnamed)
    weights = (
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(model)
    )
    return Programs(*programs.lower(inputs), sum(weights))


def program_memory(
    compiled: jax.stages.Compiled, weight_bytes: int, reads_weights: bool
) -> ProgramMemory:
    """What the compiler says of a compiled program's memory.

    Args:
        compiled: one of Programs.
        weight_bytes: of the weights, which stay on the device.
        reads_weights: whether they are an argument; JAX drops those that are not read.
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
    """Most bytes on each device in a run.

    Args:
        sample: of the sampling program.
        masks: of the other program.
        rounds: batches that are on the device, or ready to follow, at a time: memory for results is
            taken when a program is started, and not when its turn comes.
    """
    running = max(sample.total + masks.outputs, masks.total)
    return running + (rounds - 1) * (sample.outputs + masks.outputs)


def _abstract_inputs(
    model: Model, batch_size: int, num_classes: int, has_unnamed: bool
) -> PairInputs:
    length = model.tokenizer.max_length
    encoders = () if model.tokenizer_2 is None else (2,)
    token_ids = jax.ShapeDtypeStruct((batch_size, *encoders, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, num_classes, length), jnp.bool)
    return PairInputs(
        token_ids=token_ids,
        negative_token_ids=token_ids,
        class_token_mask=mask,
        indices=jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        unnamed_token_ids=token_ids if has_unnamed else None,
        unnamed_token_mask=mask if has_unnamed else None,
    )
