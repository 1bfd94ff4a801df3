"""The two compiled programs as shapes alone: what a batch costs, before it is run.

    mesh, model, batch size -> abstract arrays -> [ sample ], [ make_masks ], lowered -> memory

Nothing runs and nothing is allocated. A mesh may consist of the devices of another machine
(`jax.experimental.topologies`), and the model of `jax.ShapeDtypeStruct`s.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from seediff_jax.batch_masks import make_masks
from seediff_jax.masks import MaskConfig
from seediff_jax.model import Model
from seediff_jax.model_config import ModelConfig, init_params
from seediff_jax.sampling import SampleConfig, sample

AXIS = "data"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """What makes other programs beside the model and the batch size; hashable.

    Attributes:
        sample: of sampling.
        masks: of masks, as are the next two.
        refine_iterations: see `make_masks`.
        dilations: see `make_masks`.
        num_classes: c, the classes of an image.
        has_unnamed: whether some of them are looked for with texts of their own.
        rescales: whether guidance is rescaled.
    """

    sample: SampleConfig = SampleConfig()
    masks: MaskConfig = MaskConfig()
    refine_iterations: int = 0
    dilations: tuple[int, ...] = (1,)
    num_classes: int = 1
    has_unnamed: bool = False
    rescales: bool = False


class Programs(NamedTuple):
    """The two programs of a batch, lowered: `.compile()` gives their memory and their cost."""

    sample: jax.stages.Lowered
    make_masks: jax.stages.Lowered


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
    shapes = flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    params = {
        path: leaf.update(dtype=config.dtype_of(path[0], dtype) if leaf.ndim > 1 else jnp.float32)
        for path, leaf in shapes.items()
    }
    return Model(
        params=unflatten_dict(params),
        text_config=config.text_encoder,
        unet_config=config.unet,
        vae_config=config.vae,
        scheduler_config=config.scheduler,
        capture=config.capture,
        tokenizer=config.tokenizer,
        dtype=jnp.dtype(dtype),
        model_id="abstract",
        weights_hash="",
        text_config_2=config.text_encoder_2,
        tokenizer_2=config.tokenizer_2,
        force_zeros_for_empty_prompt=config.force_zeros_for_empty_prompt,
    )


def abstract_programs(
    mesh: Mesh, model: Model, batch_size: int, config: ProgramConfig = ProgramConfig()
) -> Programs:
    """Lowers both programs for a batch that is split over a mesh of one axis, "data".

    Args:
        mesh: its devices say what is compiled for.
        model: weights, or their shapes; they are on every device.
        batch_size: images on all devices together.
        config: static.

    Raises:
        ValueError: the batch does not divide evenly among the devices.
    """
    if batch_size % mesh.size:
        raise ValueError(
            f"a batch of {batch_size} images does not split evenly over {mesh.size} devices"
        )

    def place(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    batched, shared = _arguments(model, batch_size, config)

    def run(model, batched, shared):
        return sample(model, **batched, **shared, config=config.sample)

    sampled = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=P(AXIS))
    )
    arguments = place(model, P()), place(batched, P(AXIS)), place(shared, P())
    samples = place(jax.eval_shape(sampled, *arguments), P(AXIS))

    def mask(images, attention_maps, thresholds):
        return make_masks(
            images,
            attention_maps,
            *thresholds,
            mask_config=config.masks,
            refine_iterations=config.refine_iterations,
            dilations=config.dilations,
        )

    masked = jax.jit(
        jax.shard_map(mask, mesh=mesh, in_specs=(P(AXIS), P(AXIS), P()), out_specs=P(AXIS))
    )
    thresholds = place([jax.ShapeDtypeStruct((), jnp.float32)] * 3, P())
    return Programs(
        sampled.lower(*arguments), masked.lower(samples.images, samples.attention_maps, thresholds)
    )


def _arguments(
    model: Model, batch_size: int, config: ProgramConfig
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of `sample` by name, those with a batch axis and those without."""
    length = model.tokenizer.max_length
    encoders = () if model.tokenizer_2 is None else (2,)
    token_ids = jax.ShapeDtypeStruct((batch_size, *encoders, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((batch_size, config.num_classes, length), jnp.bool)
    batched = {
        "token_ids": token_ids,
        "negative_token_ids": token_ids,
        "class_token_mask": mask,
        "indices": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }
    if config.has_unnamed:
        batched |= {"unnamed_token_ids": token_ids, "unnamed_token_mask": mask}
    number = jax.ShapeDtypeStruct((), jnp.float32)
    shared = {"rng_seed": jax.ShapeDtypeStruct((), jnp.uint32), "guidance_scale": number}
    if config.rescales:
        shared["guidance_rescale"] = number
    return batched, shared


def program_memory(compiled: jax.stages.Compiled, model: Model, reads_model: bool) -> ProgramMemory:
    """What the compiler says of a compiled program's memory.

    Args:
        compiled: one of Programs.
        model: the model, which stays on the device.
        reads_model: whether it is an argument; JAX drops the weights that are not read.
    """
    sizes = compiled.memory_analysis()
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params))
    read = sizes.argument_size_in_bytes if reads_model else 0
    return ProgramMemory(
        arguments=sizes.argument_size_in_bytes,
        outputs=sizes.output_size_in_bytes,
        temporaries=sizes.temp_size_in_bytes,
        code=sizes.generated_code_size_in_bytes,
        aliased=sizes.alias_size_in_bytes,
        idle=max(0, weights - read),
    )
