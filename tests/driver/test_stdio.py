"""What a program says: it never fails for that, and a run waits for no reader."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from seediff_jax.driver import stdio

def main(argv):
    if "run" in argv:
        stdio.never_wait()
    for number in range(5000):
        print(f"line {number} \\u2713 " + "x" * 100, file=sys.stderr)
    if "c++" in argv:
        for number in range(200):
            try:
                import os
                os.write(2, b"x" * 4096)
            except BlockingIOError:
                pass
    print("done")
    return 7

stdio.run_program(main)
"""


def start(*words, **streams):
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *words], **streams)


@pytest.fixture
def full_pipe():
    """The end of a pipe that is full, and that nobody reads."""
    end, start = os.pipe()
    os.set_blocking(start, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(start, b"x" * 1024)
    os.set_blocking(start, True)
    yield start
    os.close(start)
    os.close(end)


@pytest.mark.parametrize("words", [["run"], ["run", "c++"]])
def test_a_run_ends_though_nobody_reads_what_it_says(full_pipe, words):
    with start(*words, stdout=subprocess.PIPE, stderr=full_pipe) as process:
        assert process.communicate(timeout=20) == (b"done\n", None)
    assert process.returncode == 7
    assert os.get_blocking(full_pipe)  # for all others who have it


def test_a_run_ends_though_nobody_reads_its_results(full_pipe):
    with start("run", stdout=full_pipe, stderr=subprocess.DEVNULL) as process:
        assert process.wait(timeout=20) == 7


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_changes_no_status(stream):
    with open("/dev/full", "wb") as full:
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stream: full}
        assert start("run", **streams).wait(timeout=20) == 7


@pytest.mark.parametrize("stream", [1, 2])
def test_a_stream_that_is_closed_changes_no_status(stream):
    end, other = os.pipe()
    os.close(end)  # the reader is gone
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    gone = streams | {("stdout", "stderr")[stream - 1]: other}
    assert start("run", **gone).wait(timeout=20) == 7
    os.close(other)
    shell = ["sh", "-c", f'exec "$0" -c "$1" run {stream}>&-', sys.executable, PROGRAM]
    assert subprocess.run(shell, timeout=20, check=False).returncode == 7


def test_who_reads_slowly_gets_every_line():
    with start(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        lines = [process.stderr.readline() for _ in range(10)]
        lines += process.stderr.readlines()
    assert len(lines) == 5000 and lines[-1].startswith("line 4999 \u2713 ".encode())
