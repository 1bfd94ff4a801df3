"""Signals that end a program: SIGTERM and SIGHUP, after which it can be resumed, and SIGINT.

Python's main thread handles a signal between two of its instructions, which may be minutes later
while XLA compiles. So a thread of its own waits for signals, wakes at once, and does what the
program has asked for. This module is imported before all others, and imports no slow module.
"""

import os
import signal
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
    """SIGTERM or SIGHUP came while there was nothing that must be ended in order."""


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
        if error is not None:
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


@contextmanager
def listening(handle: Callable[[int], bool]) -> Iterator[None]:
    """Listens to signals while the block runs, except those that the process ignores.

    Args:
        handle: is called by another thread with the number of a signal. Where it returns True the
            block is left by Stopped or KeyboardInterrupt, or else the process ends, seconds later.
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
    """Ends the process at signals from now on: nothing has begun.

    An exception does not end imports: libraries swallow it, or fail with another one.
    """
    _Listener(_exit).start()


_last_tasks: list[Callable[[], None]] = []


@contextmanager
def before_exit(task: Callable[[], None]) -> Iterator[None]:
    """While the block runs, a signal that ends the process at once does a task first.

    It is not waited for longer than 5 seconds.
    """
    _last_tasks.append(task)
    try:
        yield
    finally:
        _last_tasks.remove(task)


def _exit(number: int) -> bool:
    tasks = [threading.Thread(target=task, daemon=True) for task in _last_tasks]
    for thread in tasks:
        thread.start()
    for thread in tasks:
        thread.join(_GRACE_SECONDS)
    exit_now(f"stopped; {AGAIN}", _STATUS[signal.Signals(number)])
