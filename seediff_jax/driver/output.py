"""What a program says to people: it never fails for that, and a run never waits for it.

A terminal that is stopped, a pipe that nobody reads or a full disk takes no more text. A thread
per stream writes, so that only this thread waits.
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

_MOST_LINES = 1000
_LAST_SECONDS = 1.0


class Told:
    """A stream for people: what it cannot take is dropped, and never an error.

    Attributes:
        waits: whether who writes waits until there is room, as for the reader of a long list.
        is_within_line: whether the last line has no end yet, as that of a progress bar.
    """

    waits = True
    is_within_line = False

    def __init__(self, stream: Any):
        self._stream = stream
        self._texts: queue.Queue[bytes] = queue.Queue(_MOST_LINES)
        threading.Thread(target=self._pass_on, daemon=True).start()

    def write(self, text: str) -> int:
        """Takes a text."""
        self.is_within_line = bool(text) and not text.endswith("\n")
        with contextlib.suppress(queue.Full):
            self._texts.put(text.encode(self._stream.encoding, "backslashreplace"), self.waits)
        return len(text)

    def flush(self) -> None:
        """Waits until all is written; not for long, where a run must go on."""
        self.drain(None if self.waits else _LAST_SECONDS)

    def drain(self, seconds: float | None) -> None:
        """Waits until all is written, or so long."""
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

    Whatever becomes of stdout and stderr, the status is that of the work.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file that is opened would take the place of the closed stream.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")
        setattr(sys, name, Told(stream))
    status = main(sys.argv)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.exit(status)


def never_wait() -> None:
    """Lets no text wait for its reader from now on, of this process or of its libraries."""
    if not isinstance(sys.stderr, Told):
        return  # not the program's own process
    Told.waits = False
    # Libraries in C++ write to stderr themselves. Opened once more, this pipe does not wait, and
    # it still does for others that have it.
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            again = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(again, 2)
            os.close(again)


def exit_now(text: str, status: int) -> NoReturn:
    """Writes a line to stderr, if that takes one, and ends the process at once."""
    with contextlib.suppress(Exception):
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Told):
                stream.drain(_LAST_SECONDS)
            else:
                stream.flush()
        start = "\n" if getattr(sys.stderr, "is_within_line", False) else ""
        if select.select([], [2], [], _LAST_SECONDS)[1]:
            os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))
    os._exit(status)
