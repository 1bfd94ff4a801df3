"""A folder on a disk: files are written under a temporary name, synced and renamed."""

import errno
import functools
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from seediff_jax.errors import shown
from seediff_jax.files.folder_base import LONGEST, Folder, require_inside

TEMPORARY = ".part"
"""Ending of files that are being written on a disk; a run that was killed may leave some."""


class DiskFolder(Folder):
    """A folder on a disk of this machine."""

    def __init__(self, url: str, root: str):
        super().__init__(url, root)
        self.local = Path(root)

    def write_all(self, files: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
        with self._parts(files) as parts:
            self._at_once(_writes(parts, files))
        with self._parts(after) as parts:
            self._at_once(_writes(parts, after) | self._syncs(files))
        self._at_once(self._syncs(after))

    def put(self, name: str, source: Path) -> None:
        with self._named(name), self._parts([name]) as parts:
            _move(source, parts[name])
            _sync(parts[name])
        self._at_once(self._syncs([name]))

    def read(self, name: str) -> bytes:
        with self._named(name), _open_regular(self._place(name)) as file:
            _require_readable(os.fstat(file.fileno()).st_size)
            return file.read()

    def describe(self, name: str, size: int | None = None) -> dict[str, Any]:
        with self._named(name), _open_regular(self._place(name)) as file:
            found = os.fstat(file.fileno()).st_size
            if size is None:
                _require_readable(found)
            elif found != size:
                return {"bytes": found}
            return {"bytes": found, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def size(self, name: str) -> int:
        with self._named(name):
            return os.lstat(self._place(name)).st_size

    def exists(self, name: str = "") -> bool:
        with self._named(name):
            return os.path.lexists(self._place(name))

    def names(self, folder: str = "") -> list[str]:
        with self._named(folder):
            try:
                return sorted(os.listdir(self._folder(folder)))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        with self._named(name), suppress(FileNotFoundError):
            path = self._place(name)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def make(self, folder: str = "") -> None:
        with self._named(folder):
            _make_folder(self._folder(folder))

    def _place(self, name: str) -> str:
        """Returns the path of a file; an OSError if it could lie outside the folder."""
        if not name:
            return self.root or "/"
        require_inside(name)
        parent, _, last = name.rpartition("/")
        return os.path.join(self._folder(parent), last)

    def _folder(self, name: str) -> str:
        """Returns the path of a folder within this one; an OSError for a link or `..` in it."""
        path = self._place(name)
        if name and os.path.islink(path):
            _refuse_link(path)
        return path

    @contextmanager
    def _parts(self, names: Iterable[str]) -> Iterator[dict[str, str]]:
        """Yields temporary paths by the names of files, which replace the files at the end.

        After an error the temporary files are removed.
        """
        parts = {}
        for name in names:
            with self._named(name):
                parts[name] = self._place(name) + TEMPORARY
                _make_folder(os.path.dirname(parts[name]))
        try:
            yield parts
            for name, part in parts.items():
                with self._named(name):
                    _replace(part, f"{self.root}/{name}")
        except BaseException:
            for part in parts.values():
                with suppress(OSError):  # would hide what went wrong
                    os.unlink(part)
            raise

    def _syncs(self, names: Iterable[str]) -> dict[str, Callable[[], None]]:
        """Makes one task per folder of the files, which waits until their names are on the disk."""
        folders = {name.rpartition("/")[0] for name in names}
        return {folder: functools.partial(_sync, f"{self.root}/{folder}") for folder in folders}


def _replace(part: str, path: str) -> None:
    try:
        os.replace(part, path)
    except IsADirectoryError as error:
        raise OSError(error.errno, "is a folder where a file belongs; remove it") from error


def _refuse_link(path: str) -> NoReturn:
    name = shown(os.path.basename(path))
    text = f"{name} is a symbolic link; links are not followed within a dataset folder"
    raise OSError(errno.ELOOP, text)


def _require_readable(size: int) -> None:
    if size > LONGEST:
        raise OSError(errno.EFBIG, f"has {size} bytes; files up to {LONGEST} are read")


def _open_regular(path: str) -> BinaryIO:
    """Opens a file to read it; a link is not followed, and a pipe or a device is not read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse_link(path)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file")
    return os.fdopen(descriptor, "rb")


def _create(path: str) -> BinaryIO:
    """Opens a new file to write it; an old one, or a link, of that name is removed."""
    try:
        return open(path, "xb")
    except FileExistsError:
        os.unlink(path)
        return open(path, "xb")


def _writes(parts: Mapping[str, str], files: Mapping[str, bytes]) -> dict[str, Callable[[], None]]:
    return {name: functools.partial(_write, part, files[name]) for name, part in parts.items()}


def _write(path: str, content: bytes) -> None:
    with _create(path) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(source: Path, target: str) -> None:
    """Moves a file, to another disk too; a link of the name of the target is replaced."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open(source, "rb") as content, _create(target) as file:
            shutil.copyfileobj(content, file)
        source.unlink()


def _make_folder(path: str) -> None:
    """Makes a folder and its parents, and waits until their names are on the disk."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_folder(parent)
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None
    _sync(parent)


def _sync(path: str | os.PathLike[str]) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    # Some network filesystems cannot do this for a folder, nor can it be done for a folder that
    # may not be listed.
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
