"""Both programs compile for TPUs and fit into their memory, says libtpu; no TPU is needed.

JAX_PLATFORMS=cpu python -m pytest -m tpu_compile
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.measuring import in_own_process
from experiments.benchmarks.networks import make_abstract_model
from experiments.benchmarks.tpu_memory import compile_attention, find_available, measure
from experiments.benchmarks.tpu_memory_table import total_bytes
from experiments.benchmarks.tpu_topologies import TOPOLOGIES, collectives_in, make_topology_mesh
from seediff_jax.models.attention import attend, attend_recording, place_of
from seediff_jax.models.attention_choice import Layer, flash_blocks
from seediff_jax.pipeline.batch_size import (
    FREE_SHARE,
    MEASURED_CLASSES,
    QUICK,
    SD1_BATCHES,
    auto_batch_size,
    fitting_batch_size,
    programs_bytes,
)
from seediff_jax.pipeline.memory import abstract_model, abstract_programs, program_memory
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.settings import DATA, MeshShape, PairSettings
from tests.helpers.random_models import one_level_config, small_config, small_xl_config
from tests.helpers.settings import pair_settings

pytestmark = pytest.mark.tpu_compile
GIB = 2**30
IMAGES = 2  # per chip
PLAIN = PairSettings()
# The compiler fuses a little differently for one chip, and may then count an operation twice.
SAME = 0.01


def compile_both(mesh, model, settings=PLAIN, **classes):
    programs = abstract_programs(mesh, model, IMAGES * mesh.shape[DATA], settings, **classes)
    return programs.sample.compile(QUICK), programs.make_masks.compile(QUICK)


def flops(compiled):
    return [one.cost_analysis()["flops"] for one in compiled]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    return abstract_model(one_level_config(folder), jnp.bfloat16)


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if not name.endswith(":1x1")])
def test_chips_of_a_slice_work_alone_on_equal_parts(model, name):
    mesh = make_topology_mesh(name)
    assert mesh.size == {"v5e:2x2": 4, "v5e:16x16": 256, "v5p:2x2x1": 4, "v4:2x2x1": 4}[name]
    together = compile_both(mesh, model)
    assert [collectives_in(one.as_text()) for one in together] == [[], []]
    alone = compile_both(make_mesh(devices=[mesh.devices.flat[0]]), model)
    assert flops(together) == pytest.approx(flops(alone), rel=SAME)


def test_an_exchange_between_chips_is_found():
    mesh = make_topology_mesh("v5e:2x2")
    total = jax.shard_map(
        lambda x: jax.lax.psum(x, DATA), mesh=mesh, in_specs=P(DATA), out_specs=P()
    )
    sharding = NamedSharding(mesh, P(DATA))
    argument = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=sharding)
    assert collectives_in(jax.jit(total).lower(argument).compile().as_text()) == ["all-reduce"]


def test_weights_are_split_over_two_chips(tmp_path):
    model = abstract_model(one_level_config(tmp_path / "tokenizer", channels=128), jnp.bfloat16)
    devices = make_topology_mesh("v5e:2x2").devices.flat
    sample, masks = compile_both(make_mesh(MeshShape(2, 2), devices), model)
    assert collectives_in(sample.as_text()) and not collectives_in(masks.as_text())


@pytest.mark.parametrize(
    ("settings", "classes"),
    [
        (pair_settings(guidance_rescale=0.7), {"num_classes": 3, "has_unnamed": True}),
        (pair_settings(refine_iterations=2, dilations=(1, 2)), {"num_classes": 2}),
        (pair_settings(affinity="transition", power=2), {}),
        (pair_settings(method="exponentiation", guidance_scale=1), {}),
    ],
    ids=["unnamed classes", "refinement", "transition", "exponentiation"],
)
def test_other_programs_compile_too(tmp_path, settings, classes):
    model = abstract_model(small_config(tmp_path / "tokenizer"), jnp.bfloat16)
    compiled = compile_both(make_topology_mesh("v6e:1x1"), model, settings, **classes)
    assert all(count > 0 for count in flops(compiled))


def test_stable_diffusion_xl_compiles(tmp_path):
    model = abstract_model(small_xl_config(tmp_path), jnp.bfloat16)
    compiled = compile_both(make_topology_mesh("v5e:2x2"), model)
    assert [collectives_in(one.as_text()) for one in compiled] == [[], []]


def test_the_batch_of_a_small_model_is_found_by_compiling(model):
    mesh = make_topology_mesh("v5e:1x1")
    taken = {size: programs_bytes(abstract_programs(mesh, model, size)) for size in (8, 16)}
    memory = sum(taken.values()) / 2 / (1 - FREE_SHARE)
    assert fitting_batch_size(model, PLAIN, mesh, memory) == 8


def test_the_compiler_survives_the_attention_of_eight_images():
    # A compiler that dies takes its process along. All logits together would be 8 GiB.
    assert in_own_process(compile_attention, images=8)["temporaries"] < GIB


@pytest.fixture(scope="module")
def sd1():
    return make_abstract_model("sd1", jnp.bfloat16)


@pytest.fixture(scope="module")
def picked(sd1):
    """Returns the automatic batch of a v5e chip, and its memory on one chip and on 256 chips."""
    batch = auto_batch_size(sd1, PLAIN, make_topology_mesh("v5e:1x1"))
    assert batch == SD1_BATCHES["TPU v5 lite"]
    return batch, [measure(name, batch, "quick") for name in ("v5e:1x1", "v5e:16x16")]


def test_the_picked_batch_of_stable_diffusion_1_fits_a_v5e_chip(picked):
    available = find_available("v5e:1x1")["gib"]
    assert available == 15.75
    _, (chip, _) = picked
    assert total_bytes(chip) <= (1 - FREE_SHARE) * available * GIB


def test_twice_the_picked_batch_does_not_fit_a_v5e_chip(sd1, picked):
    batch, _ = picked
    taken = programs_bytes(abstract_programs(make_topology_mesh("v5e:1x1"), sd1, 2 * batch))
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
    mesh = make_topology_mesh("v5e:1x1")
    programs = abstract_programs(mesh, sd1, batch, num_classes=MEASURED_CLASSES)
    masks = program_memory(programs.make_masks.compile(QUICK), programs.weight_bytes, False)
    assert masks.total < total_bytes(chip)


# Heads, width, queries and keys of layers that the kernel computes; the last two are of images that
# are not square and end within a block.
LAYERS = [
    (8, 40, 4096, 4096),
    (8, 80, 1024, 1024),
    (8, 160, 256, 256),
    (5, 64, 9216, 9216),
    (10, 64, 4096, 4096),
    (8, 40, 4096, 77),
    (8, 40, 6144, 6144),
    (8, 80, 1053, 1053),
]


@pytest.mark.parametrize("name", ["v5e:1x1", "v6e:1x1", "v5p:2x2x1", "v4:2x2x1"])
@pytest.mark.parametrize("kind", ["plain", "recorded", "added"])
def test_the_kernel_compiles_for_every_chip_and_layer(name, kind):
    is_recorded, is_added = kind != "plain", kind == "added"
    mesh = make_topology_mesh(name)
    place, rows = place_of(mesh.devices.flat[0]), NamedSharding(mesh, P(DATA))
    for heads, width, n, m in LAYERS:
        layer = Layer("bfloat16", heads, width, n, m, is_recorded, is_added)
        if flash_blocks(layer, place) is None:
            assert n == 9216 or (n == 6144 and is_recorded), layer
            assert place.kind == "TPU v4"  # 16 MiB of on-chip memory: left to XLA
            continue
        function = attend_recording if is_recorded else attend

        def call(query, key, value, *total, function=function):
            return function(query, key, value, "flash", *total)

        split = jax.shard_map(
            call,
            mesh=mesh,
            in_specs=P(DATA),
            out_specs=P(DATA),
        )
        query, key = (
            jax.ShapeDtypeStruct((mesh.size, length, heads, width), jnp.bfloat16, sharding=rows)
            for length in (n, m)
        )
        inputs = [query, key, key]
        if is_added:
            inputs.append(jax.ShapeDtypeStruct((mesh.size, n, m), jnp.float32, sharding=rows))
        compiled = jax.jit(split).lower(*inputs).compile(QUICK)
        assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 1
        # The logits of all heads are not there; at odd lengths the sum is cut out of a padded one.
        padded = 4 * n * max(m, 128)
        assert compiled.memory_analysis().temp_size_in_bytes < heads / 2 * padded


def test_weights_that_are_split_leave_attention_to_xla(tmp_path):
    model = abstract_model(small_config(tmp_path / "tokenizer"), jnp.bfloat16)
    settings = pair_settings(height=64, width=64)
    devices = make_topology_mesh("v5e:2x2").devices.flatten()
    counts = {}
    for shape in (MeshShape(4, 1), MeshShape(2, 2)):
        sample, _ = compile_both(make_mesh(shape, devices), model, settings)
        counts[shape.model] = sample.as_text().count('custom_call_target="tpu_custom_call"')
    assert counts[1] > 0 and counts[2] == 0
