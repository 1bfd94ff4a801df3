"""The simulated device of the benchmarks: its speed, its rows, and the driver with it."""

import json
import math

import numpy as np
import pytest

from experiments.benchmarks.resume import renumbered
from experiments.benchmarks.simulated import (
    SimulatedDevice,
    make_pool,
    make_records,
    run_driver,
    simulated_config,
)
from seediff_jax.dataset.checksums import add_checksum
from seediff_jax.sampling.inputs import PairInputs


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds


@pytest.fixture(scope="module")
def pool():
    return make_pool(side=16, count=3)


def inputs(*indices):
    return PairInputs(None, None, None, np.array(indices, np.int32))


def test_rounds_are_due_one_after_another_at_the_speed_of_the_device(pool):
    clock = Clock()
    device = SimulatedDevice(pool, speed=8, clock=clock, sleep=clock.sleep)
    rounds = [device(inputs(*range(4))) for _ in range(3)]
    times = []
    for made in rounds:
        device.fetch(made)
        times.append(clock())
    assert times == [100.5, 101, 101.5]


def test_a_round_that_is_requested_late_begins_late(pool):
    clock = Clock()
    device = SimulatedDevice(pool, speed=8, clock=clock, sleep=clock.sleep)
    device.fetch(device(inputs(0, 1, 2, 3)))
    clock.sleep(10)
    device.fetch(device(inputs(4, 5)))
    assert clock() == 100.5 + 10 + 0.25


def test_a_round_that_is_fetched_late_is_ready_at_once(pool):
    clock = Clock()
    device = SimulatedDevice(pool, speed=8, clock=clock, sleep=clock.sleep)
    made = device(inputs(0))
    clock.sleep(1)
    device.fetch(made)
    assert clock() == 101


def test_an_unlimited_device_never_waits(pool):
    device = SimulatedDevice(pool, math.inf, clock=Clock(), sleep=None)
    assert len(device.fetch(device(inputs(*range(64)))).images) == 64


def test_a_sample_gets_the_row_of_its_index_at_any_position_in_a_round(pool):
    device = SimulatedDevice(pool, math.inf)
    rows = device.fetch(device(inputs(7, 3, 5)).replace(soft_masks=None))
    np.testing.assert_array_equal(rows.images, pool.images[[1, 0, 2]])
    np.testing.assert_array_equal(rows.label_maps, pool.label_maps[[1, 0, 2]])
    assert rows.soft_masks is None


def test_watch_is_called_before_each_round(pool):
    calls = []
    device = SimulatedDevice(pool, math.inf, watch=calls.append)
    device(inputs(0, 1))
    device(inputs(2, 3))
    assert calls == [0, 2]


def test_prompts_differ_and_name_their_classes():
    records = make_records(300)
    assert len({record.prompt for record in records}) == 300
    assert [len(record.classes) for record in records[:4]] == [1, 2, 1, 2]
    assert all(name in record.prompt for record in records for name in record.classes)


def test_the_driver_makes_a_dataset_with_the_device_and_then_finds_it_complete(pool, tmp_path):
    config = simulated_config(tmp_path / "out", ["files"], 6, batch_size=4, shard_size=5)
    run = run_driver(config, pool)
    assert run.log["written"] == 6
    assert run.ready.time <= run.first_round.time <= run.written.time
    lines = (tmp_path / "out/manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(6))
    assert run_driver(config, pool).first_round is None


def test_renumbering_a_line_changes_its_index_and_paths_and_keeps_its_hashes():
    digest = "000004" * 10 + "beef"
    row = {"index": 4, "image": "image/000004.png", "sha256": {"image.png": digest}, "seeds": [4]}
    expected = add_checksum(row | {"index": 12004, "image": "image/012004.png"})
    assert json.loads(renumbered(json.dumps(add_checksum(row)), 12004)) == expected
