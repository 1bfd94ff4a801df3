"""Runs whose disk or bucket fails on the way: nothing is lost, and the same command goes on."""

import errno
import functools
import os
import resource
import subprocess

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from seediff_jax.dataset.lock import hold_lock
from seediff_jax.driver import make_dataset
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from tests.helpers.sharded_runs import files, samples_of
from tests.helpers.small_runs import command, error_line, tree


# A run first writes two files of settings, then the strip, then per block its files and journal.
@pytest.mark.parametrize("writes", [3, 5, 7, 12, 20, 25])
def test_a_run_that_was_stopped_ends_with_the_same_files(
    inputs, made, tmp_path, monkeypatch, writes
):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(KeyboardInterrupt(), writes))
        assert main(command(inputs, folder)) == 130
    assert not (folder / "shards/closed.json").exists()
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_no_more_is_one_line_and_the_run_can_go_on(
    inputs, made, tmp_path, monkeypatch, capsys, reason
):
    folder = tmp_path / "out"
    error = OSError(reason, os.strerror(reason))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(error, 9))
        assert main(command(inputs, folder)) == 2
    assert error_line(capsys).endswith(f": {os.strerror(reason)}")
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


def failing(error, calls_before):
    """Stands in for os.fsync, and raises from some call on."""
    calls = iter(range(10**6))

    def fsync(_):
        if next(calls) >= calls_before:
            raise error

    return fsync


def mount(folder, size):
    """Mounts a small disk, or gives the one there another size; returns whether that is allowed."""
    options = f"{'remount,' if os.path.ismount(folder) else ''}size={size}"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def limited(tmp_path):
    """A folder on a disk that is too small, and a function that makes it larger.

    Where nothing may be mounted, the size of a file is limited instead.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount(folder, "200k"):
        yield folder / "out", lambda: mount(folder, "9m"), "No space left on device"
        subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    yield folder / "out", more, "File too large"
    more()


def test_a_full_disk_keeps_what_was_written_until_there_is_room(limited, run, reference, capsys):
    folder, make_room, reason = limited
    there = set()
    for _ in range(2):
        assert main(run(folder)) == 2
        assert error_line(capsys).endswith(f": {reason}")
        assert there <= samples_of(folder) and samples_of(folder)
        there = samples_of(folder)
    make_room()
    assert main(run(folder)) == 0
    assert f"{len(there)} exist already" in capsys.readouterr().out
    assert files(folder) == reference


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The URL of a folder that is on no disk."""
    quick = functools.partial(hold_lock, beat_seconds=0.02)
    monkeypatch.setattr(make_dataset, "hold_lock", quick)
    yield f"memory://{tmp_path.name}/out"
    open_folder("memory://").filesystem.store.clear()


def test_a_bucket_gets_the_files_of_a_disk(bucket, run, reference):
    assert main(run(bucket)) == 0
    assert files(bucket) == reference


@pytest.mark.parametrize("calls", [1, 20, 60, 100])
def test_a_run_to_a_bucket_that_fails_goes_on(bucket, run, reference, monkeypatch, capsys, calls):
    pipe_file, made = MemoryFileSystem.pipe_file, []

    def unreliable(*arguments, **options):
        made.append(arguments)
        if len(made) > calls:
            raise RuntimeError("503 from the bucket")
        return pipe_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", unreliable)
        assert main(run(bucket)) == 2
    assert error_line(capsys).endswith("RuntimeError: 503 from the bucket")
    assert main(run(bucket)) == 0
    assert files(bucket) == reference
