"""Files of a folder appear whole or not at all, on a disk and in a bucket."""

import errno
import os
import re

import pytest

from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder


def test_what_is_written_is_read_and_listed(folder):
    assert not folder.exists() and folder.names() == []
    folder.write("a.txt", b"one")
    folder.write("deep/er/b.txt", b"two")
    folder.write("a.txt", b"three")
    assert folder.read("a.txt") == b"three" and folder.read("deep/er/b.txt") == b"two"
    assert folder.names() == ["a.txt", "deep"] and folder.names("deep/er") == ["b.txt"]
    assert folder.exists() and folder.exists("deep/er/b.txt") and not folder.exists("c.txt")


def test_a_finished_file_is_moved_in(folder, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"content")
    folder.write("sub/a", b"old")
    folder.put("sub/a", source)
    assert folder.read("sub/a") == b"content" and not source.exists()
    assert folder.names("sub") == ["a"]


def test_files_are_written_together(folder):
    files = {f"image/{k}.png": bytes([k]) * 1000 for k in range(40)} | {"mask/0.png": b"mask"}
    folder.write_all(files, {"journal/0": b"entry"})
    assert {name: folder.read(name) for name in files} == files
    assert folder.read("journal/0") == b"entry"
    assert len(folder.names("image")) == 40  # and nothing else


def test_files_and_their_names_are_on_the_disk_before_another_vouches_for_them(
    tmp_path, monkeypatch
):
    folder, events = open_folder(tmp_path / "made"), []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        sync(descriptor)
        events.append(("synced", os.path.relpath(path, folder.root)))

    def record_replace(source, target):
        events.append(("named", os.path.relpath(target, folder.root)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    folder.write_all({"image/0": b"a", "image/1": b"b", "mask/0": b"c"}, {"journal/0": b"entry"})
    content = [("synced", "image/0.part"), ("synced", "image/1.part"), ("synced", "mask/0.part")]
    names = [("named", "image/0"), ("named", "image/1"), ("named", "mask/0")]
    folders = [("synced", "image"), ("synced", "journal/0.part"), ("synced", "mask")]
    made = [("synced", ".."), ("synced", "."), ("synced", ".")]  # of the new folders in them
    assert events[:3] == made
    assert sorted(events[3:6]) == content and events[6:9] == names
    assert events[9] == ("synced", ".") and sorted(events[10:13]) == folders
    assert events[13:] == [("named", "journal/0"), ("synced", "journal")]


def test_a_file_that_is_moved_in_is_on_the_disk_under_its_name(tmp_path, monkeypatch):
    folder, synced = open_folder(tmp_path / "made"), []
    folder.make("sub")
    source = tmp_path / "source"
    source.write_bytes(b"content")
    monkeypatch.setattr(
        os,
        "fsync",
        lambda d: synced.append((os.readlink(f"/proc/self/fd/{d}"), folder.names("sub"))),
    )
    folder.put("sub/a", source)
    assert synced == [
        (f"{folder.root}/sub/a.part", ["a.part"]),
        (f"{folder.root}/sub", ["a"]),
    ]


def test_nothing_vouches_for_files_of_which_one_cannot_be_written(folder, monkeypatch):
    where = os if folder.local else type(folder.filesystem)
    call = "fsync" if folder.local else "pipe_file"
    calls, original = iter(range(100)), getattr(where, call)

    def fail_at_the_third(*arguments, **options):
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(where, call, fail_at_the_third)
        with pytest.raises(OSError, match="No space left on device") as error:
            folder.write_all({f"image/{k}": b"" for k in range(5)}, {"journal/0": b"entry"})
    assert re.fullmatch(re.escape(folder.path("image")) + "/[0-4]", error.value.filename)
    assert folder.names("journal") == []
    assert not any(name.endswith(".part") for name in folder.names("image"))


def test_files_and_folders_are_removed_and_may_be_absent(folder):
    folder.write("sub/a", b"1")
    folder.write("sub/b", b"2")
    folder.remove("sub/a")
    assert folder.names("sub") == ["b"]
    folder.remove("sub")
    folder.remove("sub")
    assert folder.names("sub") == []


def test_a_missing_file_is_an_error_with_its_name(folder):
    with pytest.raises(OSError, match=re.escape(folder.path("no.txt"))):
        folder.read("no.txt")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_finished_does_not_appear(tmp_path, monkeypatch, call):
    folder = open_folder(tmp_path)
    folder.write("file", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left on device") as error:
            folder.write("file", b"new")
    assert error.value.filename == str(tmp_path / "file")
    assert folder.names() == ["file"] and folder.read("file") == b"old"


def test_whatever_the_client_of_a_bucket_raises_is_an_error_with_the_file(monkeypatch):
    folder = open_folder("memory://bucket/made")

    def unreachable(*_, **__):
        raise RuntimeError("503 from the bucket")

    monkeypatch.setattr(type(folder.filesystem), "pipe_file", unreachable)
    message = "memory://bucket/made/a: RuntimeError: 503 from the bucket"
    with pytest.raises(OSError, match=message):
        folder.write("a", b"")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://bucket/a", "a path or a URL such as gs://bucket/folder is needed"),
        ("filecache://a", "a path or a URL such as gs://bucket/folder is needed"),
        ("filecache::memory://a/b", "a path or a URL such as gs://bucket/folder is needed"),
        ("gs://bucket/a", "pip install gcsfs"),
        ("$MISSING_/a", "the environment variable MISSING_ is not set"),
    ],
)
def test_a_url_that_cannot_be_opened_is_refused_with_what_to_do(url, message):
    with pytest.raises(UserError, match=message):
        open_folder(url)


@pytest.mark.parametrize("name", ["run::a", "a/b://c", "a::b", "run[12]*?", " x "])
def test_a_path_without_a_scheme_is_a_path_whatever_else_it_holds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = open_folder(name)
    folder.write("file", b"content")
    assert folder.local == tmp_path / name
    assert (tmp_path / name / "file").read_bytes() == b"content"


def test_a_double_colon_within_a_url_is_part_of_its_name():
    folder = open_folder("memory://bucket/run::a")
    folder.write("file", b"content")
    assert folder.local is None and folder.root.endswith("bucket/run::a")
    assert open_folder("memory://bucket/run::a").read("file") == b"content"
    assert not open_folder("memory://bucket/run").exists("file")
    folder.filesystem.store.clear()


def test_home_folders_and_variables_are_replaced_in_the_name_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "runs/today")
    assert open_folder("~/$RUNS").local == tmp_path / "runs/today"
    assert open_folder(f"file://{tmp_path}/$RUNS").local == tmp_path / "runs/today"
