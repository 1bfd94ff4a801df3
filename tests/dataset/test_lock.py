"""Two runs never write one folder, and a run that was killed holds nothing."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from seediff_jax.dataset.held_locks import release_all
from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.files.folder import open_folder

HOLDER = """
import sys
from seediff_jax.dataset.lock import hold_lock
from seediff_jax.files.folder import open_folder
with hold_lock(open_folder(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def bucket(tmp_path):
    folder = open_folder(f"memory://{tmp_path.name}/made")
    yield folder
    folder.filesystem.store.clear()


def test_a_second_run_is_refused_while_the_first_is_alive_and_not_after_it_was_killed(tmp_path):
    folder = open_folder(tmp_path / "made")
    program = [sys.executable, "-c", HOLDER, str(tmp_path / "made")]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"process {first.pid}\) is writing .*made"):
            with hold_lock(folder):
                pass
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert folder.names() == [LOCK]
    with hold_lock(folder):
        assert folder.names() == [LOCK]
    assert folder.names() == []


def test_a_lock_holds_on_a_disk_that_has_no_room_for_the_name_of_its_holder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    folder = open_folder(tmp_path)
    with hold_lock(folder):
        with pytest.raises(ValueError, match=r"another run \(just begun\) is writing"):
            with hold_lock(folder):
                pass
    assert folder.names() == []


def test_the_lock_is_given_back_after_an_error(tmp_path):
    folder = open_folder(tmp_path)
    with pytest.raises(KeyError), hold_lock(folder):
        raise KeyError
    assert folder.names() == []
    with hold_lock(folder):
        pass


def test_a_second_run_in_a_bucket_is_refused_while_the_first_keeps_changing_its_lock(bucket):
    with hold_lock(bucket, beat_seconds=0.05):
        with pytest.raises(ValueError, match="another run .* is writing memory://"):
            with hold_lock(bucket, beat_seconds=0.5):
                pass
    assert bucket.names() == []


def test_a_lock_in_a_bucket_that_stands_still_is_taken_over_whatever_the_clock_says(
    bucket, monkeypatch
):
    bucket.write(LOCK, b"host process 7\nnonce\n12")
    monkeypatch.setattr("time.time", lambda: 4e9)
    with hold_lock(bucket, beat_seconds=0.02):
        assert b"nonce" not in bucket.read(LOCK)
    assert bucket.names() == []


def test_of_two_runs_that_take_over_at_once_the_last_to_write_has_it(bucket, monkeypatch):
    def other_comes_between(seconds):
        bucket.write(LOCK, b"other process 9\nnonce\n0")

    monkeypatch.setattr("time.sleep", other_comes_between)
    with pytest.raises(ValueError, match=r"other process 9"), hold_lock(bucket):
        pass


def test_a_run_in_a_bucket_that_is_stopped_at_once_leaves_no_lock(bucket, monkeypatch):
    def interrupted(seconds):
        assert bucket.names() == [LOCK]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("time.sleep", interrupted)
        with pytest.raises(KeyboardInterrupt), hold_lock(bucket):
            pass
    assert bucket.names() == []
    with hold_lock(bucket, beat_seconds=0.02):
        release_all(seconds=20)  # as by a process that ends now
        assert bucket.names() == []
    release_all(seconds=20)  # holds nothing any more


STALLED = """
import sys
from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.files.folder import open_folder
bucket = open_folder("memory://stalled")
with hold_lock(bucket, beat_seconds=0.05):
    # As if this run had stood still and another one had come.
    bucket.write(LOCK, b"other process 9\\nnonce\\n0")
    sys.stdin.read()
"""


def test_a_run_in_a_bucket_that_was_taken_over_ends_before_it_writes_again():
    run = subprocess.Popen(
        [sys.executable, "-c", STALLED], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert run.wait(timeout=60) == os.EX_TEMPFAIL
        message = run.stderr.read().strip()
        assert message == "stopped: another run (other process 9) took over memory://stalled"
    finally:
        run.kill()
        for pipe in (run.stdin, run.stderr):
            pipe.close()


def test_a_lock_in_a_bucket_that_another_run_took_over_is_left_to_it(bucket):
    with hold_lock(bucket, beat_seconds=1):
        bucket.write(LOCK, b"other process 9\nnonce\n0")
    assert bucket.read(LOCK) == b"other process 9\nnonce\n0"
