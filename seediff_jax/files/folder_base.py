"""The interface of folders on disks and in buckets, and what they share."""

import abc
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seediff_jax.errors import UserError, shown

LONGEST = 2**31
"""Bytes of the largest file that is read, unless the caller states its size."""

# Threads that wait for a disk or a bucket, so that many files take little longer than one.
_WAITING = ThreadPoolExecutor(64, "storage")


class Folder(abc.ABC):
    """A folder by its path or URL; names of files in it are relative, with "/" between parts.

    Every method raises an OSError that names the file when it cannot do its work.

    Attributes:
        url: as it was given, with `~` and variables replaced.
        root: its path on the disk or in the bucket, without a slash at the end.
        local: the folder on a disk of this machine; None for a bucket.
    """

    local: Path | None = None

    def __init__(self, url: str, root: str):
        self.url, self.root = url, root.rstrip("/")

    def __str__(self) -> str:
        return shown(self.url)

    def path(self, name: str) -> str:
        """Returns the URL or path of a file, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or replaces the old one; it is stored safely when this returns."""
        self.write_all({}, {name: content})

    @abc.abstractmethod
    def write_all(self, files: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        """Writes files, or replaces the old ones; those of `after` appear when the others are safe.

        If a file of `after` exists, even after a power failure, all of `files` are complete.

        Args:
            files: content by name.
            after: the same; not empty.
        """

    @abc.abstractmethod
    def put(self, name: str, source: Path) -> None:
        """Moves a finished local file here and stores it safely, or replaces the old one."""

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Reads a file of at most `LONGEST` bytes."""

    @abc.abstractmethod
    def describe(self, name: str, size: int | None = None) -> dict[str, Any]:
        """Returns "bytes" and "sha256" of a file.

        Args:
            name: of the file.
            size: expected bytes; a file of another size is not read, and has no "sha256".
        """

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""

    @abc.abstractmethod
    def exists(self, name: str = "") -> bool:
        """Tells whether there is such a file or folder."""

    @abc.abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Lists the names in a folder, sorted; empty where there is no such folder."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder with its content, if it exists."""

    @abc.abstractmethod
    def make(self, folder: str = "") -> None:
        """Makes a folder unless it exists."""

    def _at_once(self, tasks: Mapping[str, Callable[[], None]]) -> None:
        """Runs one task per file at the same time, waits for all, and raises the first error."""

        def attempt(name: str, task: Callable[[], None]) -> None:
            with self._named(name):
                task()

        futures = [_WAITING.submit(attempt, name, task) for name, task in tasks.items()]
        wait(futures)
        for future in futures:
            future.result()

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Turns any error into an OSError that names the file."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError):  # from a bucket, without errno
                text = os.strerror(errno.ENOENT)
                raise FileNotFoundError(errno.ENOENT, text, self.path(name)) from error
            if error.errno is None:
                raise OSError(f"{self.path(name)}: {error}") from error
            raise OSError(error.errno, error.strerror, self.path(name)) from error
        except (KeyboardInterrupt, SystemExit, MemoryError, UserError):
            raise
        # Each client of a bucket raises exceptions of its own.
        except Exception as error:
            raise OSError(f"{self.path(name)}: {type(error).__name__}: {error}") from error


@contextmanager
def name_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to an OSError that names no file, as those of writing to an open file do."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def require_inside(name: str) -> None:
    """Raises an OSError for a name that could lead out of a folder."""
    if {"", ".", ".."} & set(name.split("/")):
        raise OSError(errno.EINVAL, f"{shown(name)} is not a name of a file within the folder")
