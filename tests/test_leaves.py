"""Weights one by one: how much memory that takes, and what happens when it is broken off."""

import threading
import tracemalloc

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_models import random_params, small_config

from seediff_jax.checkpoints import read_leaves, write_folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Sixteen of its weights are large and equally so."""
    text = {"num_hidden_layers": 8, "intermediate_size": 2**13}
    return small_config(tmp_path_factory.mktemp("made") / "tokenizer", text=text)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def folder(config, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    write_folder(folder, config, params)
    return folder


def test_few_weights_are_in_memory_at_a_time(folder, config, params):
    """Of three leaves (the caller's, the next, and the one after it) one is there twice."""
    leaves = read_leaves(folder, config)
    next(leaves)  # by now the config is traced, which takes memory of its own
    tracemalloc.start()
    sizes = [leaf.nbytes for _, leaf in leaves]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 6 * max(sizes) < sum(sizes) / 2
    assert max(sizes) < peak < 6 * max(sizes)
    assert len(sizes) == len(flatten_dict(params)) - 1


def test_leaves_come_in_order_and_are_contiguous(folder, config, params):
    expected = flatten_dict(params, sep="/")
    paths = []
    for path, leaf in read_leaves(folder, config):
        paths.append("/".join(path))
        assert leaf.flags.c_contiguous and leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, expected[paths[-1]])
    assert paths == sorted(expected)


def test_a_caller_who_stops_early_leaves_no_thread_behind(folder, config):
    before = threading.active_count()
    leaves = read_leaves(folder, config)
    next(leaves)
    leaves.close()
    assert threading.active_count() == before
