"""A folder to write to, on a disk or in a bucket: every file appears whole or not at all.

On a disk a file is written beside its place and renamed; in a bucket (`gs://`, `s3://`, through
fsspec, where the bucket's client is installed) an object appears when its upload is complete.
"""

import dataclasses
import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec

TEMPORARY = ".part"
"""Ends the names of files that are being written on a disk; a stopped run may leave some."""

# Threads that wait for a disk or a bucket, which take little longer over many files than over one.
_WAITING = ThreadPoolExecutor(64, "storage")
_CLIENTS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder by its URL; names of files in it are relative, with "/" between their parts.

    Every method raises OSError, naming the file, for whatever keeps it from its work.

    Attributes:
        url: as it was given.
        filesystem: of fsspec.
        root: path of the folder there.
    """

    url: str
    filesystem: Any
    root: str

    def __str__(self) -> str:
        return self.url

    @property
    def local(self) -> Path | None:
        """The folder on this machine's disks, or None where it is somewhere else."""
        return Path(self.root) if "file" in self.filesystem.protocol else None

    def path(self, name: str) -> str:
        """URL or path of a file, for messages."""
        return f"{self.url.rstrip('/')}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, or replaces the old one."""
        self.write_all({}, {name: content})

    def write_all(self, files: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        """Writes files, or replaces the old ones; those of `after` appear when the others are safe.

        A file of `after` that is there, even when the power has failed, vouches for `files`.

        Args:
            files: content by name.
            after: the same; not empty.
        """
        if self.local is None:
            for group in (files, after):
                self._at_once({n: functools.partial(self._upload, n, c) for n, c in group.items()})
            return
        with self._parts(files) as parts:
            self._at_once(_writes(parts, files))
            self._replace(parts)
        folders = {name.rpartition("/")[0] for name in files}
        syncs = {folder: functools.partial(_sync, f"{self.root}/{folder}") for folder in folders}
        with self._parts(after) as parts:
            self._at_once(_writes(parts, after) | syncs)
            self._replace(parts)

    def put(self, name: str, source: Path) -> None:
        """Moves a finished file of this machine here, or replaces the old one."""
        with self._named(name):
            if self.local is None:
                self.filesystem.put_file(str(source), f"{self.root}/{name}")
                source.unlink()
                return
            with self._parts([name]) as parts:
                shutil.move(source, parts[name])
                _sync(parts[name])
                self._replace(parts)

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with self._named(name):
            return self.filesystem.cat_file(f"{self.root}/{name}")

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._named(name):
            return self.filesystem.size(f"{self.root}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file or folder."""
        with self._named(name):
            return self.filesystem.exists(f"{self.root}/{name}" if name else self.root)

    def names(self, folder: str = "") -> list[str]:
        """Names of what is in a folder, sorted; none where there is no such folder."""
        path = f"{self.root}/{folder}" if folder else self.root
        with self._named(folder):
            # Listings are cached by some filesystems, and other hosts write too.
            self.filesystem.invalidate_cache()
            try:
                found = self.filesystem.ls(path, detail=False)
            except FileNotFoundError:
                return []
        return sorted({entry.rstrip("/").rsplit("/", 1)[-1] for entry in found} - {""})

    def remove(self, name: str) -> None:
        """Removes a file or a folder with all that is in it, where there is one."""
        with self._named(name):
            with suppress(FileNotFoundError):
                self.filesystem.rm(f"{self.root}/{name}", recursive=True)

    def make(self, folder: str = "") -> None:
        """Makes a folder where there is none."""
        with self._named(folder):
            path = f"{self.root}/{folder}" if folder else self.root
            self.filesystem.makedirs(path, exist_ok=True)

    def _upload(self, name: str, content: bytes) -> None:
        self.filesystem.pipe_file(f"{self.root}/{name}", content)

    def _at_once(self, tasks: Mapping[str, Callable[[], None]]) -> None:
        """Does something for each of some files and waits for all; an error names its file."""

        def attempt(name: str, task: Callable[[], None]) -> None:
            with self._named(name):
                task()

        futures = [_WAITING.submit(attempt, name, task) for name, task in tasks.items()]
        wait(futures)
        for future in futures:
            future.result()

    @contextmanager
    def _parts(self, names: Iterable[str]) -> Iterator[dict[str, Path]]:
        """Paths beside those of files, for what is to take their places; none is left behind."""
        parts = {name: Path(self.root, name + TEMPORARY) for name in names}
        for folder in {part.parent for part in parts.values()}:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield parts
        except BaseException:
            for part in parts.values():
                part.unlink(missing_ok=True)
            raise

    def _replace(self, parts: Mapping[str, Path]) -> None:
        for name, part in parts.items():
            with self._named(name):
                os.replace(part, f"{self.root}/{name}")

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Turns what goes wrong into an OSError that names the file."""
        try:
            yield
        except OSError as error:
            if error.errno is None:
                raise OSError(f"{self.path(name)}: {error}") from error
            raise OSError(error.errno, error.strerror, self.path(name)) from error
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        # What a client of a bucket raises is its own affair.
        except Exception as error:
            raise OSError(f"{self.path(name)}: {type(error).__name__}: {error}") from error


def _writes(parts: Mapping[str, Path], files: Mapping[str, bytes]) -> dict[str, Callable[[], None]]:
    return {name: functools.partial(_write, part, files[name]) for name, part in parts.items()}


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: str | os.PathLike[str]) -> None:
    """Waits until what was written to a file, or which files are in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems know no such wish for a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def open_folder(url: str | os.PathLike[str]) -> Folder:
    """Finds the filesystem of a folder; the folder need not exist.

    Args:
        url: a path, or a URL such as `gs://bucket/folder`, `s3://bucket/folder`.

    Raises:
        ValueError: the kind of URL is not known, or its client is not installed.
    """
    url = os.fspath(url)
    scheme = url.split("://")[0] if "://" in url else "file"
    try:
        filesystem, root = fsspec.core.url_to_fs(url if "://" in url else os.path.abspath(url))
    except ImportError as error:
        package = _CLIENTS.get(scheme, f"the client of {scheme}")
        raise ValueError(f"{url} needs {package}: pip install {package}") from error
    except ValueError as error:
        raise ValueError(
            f"{url}: {error}; needed is a path or a URL such as gs://bucket/folder"
        ) from error
    return Folder(url, filesystem, str(root).rstrip("/"))
