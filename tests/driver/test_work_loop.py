"""The loop of a host: all stages at work at the same time, bounds, and errors that end it."""

import threading
import time

import pytest

from seediff_jax.driver.work_loop import Stages, WorkLoop

WAIT = 60  # seconds; only a loop that is wrong needs them


class Recorder:
    """Stages that note what happens; a block's content is its number."""

    def __init__(self, **replaced):
        self.written, self.finished, self.seen = [], [], []
        stages = {
            "start": lambda blocks: blocks,
            "fetch": lambda handle: handle,
            "write": self.write,
            "finish": self.finished.append,
            "shards_ready": lambda first, written: [first // 10] if first % 10 == 3 else [],
            "watch": lambda written, failed: self.seen.append((written, failed)),
        }
        self.stages = Stages(**stages | replaced)

    def write(self, first, content):
        assert first == content
        self.written.append(first)
        return 2, [f"bad {first}"] if first == 12 else []


def never(_):
    return False


def test_every_block_is_written_and_shards_with_all_samples_are_finished():
    recorder = Recorder()
    rounds = [[0, 1], [2, 3], [], [12, 13]]
    failed, stopped = WorkLoop(recorder.stages).run(rounds, never)
    assert sorted(recorder.written) == [0, 1, 2, 3, 12, 13]
    assert sorted(recorder.finished) == [0, 1]
    assert failed == ["bad 12"] and not stopped
    assert sorted(recorder.seen) == [(2, 0)] * 5 + [(2, 1)]


def test_the_devices_start_the_next_rounds_while_the_first_is_written():
    third_started = threading.Event()
    started = []

    def start(blocks):
        started.append(blocks)
        if len(started) == 3:
            third_started.set()
        return blocks

    def write(first, content):
        assert third_started.wait(WAIT)
        return 1, []

    loop = WorkLoop(Recorder(start=start, write=write).stages, workers=1, depth=1)
    loop.run([[0], [1], [2], [3]], never)
    assert started == [[0], [1], [2], [3]]


def test_a_device_has_its_next_round_before_it_is_done_with_the_last():
    second_started = threading.Event()

    def start(blocks):
        if blocks == [1]:
            second_started.set()
        return blocks

    def fetch(blocks):
        assert second_started.wait(WAIT)
        return blocks

    WorkLoop(Recorder(start=start, fetch=fetch).stages).run([[0], [1], [2]], never)


@pytest.mark.parametrize(("depth", "workers"), [(1, 1), (2, 1), (2, 3)])
def test_a_slow_disk_lets_no_more_rounds_be_started_than_have_a_place(depth, workers):
    started, counts = [], []

    def start(blocks):
        started.extend(blocks)
        counts.append(len(started) - len(recorder.seen))
        return blocks

    def write(first, content):
        time.sleep(0.01)  # the devices take no time at all
        return 1, []

    recorder = Recorder(start=start, write=write)
    WorkLoop(recorder.stages, workers, depth).run([[i] for i in range(40)], never)
    # On the devices, or without a place in the queue; written, or waiting for it.
    assert len(recorder.seen) == 40 and max(counts) <= depth + 2 * workers


def test_a_round_is_fetched_when_it_is_made_though_the_queue_is_full():
    all_fetched = threading.Event()

    def fetch(blocks):
        if blocks == [3]:
            all_fetched.set()
        return blocks

    def write(first, content):
        assert all_fetched.wait(WAIT)
        return 1, []

    # Two fill the queue; else the devices would seem to be at work on the others.
    loop = WorkLoop(Recorder(fetch=fetch, write=write).stages, workers=1, depth=2)
    loop.run([[0], [1], [2], [3]], never)


def test_rounds_without_a_block_take_no_place_for_ever():
    recorder = Recorder()
    WorkLoop(recorder.stages).run([[], [], [], [], [], [0, 1], [], []], never)
    assert sorted(recorder.written) == [0, 1]


def test_blocks_are_encoded_by_several_threads_at_once():
    both = threading.Barrier(2, timeout=WAIT)

    def write(first, content):
        both.wait()
        return 1, []

    WorkLoop(Recorder(write=write).stages, workers=2).run([[0, 1]], never)


def test_a_stop_lets_what_is_in_flight_be_written():
    recorder = Recorder()
    rounds = ([i] for i in range(100))
    _, stopped = WorkLoop(recorder.stages).run(rounds, lambda number: number == 5)
    assert stopped and sorted(recorder.written) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("stage", ["start", "fetch", "write", "finish", "shards_ready", "watch"])
def test_an_error_of_any_stage_ends_the_loop_and_is_raised(stage):
    def fail(*_):
        raise OSError(28, "No space left on device", "image.png")

    recorder = Recorder(**{stage: fail})
    with pytest.raises(OSError, match="No space left"):
        WorkLoop(recorder.stages).run([[i] for i in range(1000)], never)
    assert len(recorder.written) < 1000


@pytest.mark.parametrize("contents", [[], [0], [0, 1, 2], None])
def test_a_round_with_too_few_or_too_many_results_ends_the_loop(contents):
    recorder = Recorder(fetch=lambda handle: contents)
    with pytest.raises((ValueError, TypeError), match="argument 2|NoneType"):
        WorkLoop(recorder.stages).run([[i, i + 1] for i in range(100)], never)
    assert not recorder.written


def test_what_was_written_before_an_error_stays_written():
    recorder = Recorder()

    def start(blocks):
        if blocks == [50]:
            raise ValueError("the device is gone")
        return blocks

    recorder.stages = Recorder(start=start, write=recorder.write).stages
    with pytest.raises(ValueError, match="the device is gone"):
        WorkLoop(recorder.stages, workers=2).run([[i] for i in range(100)], never)
    # Those in flight may be given up, no others: 2 on the devices, 4 in the queue.
    assert set(recorder.written) <= set(range(50)) and len(recorder.written) >= 44
