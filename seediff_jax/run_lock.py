"""One run at a time in a folder.

On a disk the lock is the operating system's (flock), gone with the process that held it, however
that ended. In a bucket the holder keeps changing a file; a second run that sees it change is
refused, and takes over where it stands still. No clock is compared with another one.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seediff_jax.storage import Folder

LOCK = "run.lock"
BEAT_SECONDS = 10.0
"""How often the holder of a lock in a bucket changes it."""


@contextmanager
def hold_lock(folder: Folder, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Holds the folder against other runs while the block runs.

    Raises:
        ValueError: another run holds it.
        OSError: the folder cannot be written.
    """
    hold = _beat if folder.local is None else _flock
    with hold(folder, f"{socket.gethostname()} process {os.getpid()}", beat_seconds):
        yield


def _refuse(folder: Folder, holder: str) -> None:
    raise ValueError(
        f"another run ({holder}) is writing {folder}; wait for its end, or choose another folder"
    )


@contextmanager
def _flock(folder: Folder, name: str, _: float) -> Iterator[None]:
    folder.make()
    path = folder.local / LOCK
    descriptor = _locked_file(folder, path)
    try:
        # The name is for messages; a disk that is full is told by the first file that matters.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, name.encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked_file(folder: Folder, path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "just begun"
            os.close(descriptor)
            _refuse(folder, holder)
        # The last holder may have removed the file between the two calls.
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


@contextmanager
def _beat(folder: Folder, name: str, beat_seconds: float) -> Iterator[None]:
    if folder.exists(LOCK):
        before = folder.read(LOCK)
        time.sleep(2.5 * beat_seconds)
        if folder.exists(LOCK) and folder.read(LOCK) != before:
            _refuse(folder, before.decode(errors="replace").split("\n")[0])
    mine = f"{name}\n{uuid.uuid4()}\n"
    folder.write(LOCK, f"{mine}0".encode())
    # Whoever wrote last has it, should two have come at once.
    time.sleep(beat_seconds / 2)
    if not (content := folder.read(LOCK).decode()).startswith(mine):
        _refuse(folder, content.split("\n")[0])
    ended = threading.Event()

    def keep_changing():
        beats = 0
        while not ended.wait(beat_seconds):
            beats += 1
            # The writer of samples meets the same trouble, and reports it.
            with suppress(OSError):
                folder.write(LOCK, f"{mine}{beats}".encode())

    beating = threading.Thread(target=keep_changing, daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with suppress(OSError):  # one that is left is taken over by the next run
            folder.remove(LOCK)
