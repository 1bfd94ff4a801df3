"""stdout and stderr that never end a run and never hold it up.

A stopped terminal, a pipe that nobody reads and a full disk take no more text. Each stream has a
thread that writes, so that only this thread waits.
"""

import contextlib
import os
import queue
import select
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from seediff_jax.dataset.held_locks import release_all

_MOST_LINES = 1000
_LAST_SECONDS = 1.0
_RELEASE_SECONDS = 5.0


class BestEffortStream:
    """stdout or stderr; text that cannot be written is dropped without an error.

    Attributes:
        waits: whether `write` waits until there is room, as for the reader of a long list.
        is_within_line: whether the last line has no line break yet, as with a progress bar.
    """

    waits = True
    is_within_line = False

    def __init__(self, stream: Any):
        self._stream = stream
        self._texts: queue.Queue[bytes] = queue.Queue(_MOST_LINES)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def write(self, text: str) -> int:
        """Queues a text for writing."""
        self.is_within_line = bool(text) and not text.endswith("\n")
        with contextlib.suppress(queue.Full):
            self._texts.put(text.encode(self._stream.encoding, "backslashreplace"), self.waits)
        return len(text)

    def flush(self) -> None:
        """Waits until all is written, but only briefly where a run must go on."""
        self.drain(None if self.waits else _LAST_SECONDS)

    def drain(self, seconds: float | None) -> None:
        """Waits until all is written, at most `seconds`; None has no limit."""
        with self._texts.all_tasks_done:
            self._texts.all_tasks_done.wait_for(lambda: not self._texts.unfinished_tasks, seconds)

    def _pass_on(self) -> None:
        while True:
            data = self._texts.get()
            with contextlib.suppress(OSError, ValueError):
                self._write(data)
            self._texts.task_done()

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._stream.fileno(), data) :]
            except BlockingIOError:
                select.select([], [self._stream.fileno()], [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_program(main: Callable[[Sequence[str]], int]) -> None:
    """Runs `main` on the command line of the process and ends the process with its status.

    Errors of stdout and stderr do not change the status.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise the next file to be opened would get the number of the closed stream.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, BestEffortStream(stream))
    status = main(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.exit(status)


def never_wait() -> None:
    """From now on, neither this process nor its libraries wait for a reader of stdout or stderr."""
    if not isinstance(sys.stderr, BestEffortStream):
        return  # not the program's own process
    BestEffortStream.waits = False
    # Libraries in C++ write to stderr themselves. Opening the pipe again makes it non-blocking for
    # this process alone; other processes that share it still wait.
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            again = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(again, 2)
            os.close(again)


def exit_now(text: str, status: int) -> NoReturn:
    """Writes a line to stderr if possible, releases locks and ends the process at once."""
    with contextlib.suppress(Exception):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, BestEffortStream):
                stream.drain(_LAST_SECONDS)
            else:
                stream.flush()
        start = "\n" if getattr(sys.stderr, "is_within_line", False) else ""
        if select.select([], [2], [], _LAST_SECONDS)[1]:
            os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))
    with contextlib.suppress(Exception):
        release_all(_RELEASE_SECONDS)
    os._exit(status)
