"""The figures of a run while it works, on a clock that the test turns."""

import json
import re

import pytest
from tensorboard_events import scalars

from seediff_jax import monitor
from seediff_jax.monitor import Monitor


class Clock:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1e9 + self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


def test_rate_remaining_time_and_the_share_of_busy_devices(clock):
    watched = Monitor(total=100, done=20, own=80, shows_progress=False)
    watched.round_started()  # at 0 s
    clock.now += 4
    watched.round_started()  # at 4 s, while the first is there
    clock.now += 2
    watched.round_fetched()
    watched.watch(8, 1)
    clock.now += 2
    watched.round_fetched()  # at 8 s the devices have nothing to do
    watched.watch(8, 0)
    clock.now += 2
    state = watched.state()
    assert state["images_per_second"] == 1.6 and state["eta_seconds"] == 40.0  # 16 / 10, 64 / 1.6
    assert state["device_busy"] == 0.8
    assert (state["written"], state["failed"], state["done"], state["total"]) == (16, 1, 36, 100)


def test_the_log_gets_a_line_every_few_seconds_and_one_at_the_end(clock, tmp_path):
    with Monitor(total=9, done=0, own=9, log_dir=str(tmp_path), shows_progress=False) as watched:
        for _ in range(3):
            watched.watch(3, 0)
            clock.now += monitor.LOG_SECONDS * 0.7
    lines = [json.loads(line) for line in (tmp_path / "host-0000.jsonl").read_text().splitlines()]
    assert [line["written"] for line in lines] == [9, 9]
    assert lines[0]["host"] == 0 and lines[0]["time"] == pytest.approx(1e9 + 114)
    curves = scalars(tmp_path / "host-0000")
    assert curves["written"] == [(9, 9.0), (9, 9.0)]
    assert curves.keys() == {"images_per_second", "device_busy", "written", "failed"}


def test_progress_counts_what_was_there_before(capsys):
    with Monitor(total=9, done=4, own=5) as watched:
        watched.watch(5, 0)
    assert re.search(r"9/9 ", capsys.readouterr().err)
