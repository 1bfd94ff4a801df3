"""The two programs on a mesh: the same bits however devices are used, and no word between them."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.extend import backend
from jax.sharding import PartitionSpec as P
from small_runs import PROMPTS, write_inputs

from seediff_jax.model import load_model
from seediff_jax.noise import initial_latents
from seediff_jax.pair_inputs import pair_inputs
from seediff_jax.pair_settings import PairSettings
from seediff_jax.sharding import ALL_DEVICES, MeshShape, PairPrograms, make_mesh, weight_sharding

ROWS = 16
SETTINGS = PairSettings(num_steps=2)
COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+|send|recv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(folder):
    """A function from a mesh and a partition to the sixteen rows that are made so."""

    @functools.cache
    def make(shape=ALL_DEVICES, devices=8, partition="shard_map"):
        mesh = make_mesh(shape, jax.devices()[:devices])
        model = load(folder, mesh)
        programs = PairPrograms(model, SETTINGS, mesh, partition)
        records = [PROMPTS[row % 3] for row in range(ROWS)]
        inputs = pair_inputs(
            model, *zip(*records, strict=True), np.arange(100, 100 + ROWS), num_classes=2
        )
        return programs.fetch(programs(inputs))

    return make


def load(folder, mesh):
    return load_model(folder / "model", sharding=lambda shape: weight_sharding(mesh, shape))


def program_texts(name):
    """HLO of the compiled programs that are alive, by a part of their names."""
    modules = [program.hlo_modules()[0] for program in backend.get_backend().live_executables()]
    return [module.to_string() for module in modules if name in module.name]


def assert_close(got, expected):
    """Two programs with sums in another order: a level of colour or a pixel of a mask may tip."""
    assert np.abs(got.images.astype(int) - expected.images).max() <= 1
    assert (got.label_maps == expected.label_maps).mean() >= 0.999
    np.testing.assert_allclose(got.soft_masks, expected.soft_masks, atol=1e-3)


def test_pmap_and_shard_map_give_the_same_bits(made):
    rows = made()
    assert len(np.unique(rows.label_maps)) > 1
    assert len({image.tobytes() for image in rows.images}) == ROWS
    again = made(partition="pmap")
    jax.tree.map(np.testing.assert_array_equal, again, rows)


def test_no_program_has_a_collective_where_devices_share_no_weights(made):
    made()
    texts = program_texts("sample") + program_texts("mask")
    assert len(texts) >= 2
    assert not [found for text in texts for found in re.findall(rf" ({COLLECTIVES})\(", text)]
    print([m.hlo_modules()[0].name for m in backend.get_backend().live_executables()])


def test_weights_split_over_two_devices_give_the_same_samples_but_for_rounding(made, folder):
    assert_close(made(MeshShape(model=2)), made())
    model = load(folder, make_mesh(MeshShape(model=2)))
    split = [not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(model)]
    assert any(split)


@pytest.mark.slow
def test_another_number_of_samples_on_a_device_gives_the_same_but_for_rounding(made):
    assert_close(made(devices=4), made())


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_initial_latents_have_the_same_bits_in_every_batch(folder, batch):
    mesh = make_mesh()
    model = load(folder, mesh)
    indices = np.arange(1000, 1000 + 8 * batch, dtype=np.int32)
    latents = functools.partial(initial_latents, model, np.uint32(7))
    split = jax.jit(
        jax.shard_map(
            lambda rows: latents(rows, None), mesh=mesh, in_specs=P("data"), out_specs=P("data")
        )
    )
    one_by_one = [latents(indices[k : k + 1], None) for k in range(len(indices))]
    np.testing.assert_array_equal(split(indices), np.concatenate(one_by_one))


def test_another_partition_is_refused(folder):
    mesh = make_mesh()
    with pytest.raises(ValueError, match="partition='xmap' is not one of shard_map, pmap"):
        PairPrograms(load(folder, mesh), SETTINGS, mesh, "xmap")


def test_pmap_refuses_to_split_weights(folder):
    mesh = make_mesh(MeshShape(model=2))
    with pytest.raises(ValueError, match="partition=pmap has no model axis; use shard_map"):
        PairPrograms(load(folder, mesh), SETTINGS, mesh, "pmap")
