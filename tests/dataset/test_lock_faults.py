"""The lock of a folder on filesystems without flock, and in folders that somebody prepared."""

import errno
import fcntl
import os

import pytest

from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder

FOREIGN = "is not a file that a run made; remove it"


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def no_flock(request, monkeypatch):
    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_flock_a_second_run_is_refused_while_the_first_is_alive(tmp_path, no_flock):
    folder = open_folder(tmp_path / "made")
    with hold_lock(folder, beat_seconds=0.05):
        with pytest.raises(UserError, match=rf"process {os.getpid()}\) is writing"):
            with hold_lock(folder, beat_seconds=0.2):
                pass
    assert folder.names() == []


@pytest.mark.parametrize("left", [b"", b"host process 7", b"host process 7\nnonce\n12"])
def test_without_flock_a_lock_that_a_killed_run_left_is_taken_over(tmp_path, no_flock, left):
    folder = open_folder(tmp_path)
    folder.write(LOCK, left)
    with hold_lock(folder, beat_seconds=0.02):
        assert b"nonce" not in folder.read(LOCK)
    assert folder.names() == []


def test_a_filesystem_that_fails_to_lock_is_not_taken_for_one_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="cannot be locked: Input/output error") as error:
        with hold_lock(open_folder(tmp_path)):
            pass
    assert error.value.filename == str(tmp_path / LOCK)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "dangling symlink", "pipe"])
def test_nothing_is_written_through_what_stands_in_place_of_the_lock(tmp_path, kind):
    outside, folder = tmp_path / "outside", open_folder(tmp_path / "made")
    folder.make()
    if kind == "pipe":
        os.mkfifo(folder.local / LOCK)
    elif kind == "dangling symlink":
        (folder.local / LOCK).symlink_to(outside)
    else:
        outside.write_bytes(b"years of work")
        link = os.symlink if kind == "symlink" else os.link
        link(outside, folder.local / LOCK)
    with pytest.raises(OSError, match=FOREIGN) as error, hold_lock(folder):
        pass
    assert error.value.filename == str(folder.local / LOCK)
    assert not outside.exists() or outside.read_bytes() == b"years of work"


def test_a_folder_that_cannot_be_written_is_said_to_be_so(tmp_path, monkeypatch):
    def read_only(path, flags, *mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    monkeypatch.setattr(os, "open", read_only)
    text = "cannot be opened to lock the folder: Read-only file system"
    with pytest.raises(OSError, match=text), hold_lock(open_folder(tmp_path)):
        pass
