"""A killed process in miniature: from one call to the filesystem on, no call is made any more.

The calls of a run are numbered in their order, so that a test can go through all of them.
"""

import os
import stat
from contextlib import contextmanager

import pytest
from fsspec.implementations.memory import MemoryFileSystem

_DISK = ("mkdir", "rename", "replace", "fsync", "unlink", "remove", "rmdir")
_BUCKET = ("makedirs", "pipe_file", "put_file", "rm_file", "rmdir")


class Killed(BaseException):
    """Passes every handler, as the end of a process does."""


@contextmanager
def killed_at(number):
    """The block ends at its call `number` to the filesystem, from 0, if it makes so many.

    Yields a list of the names of the calls that were made. A file that was not synced yet keeps
    only half of its content.
    """
    made = []

    def replacement(name, call):
        def count(*arguments, **options):
            if len(made) >= number:
                if name == "fsync" and len(made) == number:
                    _tear(arguments[0])
                made.append("killed")
                raise Killed
            made.append(name)
            # A killed process loses nothing that the system has; syncing would only take time.
            return None if name == "fsync" else call(*arguments, **options)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for place, names in ((os, _DISK), (MemoryFileSystem, _BUCKET)):
            for name in names:
                patch.setattr(place, name, replacement(name, getattr(place, name)))
        try:
            yield made
        except Killed:
            pass


def _tear(descriptor):
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        # By its path, for it may be open for reading alone.
        os.truncate(os.readlink(f"/proc/self/fd/{descriptor}"), status.st_size // 2)


def tree(folder):
    """Content of all files of a Folder by relative path; on a disk, None for each folder too."""
    if folder.local is not None:
        paths = sorted(folder.local.rglob("*"))
        return {
            path.relative_to(folder.local).as_posix(): path.read_bytes() if path.is_file() else None
            for path in paths
        }
    found = folder.filesystem.find(folder.root)
    return {path[len(folder.root) + 1 :]: folder.filesystem.cat_file(path) for path in found}
