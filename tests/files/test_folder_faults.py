"""What a folder never does: expand a pattern, follow a link, or leave its root."""

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder


@pytest.fixture
def bucket(tmp_path):
    folder = open_folder(f"memory://{tmp_path.name}/made")
    yield folder
    folder.filesystem.store.clear()


def all_files(folder):
    return {path.removeprefix(folder.root + "/") for path in folder.filesystem.store}


@pytest.mark.parametrize("name", ["run[12]", "run*", "run?", "r[!a]n1", "run]"])
def test_a_url_that_tools_take_for_a_pattern_is_refused(name):
    with pytest.raises(UserError, match=r"choose a name without \*, \?, \[ and \]"):
        open_folder(f"memory://bucket/{name}")


@pytest.mark.parametrize("name", ["shards/0*", "shards/0000[01].json", "shards/?0001.json", "s*"])
def test_removing_a_name_in_a_bucket_does_not_expand_patterns(bucket, name):
    others = ["shards/00000.json", "shards/00001.json", "shards/00000.jsonl"]
    for each in (name, *others):
        bucket.write(each, b"content")
    assert bucket.read(name) == b"content" and bucket.size(name) == 7 and bucket.exists(name)
    bucket.remove(name)
    assert all_files(bucket) == set(others)
    bucket.remove(name)
    assert not bucket.exists(name)
    assert all_files(bucket) == set(others)


# As clients of buckets have been seen to list the objects below a path.
def find_as_a_prefix(files, path):
    return {k: v for k, v in files.items() if k.startswith(path)}


def find_files_as_a_list(files, path):
    return [path] if path in files else {k: v for k, v in files.items() if k.startswith(path + "/")}


@pytest.mark.parametrize("find", [find_as_a_prefix, find_files_as_a_list])
def test_only_what_is_named_is_removed_however_a_client_lists(bucket, monkeypatch, find):
    names = ["shards/00000.json", "shards/00000.jsonl", "shards/a/b", "shards/ab", "shards/a/c"]
    for name in names:
        bucket.write(name, b"")
    files = {path: {"type": "file"} for path in bucket.filesystem.store}
    monkeypatch.setattr(MemoryFileSystem, "find", lambda _, path, **__: find(files, path))
    bucket.remove("shards/00000.json")
    bucket.remove("shards/a")
    assert all_files(bucket) == {"shards/00000.jsonl", "shards/ab"}


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "a/./b", "a//b", "."])
@pytest.mark.parametrize("url", ["memory://bucket/made", "disk"])
def test_a_name_never_leads_out_of_the_folder(url, name, tmp_path):
    folder = open_folder(tmp_path / "made" if url == "disk" else url)
    source = tmp_path / "source"
    source.write_bytes(b"")
    for call in (
        lambda: folder.write(name, b""),
        lambda: folder.put(name, source),
        lambda: folder.read(name),
        lambda: folder.describe(name),
        lambda: folder.exists(name),
        lambda: folder.remove(name),
        lambda: folder.size(name),
        lambda: folder.names(name),
    ):
        with pytest.raises(OSError, match="not a name of a file within the folder"):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "old part"])
def test_nothing_is_written_through_a_temporary_file_that_is_there_already(tmp_path, kind):
    outside, folder = tmp_path / "outside", open_folder(tmp_path / "made")
    folder.make("sub")
    outside.write_bytes(b"years of work")
    for name in ("sub/a", "sub/b"):
        part = folder.local / f"{name}.part"
        if kind == "old part":
            part.write_bytes(b"longer than what is written next")
        else:
            (os.symlink if kind == "symlink" else os.link)(outside, part)
    source = tmp_path / "source"
    source.write_bytes(b"new")
    folder.write("sub/a", b"new")
    folder.put("sub/b", source)
    assert folder.names("sub") == ["a", "b"]
    assert folder.read("sub/a") == folder.read("sub/b") == b"new"
    assert outside.read_bytes() == b"years of work"


def test_a_link_in_place_of_a_folder_is_refused_and_nothing_written_or_removed_there(tmp_path):
    outside, folder = tmp_path / "outside", open_folder(tmp_path / "made")
    folder.make()
    outside.mkdir()
    (outside / "a").write_bytes(b"years of work")
    (folder.local / "image").symlink_to(outside)
    for call in (
        lambda: folder.write("image/a", b""),
        lambda: folder.read("image/a"),
        lambda: folder.remove("image/a"),
        lambda: folder.names("image"),
        lambda: folder.make("image/b"),
    ):
        with pytest.raises(OSError, match="links are not followed"):
            call()
    folder.remove("image")
    assert [path.name for path in outside.iterdir()] == ["a"] and folder.names() == []
    assert (outside / "a").read_bytes() == b"years of work"


def test_a_folder_in_place_of_a_file_is_one_line_and_left_alone(tmp_path):
    folder = open_folder(tmp_path / "made")
    folder.write("sub/name/a", b"years of work")
    with pytest.raises(OSError, match="is a folder where a file belongs; remove it") as error:
        folder.write("sub/name", b"")
    assert error.value.filename == str(tmp_path / "made/sub/name")
    assert folder.names("sub") == ["name"] and folder.read("sub/name/a") == b"years of work"


def test_the_name_of_a_folder_is_shown_as_a_terminal_can_show_it(tmp_path):
    assert str(open_folder(tmp_path / "\x1b[31mred\n")) == f"{tmp_path}/\\x1b[31mred\\n"


def test_no_bucket_is_made_for_a_name_that_may_be_misspelled(bucket, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "makedirs", None)
    monkeypatch.setattr(MemoryFileSystem, "mkdir", None)
    bucket.make()
    bucket.make("shards")
    bucket.write("shards/a", b"content")
    assert bucket.names("shards") == ["a"]


def test_the_empty_object_that_consoles_make_for_a_folder_is_not_a_file_in_it(bucket, monkeypatch):
    bucket.write("a", b"content")
    ls = MemoryFileSystem.ls

    def with_marker(filesystem, path, detail=True, **options):
        return [f"{path}/", *ls(filesystem, path, detail=detail, **options)]

    monkeypatch.setattr(MemoryFileSystem, "ls", with_marker)
    assert bucket.names() == ["a"]
