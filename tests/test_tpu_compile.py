"""Both programs compile for TPUs and fit there, by the compiler of libtpu; no TPU is needed.

JAX_PLATFORMS=cpu python -m pytest -m tpu_compile
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from random_models import one_level_config, small_config, small_xl_config

from experiments.benchmarks.networks import make_abstract_model
from experiments.benchmarks.tpu_memory import find_available, measure
from experiments.benchmarks.tpu_memory_table import total_bytes
from experiments.benchmarks.tpu_topologies import TOPOLOGIES, collectives_in, make_topology_mesh
from seediff_jax.batch_size import (
    FREE_SHARE,
    MEASURED_CLASSES,
    QUICK,
    auto_batch_size,
    programs_bytes,
)
from seediff_jax.masks import MaskConfig
from seediff_jax.programs import (
    AXIS,
    ProgramConfig,
    abstract_model,
    abstract_programs,
    program_memory,
)

pytestmark = pytest.mark.tpu_compile
GIB = 2**30
IMAGES = 2  # a chip
# The compiler fuses a little differently for one chip, and may then count an operation twice.
SAME = 0.01

PLAIN = ProgramConfig()


def compile_both(mesh, model, config=PLAIN):
    programs = abstract_programs(mesh, model, IMAGES * mesh.size, config)
    return [program.compile(QUICK) for program in programs]


def flops(compiled):
    return [one.cost_analysis()["flops"] for one in compiled]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A small model, and its programs for one chip of each slice."""
    folder = tmp_path_factory.mktemp("made")
    model = abstract_model(one_level_config(folder / "tokenizer"), jnp.bfloat16)

    def compile_alone(name):
        chip = make_topology_mesh(name).devices.flat[0]
        return compile_both(Mesh(np.array([chip]), (AXIS,)), model)

    return model, compile_alone


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if not name.endswith(":1x1")])
def test_chips_of_a_slice_work_alone_on_equal_parts(alone, name):
    model, compile_alone = alone
    mesh = make_topology_mesh(name)
    assert mesh.size == {"v5e:2x2": 4, "v5e:16x16": 256, "v5p:2x2x1": 4}[name]
    together = compile_both(mesh, model)
    assert [collectives_in(one.as_text()) for one in together] == [[], []]
    assert flops(together) == pytest.approx(flops(compile_alone(name)), rel=SAME)


def test_an_exchange_between_chips_is_found():
    mesh = make_topology_mesh("v5e:2x2")
    spec = jax.sharding.PartitionSpec
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, AXIS), mesh=mesh, in_specs=spec(AXIS), out_specs=spec()
    )
    sharding = jax.sharding.NamedSharding(mesh, spec(AXIS))
    argument = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=sharding)
    assert collectives_in(jax.jit(total).lower(argument).compile().as_text()) == ["all-reduce"]


@pytest.mark.parametrize(
    "config",
    [
        ProgramConfig(num_classes=3, has_unnamed=True, rescales=True),
        ProgramConfig(num_classes=2, refine_iterations=2, dilations=(1, 2)),
        ProgramConfig(masks=MaskConfig(affinity="transition", power=2)),
        ProgramConfig(masks=MaskConfig(method="exponentiation")),
    ],
    ids=str,
)
def test_other_programs_compile_too(tmp_path, config):
    model = abstract_model(small_config(tmp_path / "tokenizer"), jnp.bfloat16)
    compiled = compile_both(make_topology_mesh("v6e:1x1"), model, config)
    assert all(count > 0 for count in flops(compiled))


def test_stable_diffusion_xl_compiles(tmp_path):
    model = abstract_model(small_xl_config(tmp_path), jnp.bfloat16)
    compiled = compile_both(make_topology_mesh("v5e:2x2"), model)
    assert [collectives_in(one.as_text()) for one in compiled] == [[], []]


@pytest.fixture(scope="module")
def sd1():
    return make_abstract_model("sd1", jnp.bfloat16)


@pytest.fixture(scope="module")
def picked(sd1):
    """The batch that is picked for a v5e chip, and what it takes there and on 256 chips."""
    chip = make_topology_mesh("v5e:1x1").devices.flat[0]
    batch = auto_batch_size(sd1, PLAIN, chip)
    return batch, [measure(name, batch, "quick") for name in ("v5e:1x1", "v5e:16x16")]


def test_the_picked_batch_of_stable_diffusion_1_fits_a_v5e_chip(picked):
    available = find_available("v5e:1x1")["gib"]
    assert available == 15.75
    _, (chip, _) = picked
    assert total_bytes(chip) <= (1 - FREE_SHARE) * available * GIB


def test_twice_the_picked_batch_does_not_fit_a_v5e_chip(sd1, picked):
    batch, _ = picked
    programs = abstract_programs(make_topology_mesh("v5e:1x1"), sd1, 2 * batch)
    taken = programs_bytes(sd1, programs)
    assert taken is None or taken > 15.75 * GIB


def test_each_of_256_chips_does_what_one_chip_does(picked):
    _, figures = picked
    for name in ("sample", "make_masks"):
        chip, pod = (one[name] for one in figures)
        assert chip["flops"] == pytest.approx(pod["flops"], rel=SAME)
        assert pod["collectives"] == []
        assert sum(pod["memory"].values()) == pytest.approx(sum(chip["memory"].values()), rel=SAME)


def test_masks_of_many_classes_fit_where_sampling_does(sd1, picked):
    batch, (chip, _) = picked
    config = ProgramConfig(num_classes=MEASURED_CLASSES)
    programs = abstract_programs(make_topology_mesh("v5e:1x1"), sd1, batch, config)
    masks = program_memory(programs.make_masks.compile(QUICK), sd1, reads_model=False)
    assert masks.total < total_bytes(chip)
