"""The two programs on a mesh: the same bits however devices are used."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from seediff_jax.checkpoints.load import load_model
from seediff_jax.pipeline.mesh import make_mesh, weight_sharding
from seediff_jax.pipeline.programs import PairPrograms
from seediff_jax.pipeline.settings import ALL_DEVICES, MeshShape, PairSettings
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import ClassLists, encode_prompts, pair_inputs
from seediff_jax.sampling.noise import initial_latents
from tests.helpers.random_models import relative_difference
from tests.helpers.small_runs import PROMPTS, write_inputs

ROWS = 16
SETTINGS = PairSettings(sampling=SamplingConfig(num_steps=2))
COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-[a-z]+|send|recv)(-start)?\("
)
# Of the devices 0 to 7 in four rows: the two of a row, in each of the ways of writing it.
WITHIN_ROWS = ("{{0,1},{2,3},{4,5},{6,7}}", "[4,2]<=[8]", "{{0,1},{1,0},{2,3},{3,2},")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(folder):
    """A function from a mesh and a partition to the sixteen rows that are made so."""

    @functools.cache
    def make(shape=ALL_DEVICES, devices=8, partition="shard_map"):
        programs, inputs = prepare(folder, make_mesh(shape, jax.devices()[:devices]), partition)
        return programs.fetch(programs(inputs))

    return make


@pytest.fixture(scope="module")
def latents(folder):
    """A function to the final latents of the sixteen rows, made `rows` at a time on each device."""

    @functools.cache
    def make(devices, rows, partition="shard_map", backwards=False):
        mesh = make_mesh(devices=jax.devices()[:devices])
        programs, inputs = prepare(folder, mesh, partition)
        made = {}
        blocks = np.arange(ROWS).reshape(-1, devices, rows)
        for block in blocks[::-1, ::-1] if backwards else blocks:
            taken = jax.tree.map(lambda leaf, block=block: leaf[block.reshape(-1)], inputs)
            samples = programs._sample(programs._model, programs._scalars, taken)
            made |= zip(block.reshape(-1), programs.fetch(samples.latents), strict=True)
        return np.stack([made[row] for row in range(ROWS)])

    return make


def prepare(folder, mesh, partition="shard_map"):
    """The programs of a mesh, and inputs of sixteen rows."""
    model = load(folder, mesh)
    records = [PROMPTS[row % 3] for row in range(ROWS)]
    indices = np.arange(100, 100 + ROWS)
    prompts, classes = zip(*records, strict=True)
    inputs = pair_inputs(model, prompts, ClassLists(classes, num_classes=2), indices)
    return PairPrograms(model, SETTINGS, mesh, partition), inputs


def load(folder, mesh):
    return load_model(folder / "model", sharding=lambda shape: weight_sharding(mesh, shape))


def collectives(programs, inputs):
    """Lines of the compiled programs in which devices speak to one another."""
    texts = [lowered.compile().as_text() for lowered in programs.lower(inputs)]
    return [line for text in texts for line in text.splitlines() if COLLECTIVE.search(line)]


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


def test_evidence_of_classes_is_the_same_on_one_device_on_several_and_under_pmap(folder):
    sampling = SamplingConfig(num_steps=1, presence_draws=2)
    found = []
    for devices, partition in ((1, "shard_map"), (4, "shard_map"), (4, "pmap")):
        mesh = make_mesh(devices=jax.devices()[:devices])
        model = load(folder, mesh)
        prompts, classes = ["a cow", "a cat"] * 4, [["cow"], ["cat"]] * 4
        inputs = pair_inputs(model, prompts, classes, range(8))
        texts = [[encode_prompts(model, ["", name])] for (name,) in classes]
        inputs = inputs.replace(evidence_token_ids=np.concatenate(texts))
        settings = PairSettings(sampling=sampling)
        programs = PairPrograms(model, settings, mesh, partition, keeps_attention=True)
        rows = programs.fetch(programs(inputs))
        found.append((rows.attention_maps.evidence, rows.presence))
    assert len({row.tobytes() for row in found[0][0]}) == 8
    # A batch of eight and batches of two round differently, and small differences lose digits.
    scale = np.abs(found[0][0]).max()
    np.testing.assert_allclose(found[1][0], found[0][0], atol=5e-3 * scale)
    jax.tree.map(np.testing.assert_array_equal, found[2], found[1])


@pytest.mark.slow
def test_weights_split_over_two_devices_give_the_same_samples_but_for_rounding(made, folder):
    shape = MeshShape(model=2)
    assert_close(made(shape), made())
    mesh = make_mesh(shape)
    weights = jax.tree.leaves(load(folder, mesh))
    assert any(not leaf.sharding.is_fully_replicated for leaf in weights)
    found = collectives(*prepare(folder, mesh))
    assert found and all(any(group in line for group in WITHIN_ROWS) for line in found)


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


@pytest.mark.parametrize(
    "run",
    [
        {"devices": 8, "backwards": True},
        {"devices": 8, "partition": "pmap"},
        {"devices": 1, "backwards": True},
        pytest.param({"devices": 1}, marks=pytest.mark.slow),
        pytest.param({"devices": 2}, marks=pytest.mark.slow),
        pytest.param({"devices": 4, "backwards": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_final_latents_have_the_same_bits_on_any_devices_and_in_any_order(latents, run):
    expected = latents(devices=8, rows=2)
    assert len({row.tobytes() for row in expected}) == ROWS
    np.testing.assert_array_equal(latents(rows=2, **run), expected)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
def test_final_latents_differ_by_rounding_at_another_batch_size(latents, rows):
    # Sums in another order, about 1e-5 after two steps with random weights; other noise would be 1.
    assert relative_difference(latents(devices=4, rows=rows), latents(devices=8, rows=2)) < 1e-4


def test_another_partition_is_refused(folder):
    mesh = make_mesh()
    with pytest.raises(ValueError, match="partition='xmap' is not one of shard_map, pmap"):
        PairPrograms(load(folder, mesh), SETTINGS, mesh, "xmap")


def test_pmap_refuses_to_split_weights(folder):
    mesh = make_mesh(MeshShape(model=2))
    with pytest.raises(ValueError, match="partition=pmap has no model axis; use shard_map"):
        PairPrograms(load(folder, mesh), SETTINGS, mesh, "pmap")
