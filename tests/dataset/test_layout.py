"""The cut of a run into shards and blocks, and the share of each host."""

import tracemalloc

import numpy as np
import pytest

from seediff_jax.dataset import layout
from seediff_jax.dataset.layout import ShardLayout, share_blocks

LAYOUT = ShardLayout(num_images=17, shard_size=6, batch_size=4)


def test_blocks_begin_at_fixed_places_of_their_shard():
    all_blocks = LAYOUT.blocks_with(np.arange(17))
    assert all_blocks.tolist() == [0, 4, 6, 10, 12, 16]
    assert LAYOUT.blocks_with(np.array([5, 11, 13])).tolist() == [4, 10, 12]
    assert LAYOUT.blocks_with(np.array([], int)).tolist() == []


def test_a_block_that_is_cut_short_is_made_in_full():
    assert [*LAYOUT.block(4)] == [4, 5, 6, 7] and [*LAYOUT.wanted(4)] == [4, 5]
    assert [*LAYOUT.block(16)] == [16, 17, 18, 19] and [*LAYOUT.wanted(16)] == [16]


def test_every_sample_is_wanted_by_one_block_alone():
    wanted = [i for first in LAYOUT.blocks_with(np.arange(17)) for i in LAYOUT.wanted(int(first))]
    assert wanted == [*range(17)]


def test_the_last_shard_is_not_full_unless_the_run_fills_it():
    assert LAYOUT.num_shards == 3 and [*LAYOUT.indices(2)] == [12, 13, 14, 15, 16]
    assert [LAYOUT.is_full(shard) for shard in range(3)] == [True, True, False]
    assert ShardLayout(18, 6, 4).is_full(2)


@pytest.mark.parametrize("name", ["num_images", "shard_size", "batch_size"])
def test_sizes_below_one_are_refused(name):
    sizes = {"num_images": 1, "shard_size": 1, "batch_size": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0 must be 1 or more"):
        ShardLayout(**sizes)


def test_hosts_get_successive_blocks_in_proportion_to_their_devices():
    blocks = np.arange(0, 48, 4)
    shares = [share_blocks(blocks, [2, 1, 3], host) for host in range(3)]
    assert [own.tolist() for own, _ in shares] == [
        [0, 4, 8, 12],
        [16, 20],
        [24, 28, 32, 36, 40, 44],
    ]
    assert [rounds for _, rounds in shares] == [2, 2, 2]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
def test_every_block_has_one_host_and_the_rounds_suffice(count):
    rows = [4, 4, 2]
    shares = [share_blocks(np.arange(count), rows, host) for host in range(3)]
    assert np.concatenate([own for own, _ in shares]).tolist() == [*range(count)]
    for (own, rounds), at_a_time in zip(shares, rows, strict=True):
        assert len(own) <= rounds * at_a_time


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_unfinished_blocks_are_those_with_a_missing_sample(chunk, monkeypatch):
    monkeypatch.setattr(layout, "_CHUNK", chunk)
    random = np.random.default_rng(chunk)
    for _ in range(100):
        count, shard_size, batch_size = random.integers(1, [60, 20, 25]).tolist()
        each = ShardLayout(count, shard_size, batch_size)
        exists = random.random(count) < random.random()
        expected = each.blocks_with(np.flatnonzero(~exists))
        assert each.unfinished_blocks(exists).tolist() == expected.tolist()


def test_unfinished_blocks_of_a_long_run_take_little_memory():
    exists = np.zeros(2 * 10**7, bool)
    tracemalloc.start()
    blocks = ShardLayout(len(exists), 1000, 64).unfinished_blocks(exists)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(blocks) == 20_000 * 16
    assert peak < 2 * len(exists)  # an index of 8 bytes for each sample would take four times that
