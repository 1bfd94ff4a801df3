"""One run at a time in a folder.

On a disk the operating system has the lock (flock) and releases it when the process ends, however
that happens. Buckets and some network filesystems have no such lock: there the holder keeps
changing a file. A second run that sees the file change is refused; if the file does not change, the
second run takes over. A holder that was suspended and finds that it lost the lock ends its process,
so that two runs never write at once. Clocks of two machines are never compared.
"""

import errno
import fcntl
import os
import socket
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from seediff_jax.dataset.held_locks import noted
from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import Folder

LOCK = "run.lock"
BEAT_SECONDS = 10.0
"""How often the holder of a lock without flock changes it."""

_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


@contextmanager
def hold_lock(folder: Folder, beat_seconds: float = BEAT_SECONDS) -> Iterator[None]:
    """Keeps other runs out of the folder while the block runs.

    A process that ends within the block calls `release_all`: without flock, the next run would
    otherwise wait for 2.5 beats.

    Raises:
        UserError: another run holds it.
        OSError: the folder cannot be written.
    """
    folder.make()
    holder = f"{socket.gethostname()} process {os.getpid()}"
    descriptor = None if folder.local is None else _flock(folder)
    if descriptor is None:
        hold = _keep_changing(folder, holder, beat_seconds)
    else:
        hold = _keep_locked(folder, holder, descriptor)
    with hold:
        yield


def _refuse(folder: Folder, holder: str) -> NoReturn:
    raise UserError(
        f"another run ({shown(holder, 200)}) is writing {folder}; wait until it ends, or choose "
        "another folder"
    )


@contextmanager
def _keep_locked(folder: Folder, holder: str, descriptor: int) -> Iterator[None]:
    try:
        # The name is for messages; a full disk is reported by the first file that matters.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        yield
    finally:
        with suppress(OSError):  # would hide what ended the run
            os.unlink(folder.local / LOCK)
        os.close(descriptor)


def _flock(folder: Folder) -> int | None:
    """Takes the lock of the operating system; returns None where the filesystem has none."""
    path = folder.local / LOCK
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "just begun"
            os.close(descriptor)
            _refuse(folder, holder)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_FLOCK:
                return None
            raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(path)) from error
        # The last holder may have removed the file between the two calls.
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)


def _open_lock(path: os.PathLike[str]) -> int:
    """Opens the lock file, in which the holder's name is written: no link, and no other file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    foreign = "is not a file that a run made; remove it"
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        reason = foreign if is_link else f"cannot be opened to lock the folder: {error.strerror}"
        raise OSError(error.errno, reason, str(path)) from error
    status = os.fstat(descriptor)
    if status.st_nlink > 1 or not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, foreign, str(path))
    return descriptor


@contextmanager
def _keep_changing(folder: Folder, name: str, beat_seconds: float) -> Iterator[None]:
    # Where flock failed, it has left an empty file.
    if before := _read(folder):
        time.sleep(2.5 * beat_seconds)
        if _read(folder) not in (None, before):
            _refuse(folder, before.split("\n")[0])
    mine = f"{name}\n{uuid.uuid4()}\n"
    ended = threading.Event()

    def change() -> None:
        beats = 0
        while not ended.wait(beat_seconds):
            beats += 1
            # The writer of samples gets the same error, and reports it.
            with suppress(OSError):
                if (found := _read(folder)) and not found.startswith(mine):
                    other = shown(found.splitlines()[0], 200)
                    _end(f"stopped: another run ({other}) took over {folder}")
                folder.write(LOCK, f"{mine}{beats}".encode())

    thread = threading.Thread(target=change, daemon=True)

    def release() -> None:
        ended.set()
        if thread.is_alive():
            thread.join()
        with suppress(OSError):  # one that is left is taken over by the next run
            if (_read(folder) or "").startswith(mine):
                folder.remove(LOCK)

    with noted(release):
        try:
            folder.write(LOCK, f"{mine}0".encode())
            # If two came at once, the one that wrote last has the lock.
            time.sleep(beat_seconds / 2)
            if not (content := _read(folder) or "").startswith(mine):
                _refuse(folder, content.split("\n")[0])
            thread.start()
            yield
        finally:
            release()


def _end(text: str) -> None:
    """Ends the process at once, whatever its other threads do; they must not write any more."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode(errors="backslashreplace"))
    os._exit(os.EX_TEMPFAIL)


def _read(folder: Folder) -> str | None:
    try:
        return folder.read(LOCK).decode(errors="replace")
    except FileNotFoundError:
        return None
