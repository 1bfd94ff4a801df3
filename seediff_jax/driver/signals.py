"""Signals that end a program: SIGTERM and SIGHUP, after which it can be resumed, and SIGINT.

Python's main thread handles a signal between two of its instructions, which may be minutes later
while XLA compiles. A separate thread therefore waits for signals and handles them at once. This
module is imported before all others, and imports no slow module.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from seediff_jax.driver.stdio import exit_now

STOPPED, INTERRUPTED = 75, 130
"""Exit statuses after SIGTERM or SIGHUP (EX_TEMPFAIL: give the command again), and after Ctrl-C."""
AGAIN = "run the same command again"

_STATUS = {signal.SIGTERM: STOPPED, signal.SIGHUP: STOPPED, signal.SIGINT: INTERRUPTED}
_GRACE_SECONDS, _ATTEMPTS = 5.0, 5


class Stopped(BaseException):
    """Raised on SIGTERM or SIGHUP where the work may be left at once."""


class _Listener:
    def __init__(self, handle: Callable[[int], bool]):
        self._handle = handle
        self._error: type[BaseException] | None = None
        self._stopped, self._stopping = threading.Event(), threading.Lock()

    def start(self) -> None:
        self._end, self._start = os.pipe()
        os.set_blocking(self._start, False)
        self._wakeup = signal.set_wakeup_fd(self._start, warn_on_full_buffer=False)
        self._handlers = {
            number: signal.signal(number, self._raise)
            for number in _STATUS
            if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
        }
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self._stopping:
            self._stopped.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._start)
        self._thread.join()
        os.close(self._end)

    def _raise(self, number: int, frame: Any) -> None:
        del number, frame
        error, self._error = self._error, None
        if error is not None and not _is_leaving(sys.exception()):
            raise error

    def _listen(self) -> None:
        while number := os.read(self._end, 1):
            if number[0] in self._handlers and self._handle(number[0]):
                self._leave(number[0])
                return

    def _leave(self, number: int) -> None:
        for _ in range(_ATTEMPTS):  # a library may swallow the exception
            self._error = KeyboardInterrupt if number == signal.SIGINT else Stopped
            with self._stopping:
                if not self._stopped.is_set():  # else the signal would meet another handler
                    signal.pthread_kill(threading.main_thread().ident, number)
            if self._stopped.wait(_GRACE_SECONDS / _ATTEMPTS):
                return
        _exit(number)  # it is in a compiler


def _is_leaving(error: BaseException | None) -> bool:
    """Whether a signal is already ending the block, whose cleanup must not be interrupted."""
    while error is not None and not isinstance(error, (Stopped, KeyboardInterrupt)):
        error = error.__context__
    return error is not None


@contextmanager
def listening(handle: Callable[[int], bool] = lambda number: True) -> Iterator[None]:
    """Listens to signals while the block runs, except those that the process ignores.

    Args:
        handle: is called by another thread with the number of a signal. If it returns True, Stopped
            or KeyboardInterrupt is raised in the block; if that does not end the block within
            seconds, the process ends. By default every signal ends the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    listener = _Listener(handle)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


@contextmanager
def abort_delayed() -> Iterator[None]:
    """While the block runs, a library that aborts the process does so 6 seconds later.

    Until then the other threads go on, and may end the process with a reason and a status.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    # SIGABRT is handled by C's sleep(), with the signal's number, 6, for the seconds. A handler in
    # Python would run in the main thread, which may wait for the one that aborts.
    before = libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def end_at_signals() -> None:
    """Makes signals end the process at once from now on; for a program that has not begun its work.

    It raises no exception, because a library that is being imported may swallow it, or fail in
    another way.
    """
    _Listener(_exit).start()


def _exit(number: int) -> bool:
    exit_now(f"stopped; {AGAIN}", _STATUS[signal.Signals(number)])
