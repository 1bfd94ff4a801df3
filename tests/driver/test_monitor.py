"""The figures of a run while it works, on a clock that the test turns."""

import io
import json
import re
import threading
import time

import jax
import pytest

from seediff_jax.driver import monitor
from seediff_jax.driver.monitor import Monitor
from tests.helpers.driver_processes import wait_until
from tests.helpers.tensorboard_events import scalars


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


def test_what_is_compiled_is_counted_apart_from_the_rate(clock):
    with Monitor(total=100, done=20, own=80, shows_progress=False) as watched:
        clock.now += 1
        watched.round_started()
        clock.now += 30  # the programs are compiled
        watched.round_compiled()
        assert watched.state()["first_image_seconds"] is None
        clock.now += 4
        watched.round_started()
        watched.round_compiled()
        watched.round_fetched()
        watched.watch(8, 0)
        clock.now += 4
        watched.watch(8, 0)
        state = watched.state()
    assert (state["compile_seconds"], state["first_image_seconds"]) == (30.0, 35.0)
    assert state["images_per_second"] == 2.0 and state["device_busy"] == 1.0  # 16 in 8 s


@pytest.mark.parametrize(("is_terminal", "told"), [(True, 30), (False, 3)])
def test_the_bar_says_how_long_programs_compile_and_the_time_of_the_first_image(
    clock, monkeypatch, is_terminal, told
):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(monitor, "BAR_SECONDS", 0.01)
    with Monitor(total=9, done=0, own=9) as watched:
        watched.round_started()
        for second in range(1, 31):
            clock.now += 1
            if is_terminal or not second % monitor.COMPILING_SECONDS:
                wait_until(lambda second=second: f"compiling {second} s: " in stream.getvalue())
        watched.round_compiled()
        clock.now += 12
        watched.watch(9, 0)
        wait_until(lambda: "9/9" in stream.getvalue())
    text = stream.getvalue()
    assert len(set(re.findall(r"compiling \d+ s", text))) == told
    assert "first image after 42 s, 30 s of which were for compiling\n" in text
    last = text.rpartition("\r")[2]
    assert "9/9" in last and "compiling" not in last


def test_the_log_gets_a_line_every_few_seconds_and_one_at_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(monitor, "LOG_SECONDS", 0.2)
    log, attention = tmp_path / "host-0000.jsonl", "xla for 8x8 (2)"
    arguments = {"log_dir": str(tmp_path), "shows_progress": False, "attention": attention}
    with Monitor(total=9, done=0, own=9, **arguments) as watched:
        watched.watch(3, 1)
        wait_until(lambda: log.exists() and log.read_text())
        watched.watch(6, 0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert (lines[0]["written"], lines[0]["failed"], lines[0]["host"]) == (3, 1, 0)
    assert lines[-1]["written"] == 9 and len(lines) > 1
    assert {line["attention"] for line in lines} == {"xla for 8x8 (2)"}
    curves = scalars(tmp_path / "host-0000")
    assert curves["written"] == [(line["written"], line["written"]) for line in lines]
    assert curves.keys() == {"images_per_second", "device_busy", "written", "failed"}


def test_a_log_that_cannot_be_written_costs_no_sample(tmp_path, caplog):
    (tmp_path / "host-0000.jsonl").mkdir()
    with Monitor(total=9, done=0, own=9, log_dir=str(tmp_path), shows_progress=False) as watched:
        watched.watch(9, 0)
    assert watched.state()["written"] == 9
    assert "the log ends: " in caplog.text and "the run continues" in caplog.text


class Broken(io.StringIO):
    """A stream that nothing can be written to, or only later."""

    def __init__(self, free):
        super().__init__()
        self._free = free

    def write(self, text):
        if self._free is None:
            raise OSError(28, "No space left on device")
        self._free.wait()


@pytest.mark.parametrize("free", [None, threading.Event()], ids=["full", "blocked"])
def test_a_progress_bar_that_cannot_be_drawn_stops_nothing(monkeypatch, free):
    monkeypatch.setattr("sys.stderr", Broken(free))
    monkeypatch.setattr(monitor, "BAR_SECONDS", 0.01)
    monkeypatch.setattr(monitor, "_END_SECONDS", 0.1)
    with Monitor(total=100, done=0, own=100) as watched:
        for _ in range(100):
            watched.watch(1, 0)
            time.sleep(0.001)
    assert watched.state()["written"] == 100
    if free:
        free.set()


def test_a_profile_that_cannot_be_written_costs_no_sample(monkeypatch, tmp_path, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    monkeypatch.setattr(jax.profiler, "stop_trace", fail)
    arguments = {"log_dir": str(tmp_path), "profile": True, "shows_progress": False}
    with Monitor(total=9, done=0, own=9, rounds=1, **arguments) as watched:
        watched.round_started()
        watched.round_fetched()
    assert "no profile: [Errno 28] No space left on device" in caplog.text


def test_progress_over_hosts_takes_it_that_all_are_as_fast_as_this_one(monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(monitor, "BAR_SECONDS", 0.01)
    shown = []
    with Monitor(total=100, done=20, own=30) as watched:
        assert watched.state()["done"] == 20
        watched.watch(15, 0)
        wait_until(lambda: shown.append(capsys.readouterr().err) or "60/100" in shown[-1])
        assert watched.state()["done"] == 60  # half of this host's, so half of all the 80
        watched.watch(15, 0)
        assert watched.state()["done"] == watched.state()["total"] == 100
    assert "all hosts about 60/100" in shown[-1]
    assert re.search(r"host 0: .* 30/30 ", capsys.readouterr().err)


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


def test_progress_counts_what_was_there_before(capsys):
    with Monitor(total=9, done=4, own=5) as watched:
        watched.watch(5, 0)
    assert re.search(r"9/9 ", capsys.readouterr().err)
