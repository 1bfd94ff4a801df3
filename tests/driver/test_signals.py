"""Signals: they are heard while Python hears nothing, and end a program with its status."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from seediff_jax.driver import signals
from seediff_jax.driver.signals import INTERRUPTED, STOPPED, Stopped, listening

DEAF = """
from seediff_jax.driver import signals, stdio
signals._GRACE_SECONDS = stdio._RELEASE_SECONDS = 0.3
{code}
"""
# Minutes in C code that looks at no signal, as XLA's compiler does.
COMPILER = """
import hashlib
print("begun", flush=True)
hashlib.pbkdf2_hmac("sha1", b"", b"", 2**31 - 1)
"""
SWALLOWED = """
import time
print("begun", flush=True)
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


def indented(code):
    return "\n".join(f"    {line}" for line in code.strip().splitlines())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, INTERRUPTED)]
)
@pytest.mark.parametrize(
    "code",
    [
        f"signals.end_at_signals()\n{COMPILER}",
        f"with signals.listening(lambda number: True):\n{indented(COMPILER)}",
        f"with signals.listening(lambda number: True):\n{indented(SWALLOWED)}",
    ],
    ids=["start", "compiler", "swallowed"],
)
def test_a_program_that_hears_nothing_ends_with_the_status_and_one_line(code, number, status):
    program = [sys.executable, "-c", DEAF.format(code=code)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, **pipes) as process:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors == b"stopped; run the same command again\n"


def test_locks_are_released_before_a_program_that_hears_nothing_ends_and_one_may_hang():
    code = f"""
import threading
from seediff_jax.dataset.held_locks import noted
first = noted(lambda: print("released", flush=True))
with first, noted(threading.Event().wait), signals.listening():
{indented(COMPILER)}
"""
    program = [sys.executable, "-c", DEAF.format(code=code)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, **pipes) as process:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (STOPPED, b"released\n")
    assert errors == b"stopped; run the same command again\n"


def test_the_handlers_are_given_back_after_an_error():
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyError), listening(lambda number: True):
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_is_told_and_the_block_goes_on_where_nothing_is_to_be_left():
    told = threading.Event()
    with listening(lambda number: told.set() if number == signal.SIGHUP else None):
        os.kill(os.getpid(), signal.SIGHUP)
        assert told.wait(20)


def test_the_cleanup_of_a_block_that_a_signal_ends_is_not_interrupted(monkeypatch):
    monkeypatch.setattr(signals, "_GRACE_SECONDS", 1.0)  # the signal is given again after a fifth
    steps = []
    with pytest.raises(Stopped), listening():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(20)
        finally:
            with contextlib.suppress(FileNotFoundError):
                steps.append("began")
                time.sleep(0.5)
                steps.append("ended")
    assert steps == ["began", "ended"]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_block_that_waits_is_left_at_once(number, error):
    with pytest.raises(error), listening(lambda number: True):
        os.kill(os.getpid(), number)
        threading.Event().wait(20)
        pytest.fail("went on")


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(lambda number: pytest.fail("heard")):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_may_run_a_program_without_signals():
    outcome = []

    def run():
        with listening(lambda number: True):
            outcome.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcome == ["ran"]


ABORTED = """
import ctypes, os, signal, threading, time
from seediff_jax.driver.stdio import exit_now
from seediff_jax.driver.signals import abort_delayed
def abort():
    print("fatal", flush=True)
    ctypes.CDLL(None).abort()  # without Python's lock, as threads of libraries do
with abort_delayed():
    threading.Thread(target=abort, daemon=True).start()
    time.sleep({seconds})
    exit_now("the reason", 2)
"""


@pytest.mark.parametrize(
    ("seconds", "status", "last"), [(1, 2, b"the reason\n"), (60, -signal.SIGABRT, b"")]
)
def test_a_process_that_a_library_aborts_has_time_to_say_why_and_no_more(seconds, status, last):
    program = [sys.executable, "-c", ABORTED.format(seconds=seconds)]
    ended = subprocess.run(program, capture_output=True, check=False)
    assert (ended.stdout, ended.returncode, ended.stderr) == (b"fatal\n", status, last)


def test_aborts_are_as_quick_as_before_after_the_block():
    code = "import os\nfrom seediff_jax.driver.signals import abort_delayed\n"
    code += "with abort_delayed():\n    pass\nimport signal\n"
    code += "print(open('/proc/self/status').read())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (caught,) = (line for line in ended.stdout.splitlines() if line.startswith("SigCgt"))
    assert not int(caught.split()[1], 16) & 1 << signal.SIGABRT - 1
