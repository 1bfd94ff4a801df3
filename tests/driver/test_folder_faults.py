"""What the driver says and does about folders in a bad state; samples are simulated."""

import errno
import os
import re
import shutil
import tarfile
import tempfile

import pytest

from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.driver import make_dataset, verify
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from tests.helpers import simulated_samples
from tests.helpers.format_runs import tree
from tests.helpers.small_runs import command, error_line


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setattr(make_dataset, "prepare", simulated_samples.prepare)


def run(inputs, folder, *more):
    return main(command(inputs, folder, "--format=files,webdataset", "--shard_size=3", *more))


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """The folder of a complete run; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_dataset, "prepare", simulated_samples.prepare)
        assert run(inputs, folder) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


@pytest.fixture
def unfinished(copy):
    """A folder of which the last shard is lost."""
    for path in copy.glob("shards/00001*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copy / "shards/closed.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--shard_size=2", "shard_size: 3 there, 2 now"),
        ("--shard_size=4", "shard_size: 3 there, 4 now"),
        ("--format=files", 'format: ["files", "webdataset"] there, ["files"] now'),
        ("--format=webdataset,files", 'there, ["webdataset", "files"] now'),
        ("--soft_masks=png", 'soft_masks: null there, "png" now'),
    ],
)
def test_a_resumed_run_with_another_layout_is_refused(inputs, unfinished, capsys, flag, text):
    before = tree(unfinished)
    assert run(inputs, unfinished, flag) == 2
    assert text in error_line(capsys)
    assert tree(unfinished) == before


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_resumed_run_may_have_another_batch_size(inputs, made, unfinished, batch_size):
    assert run(inputs, unfinished, f"--batch_size={batch_size}") == 0
    same = {"image", "mask", "overlay", "classes.txt", "settings.json"}  # records have batch sizes
    expected, found = tree(made), tree(unfinished)
    assert found.keys() - {k for k in found if ".journal" in k} == {
        k for k in expected if ".journal" not in k
    }
    for name in (name for name in found if name.partition("/")[0] in same):
        assert found[name] == expected[name]
    assert main(["seediff", "--verify", f"--output={unfinished}"]) == 0


def test_the_settings_of_a_folder_without_samples_may_change(inputs, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_dataset._Run, "make", interrupted)
        assert run(inputs, tmp_path / "out") == 130
    assert run(inputs, tmp_path / "out", "--shard_size=2") == 0
    assert main(["seediff", "--verify", f"--output={tmp_path / 'out'}"]) == 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_complete_folder_is_nothing_to_do_on_storage_that_takes_no_writes(
    inputs, made, monkeypatch, capsys, number
):
    refuse_writes(monkeypatch, number)
    before = tree(made)
    assert run(inputs, made) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["seediff", "--verify", f"--output={made}"]) == 0
    assert tree(made) == before


def test_an_unfinished_folder_on_storage_that_takes_no_writes_is_one_line(
    inputs, unfinished, monkeypatch, capsys
):
    refuse_writes(monkeypatch, errno.EROFS)
    assert run(inputs, unfinished) == 2
    assert "cannot be opened to lock the folder: Read-only file system" in error_line(capsys)


def refuse_writes(monkeypatch, number):
    real_open = os.open

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    def open_to_read(path, flags, *mode, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refuse()
        return real_open(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", open_to_read)
    for name in ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "truncate"):
        monkeypatch.setattr(os, name, refuse)


# After as many calls that make a file, each call that makes or removes one fails.
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("calls_before", [4, 9, 17])
def test_a_failing_disk_is_reported_with_the_file_that_failed(
    inputs, tmp_path, monkeypatch, capsys, call, calls_before
):
    real, calls = getattr(os, call), iter(range(10**6))

    def failing(*arguments):
        if next(calls) >= calls_before:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    def removal(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        patch.setattr(os, "unlink", removal)
        assert run(inputs, folder) == 2
    line = error_line(capsys)
    assert line.endswith(": Input/output error")
    assert str(folder) in line and LOCK not in line
    assert run(inputs, folder) == 0
    assert main(["seediff", "--verify", f"--output={folder}"]) == 0


def test_a_full_scratch_disk_is_reported_with_its_file(inputs, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    assert run(inputs, f"memory://{tmp_path.name}/out") == 2
    name = rf"{tmp_path}/scratch/\w+/webdataset/shard-0000[01]\.tar"
    assert re.fullmatch(f"seediff: {name}: No space left on device", error_line(capsys))


def test_repair_takes_the_lock_before_it_reads(copy, monkeypatch, capsys):
    monkeypatch.setattr(verify, "verify", None)
    with hold_lock(open_folder(copy)):
        assert main(["seediff", "--repair", f"--output={copy}"]) == 2
    assert "is writing" in error_line(capsys)


def test_verifying_needs_no_lock(copy):
    with hold_lock(open_folder(copy)):
        assert main(["seediff", "--verify", f"--output={copy}"]) == 0


def test_repair_of_a_sound_folder_changes_nothing_and_ends_with_0(made, unfinished, capsys):
    for folder, text in ((made, "all is as it was written"), (unfinished, "nothing is damaged")):
        before = tree(folder)
        assert main(["seediff", "--repair", f"--output={folder}"]) == 0
        assert text in capsys.readouterr().out
        assert tree(folder) == before
