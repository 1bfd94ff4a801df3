"""Simulates a killed process: from a chosen call to the filesystem on, no call is made.

The calls of a run are numbered in order, so that a test can try all of them.
"""

import os
import stat
from contextlib import contextmanager

import pytest
from fsspec.implementations.memory import MemoryFileSystem

_DISK = ("mkdir", "rename", "replace", "fsync", "unlink", "remove", "rmdir")
_BUCKET = ("pipe_file", "put_file", "rm_file", "rmdir")


class Killed(BaseException):
    """An exception that no handler catches, like the end of a process."""


@contextmanager
def killed_at(number):
    """Ends the block at call `number` to the filesystem, counted from 0, if there are so many.

    Yields a list of the names of the calls made so far. A file that is not synced yet keeps only
    half of its content.
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
    """Reads all files of a Folder, by relative path; on a disk, each folder is None."""
    if folder.local is not None:
        paths = sorted(folder.local.rglob("*"))
        return {
            path.relative_to(folder.local).as_posix(): path.read_bytes() if path.is_file() else None
            for path in paths
        }
    found = folder.filesystem.find(folder.root)
    return {path[len(folder.root) + 1 :]: folder.filesystem.cat_file(path) for path in found}
