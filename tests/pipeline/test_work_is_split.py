"""Data parallelism as compiled: eight devices do an eighth of the work each, and do not talk."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from experiments.benchmarks.hlo_flops import count_flops
from experiments.benchmarks.tpu_topologies import collectives_in
from seediff_jax.pipeline.memory import Programs, abstract_model, abstract_programs, program_memory
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.settings import DATA
from tests.helpers.random_models import one_level_config

# What is counted is decided before machine code is made.
UNOPTIMIZED = {"xla_backend_optimization_level": 0}
DEVICES = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return abstract_model(one_level_config(tmp_path_factory.mktemp("made") / "tokenizer"))


@pytest.fixture(scope="module")
def compiled(model):
    """Both programs for eight images on one device, and on eight; and the bytes of weights."""
    lowered = {
        count: abstract_programs(make_mesh(devices=jax.devices()[:count]), model, DEVICES)
        for count in (1, DEVICES)
    }
    return {
        count: Programs(
            programs.sample.compile(UNOPTIMIZED),
            programs.make_masks.compile(UNOPTIMIZED),
            programs.weight_bytes,
        )
        for count, programs in lowered.items()
    }


def compile_text(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile().as_text()


# Nothing is done twice; 2 % of sampling would be as much as the text encoder. Masks have no such
# part: every sum and product is a sample's.
@pytest.mark.parametrize(("name", "tolerance"), [("sample", 0.02), ("make_masks", 0)])
def test_each_of_eight_devices_does_an_eighth_of_the_work(compiled, name, tolerance):
    alone, split = (count_flops(getattr(compiled[count], name).as_text()) for count in (1, DEVICES))
    assert alone > 0
    assert split * DEVICES == pytest.approx(alone, rel=tolerance)


@pytest.mark.parametrize("name", ["sample", "make_masks"])
def test_each_of_eight_devices_holds_an_eighth_of_what_is_not_weights(compiled, name):
    alone, split = (
        program_memory(getattr(compiled[count], name), compiled[count].weight_bytes, True)
        for count in (1, DEVICES)
    )
    pointers = 8 * getattr(compiled[1], name).out_tree.num_leaves  # to the results
    assert (split.outputs - pointers) * DEVICES == alone.outputs - pointers
    # Where temporaries are placed does not follow the batch to the byte.
    assert split.temporaries * DEVICES < 1.25 * alone.temporaries


@pytest.mark.parametrize("name", ["sample", "make_masks"])
def test_no_program_exchanges_data_between_devices(compiled, name):
    assert collectives_in(getattr(compiled[DEVICES], name).as_text()) == []


def test_an_exchange_between_devices_is_found():
    spread = jax.shard_map(
        lambda x: jax.lax.psum(x, DATA), mesh=make_mesh(), in_specs=P(DATA), out_specs=P()
    )
    assert collectives_in(compile_text(spread, (DEVICES, 4))) == ["all-reduce"]


def test_products_in_loops_count_as_often_as_they_run():
    def product(x, w):
        def step(x, _):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0], None

        return jax.lax.scan(step, x, length=5)[0]

    # [4, 8] @ [8, 8]: 4 * 8 sums of 8 products.
    assert count_flops(compile_text(product, (4, 8), (8, 8))) == 5 * 3 * 2 * (4 * 8) * 8


@pytest.mark.parametrize(
    ("stride", "groups", "expected"),
    [
        (1, 1, 2 * (2 * 16 * 16 * 12) * (3 * 3 * 8)),
        (2, 1, 2 * (2 * 8 * 8 * 12) * (3 * 3 * 8)),
        (1, 4, 2 * (2 * 16 * 16 * 12) * (3 * 3 * 2)),
    ],
)
def test_every_tap_of_a_convolution_counts(stride, groups, expected):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert count_flops(compile_text(convolve, (2, 16, 16, 8), (3, 3, 8 // groups, 12))) == expected


def test_work_that_depends_on_data_is_not_counted():
    def until(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    def either(x):
        return jax.lax.cond(x.sum() < 9, lambda x: x @ x, lambda x: x, x)

    for function, reason in ((until, "loop without a known length"), (either, "depends on data")):
        with pytest.raises(ValueError, match=reason):
            count_flops(compile_text(function, (8, 8)))
