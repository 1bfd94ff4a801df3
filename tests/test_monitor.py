"""The figures of a run while it works, on a clock that the test turns."""

import json
import re

import jax
import pytest
from tensorboard_events import scalars

from seediff_jax import monitor
from seediff_jax.monitor import Monitor, require_log_dir


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
    with Monitor(total=100, done=20, own=80, shows_progress=False) as watched:
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


def test_progress_over_hosts_takes_it_that_all_are_as_fast_as_this_one(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with Monitor(total=100, done=20, own=30) as watched:
        assert watched.state()["done"] == 20
        watched.watch(15, 0)
        assert watched.state()["done"] == 60  # half of this host's, so half of all the 80
        watched.watch(15, 0)
        assert watched.state()["done"] == watched.state()["total"] == 100
    shown = capsys.readouterr().err
    assert "all hosts about 60/100" in shown and re.search(r"host 0: .* 30/30 ", shown)


def test_a_host_with_nothing_to_do_takes_the_others_for_ready():
    with Monitor(total=9, done=4, own=0, shows_progress=False) as watched:
        assert watched.state()["done"] == 9


@pytest.fixture
def traces(monkeypatch):
    """What the profiler was told."""
    events = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("stop"))
    return events


@pytest.mark.parametrize(("rounds", "profiled"), [(1, 0), (2, 1), (4, 1)])
def test_one_round_is_profiled_the_second_where_there_is_one(traces, tmp_path, rounds, profiled):
    arguments = {"log_dir": str(tmp_path), "profile": True, "shows_progress": False}
    with Monitor(total=9, done=0, own=9, rounds=rounds, **arguments) as watched:
        for number in range(rounds + 1):  # one more, as after failures
            watched.round_started()
            assert len(traces) == (0 if number < profiled else 1 if number == profiled else 2)
            watched.round_fetched()
    assert traces == [str(tmp_path), "stop"]


def test_a_profile_ends_with_a_run_that_fails(traces, tmp_path):
    arguments = {"log_dir": str(tmp_path), "profile": True, "shows_progress": False}
    with pytest.raises(KeyError), Monitor(total=9, done=0, own=9, rounds=1, **arguments) as watched:
        watched.round_started()
        raise KeyError
    assert traces == [str(tmp_path), "stop"]


@pytest.mark.parametrize("log_dir", ["gs://bucket/log", "s3://bucket", "memory://log"])
def test_a_log_in_a_bucket_is_refused(log_dir):
    with pytest.raises(ValueError, match=rf"log_dir={log_dir} .* give a local folder"):
        require_log_dir(log_dir)


def test_progress_counts_what_was_there_before(capsys):
    with Monitor(total=9, done=4, own=5) as watched:
        watched.watch(5, 0)
    assert re.search(r"9/9 ", capsys.readouterr().err)
