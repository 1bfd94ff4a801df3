"""What a round starts with: the tokens of its prompts, each read once."""

import math

import jax
import numpy as np
import pytest

from experiments.benchmarks.simulated import (
    SimulatedDevice,
    load_simulated_model,
    make_pool,
    simulated_config,
)
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.shards import Dataset
from seediff_jax.driver import sample_maker
from seediff_jax.driver.sample_maker import PairMaker
from seediff_jax.files.folder import open_folder
from seediff_jax.sampling.inputs import ClassLists, pair_inputs

NUM_PROMPTS = 6


@pytest.fixture(scope="module")
def model():
    return load_simulated_model("shapes")


@pytest.fixture
def config(tmp_path):
    return simulated_config(tmp_path / "out", ["files"], 100, NUM_PROMPTS, batch_size=4)


@pytest.fixture
def maker(model, config, tmp_path):
    """Makes two blocks of four at a time."""
    layout = ShardLayout(config.num_images, config.shard_size, config.batch_size)
    dataset = Dataset(open_folder(config.output), layout, [], tmp_path)
    device = SimulatedDevice(make_pool(side=16, count=3), math.inf)
    return PairMaker(config, model, device, dataset, np.zeros(config.num_images, bool), 2)


@pytest.fixture
def read(monkeypatch):
    """The prompts that are tokenised."""
    prompts = []

    def record(model, texts, *arguments, **options):
        prompts.extend(texts)
        return pair_inputs(model, texts, *arguments, **options)

    monkeypatch.setattr(sample_maker, "pair_inputs", record)
    return prompts


def expected_inputs(model, config, indices):
    records = [config.record(index) for index in indices]
    prompts, names = [r.prompt for r in records], [r.named for r in records]
    return pair_inputs(model, prompts, ClassLists(names, num_classes=2), indices)


def assert_equal(inputs, expected):
    leaves, others = (jax.tree.leaves_with_path(each) for each in (inputs, expected))
    for (path, leaf), (other_path, other) in zip(leaves, others, strict=True):
        assert path == other_path and leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("kept", [0, 2, 100])
def test_inputs_are_those_of_all_prompts_at_once(maker, model, config, monkeypatch, kept):
    monkeypatch.setattr(sample_maker, "_KEPT_PROMPTS", kept)
    for blocks in ([0, 4], [8, 44], [96]):
        made = maker.start(blocks)
        firsts = [*blocks, blocks[0]][:2]
        indices = [first + k for first in firsts for k in range(4)]
        assert_equal(made.inputs, expected_inputs(model, config, indices))


def test_a_prompt_that_comes_again_is_not_tokenised_again(maker, config, read):
    maker.start([0, 4])
    maker.start([8, 12])
    assert read == [record.prompt for record in config.plan.records]


def test_prompts_are_forgotten_when_there_are_too_many(maker, read, monkeypatch):
    monkeypatch.setattr(sample_maker, "_KEPT_PROMPTS", NUM_PROMPTS - 1)
    for _ in range(3):
        maker.start([0, 4])
    assert len(read) == 3 * NUM_PROMPTS
