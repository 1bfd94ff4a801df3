"""A folder that hosts which disagree, or somebody else, has left: it is told, and not obeyed."""

import hashlib
import json
import os
import re
import shutil

import pytest

from seediff_jax.dataset.checksums import add_checksum, json_line, json_with_checksum
from seediff_jax.dataset.verify import open_dataset, verify
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from tests.helpers.damaged_folders import mend, rewrite, texts
from tests.helpers.format_runs import tree
from tests.helpers.stored_runs import NUM_IMAGES, run, settings

# pycocotools decodes by a way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# What hosts that disagreed have left.


def replace_lines(place, content):
    """Replaces the lines of the first shard, with the right hash in its summary."""
    (place / "shards/00000.jsonl").write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(
        place / "shards/00000.json",
        lambda summary: summary["files"].update({"shards/00000.jsonl": facts}),
    )


@pytest.mark.parametrize("soft", ["tiff", 7, ["npz"]])
def test_another_way_to_store_soft_masks_is_refused(tmp_path, soft):
    folder = open_folder(tmp_path)
    with pytest.raises(UserError, match="lack soft_masks: they are damaged"):
        open_dataset(folder, settings() | {"soft_masks": soft})


def test_missing_and_repeated_samples_of_a_shard_are_reported(copy):
    lines = (copy / "shards/00000.jsonl").read_bytes().splitlines(keepends=True)
    replace_lines(copy, b"".join(lines[:2]))
    assert texts(copy) == ["shards/00000.jsonl: lacks 1 samples of its shard: 2"]
    replace_lines(copy, b"".join([*lines, lines[0]]))
    assert texts(copy) == ["shards/00000.jsonl: line 4 has sample 0 again"]


def test_a_record_in_the_wrong_shard_is_reported(copy):
    replace_lines(copy, (copy / "shards/00001.jsonl").read_bytes())
    assert texts(copy) == [
        "shards/00000.jsonl: has the samples 3, 4, 5, which are not of this shard",
        "shards/00000.jsonl: lacks 3 samples of its shard: 0, 1, 2",
    ]


def test_a_journal_of_another_shard_size_is_reported_and_not_read(tmp_path):
    place = tmp_path / "out"
    run(place, stop_at=2)
    journal = place / "shards/00000.journal"
    (journal / "000003+1").write_bytes((journal / "000000+1").read_bytes())
    text = "shards/00000.journal/000003+1: is not a file of this journal"
    assert any(each.startswith(text) for each in texts(place))
    assert mend(place)[1] == [2, 3, 4, 5, 6, 7]
    assert texts(place) == []


def test_samples_written_in_other_formats_are_reported_and_made_again(made, tmp_path):
    place = tmp_path / "out"
    run(place, ("files",), stop_at=2)
    other = json.loads((made / "settings.json").read_text())
    other.pop("sha256")
    for name in ("settings.json", "shards/settings.json"):
        (place / name).write_bytes(json_with_checksum(other))
    text = "its record has no hash of image.jpg: it was written with other formats"
    assert sum(text in each for each in texts(place)) >= 2
    lost, again = mend(place)
    assert lost == 2 and again == list(range(NUM_IMAGES))
    assert tree(place) == tree(made)


# What somebody put there.


@pytest.mark.parametrize(
    "name", ["../../../dev/zero", "/dev/zero", "image/../../x", "..", "", "image//a", "a\0b"]
)
def test_a_summary_that_lists_a_file_outside_the_folder_makes_nobody_read_it(copy, name):
    facts = {"bytes": 5, "sha256": "0" * 64}
    rewrite(copy / "shards/00000.json", lambda summary: summary["files"].update({name: facts}))
    found = [each for each in texts(copy) if "cannot be read" in each]
    assert len(found) == 1


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "fifo", "../outside"])
def test_links_and_pipes_in_place_of_files_are_reported_and_not_read(copy, tmp_path, target):
    (tmp_path / "outside").write_bytes(b"content")
    names = ["image/000001.png", "shards/00000.json", "manifest.jsonl", "classes.txt"]
    for name in names:
        (copy / name).unlink()
        if target == "fifo":
            os.mkfifo(copy / name)
        else:
            (copy / name).symlink_to(target)
    found = texts(copy)
    for name in names:
        assert any(each.startswith(f"{name}: cannot be read") for each in found)


def test_a_link_in_place_of_a_folder_is_reported_and_not_followed(made, copy):
    shutil.rmtree(copy / "image")
    (copy / "image").symlink_to(made / "image")
    assert sum("symbolic link" in each for each in texts(copy)) == NUM_IMAGES - 1


def test_billions_of_images_take_no_time_and_no_memory(copy):
    rewrite(copy / "shards/closed.json", lambda content: content.update(num_images=10**10))
    found = texts(copy)
    assert "shards/00003.json: missing" in found
    assert (
        f"shards/closed.json: lists {-(-(10**10) // 3) - 3 - 10} more shards that are missing"
        in found
    )
    assert len(found) < 20


def test_billions_of_images_in_a_shard_take_no_time_and_no_memory(copy):
    for name in ("settings.json", "shards/settings.json"):
        rewrite(copy / name, lambda content: content.update(shard_size=2**52))
    rewrite(copy / "shards/closed.json", lambda content: content.update(num_images=10**12))
    assert any(f"lacks {10**12 - 3} samples of its shard" in each for each in texts(copy))


@pytest.mark.parametrize(
    "name",
    [
        *("0.json", "00000.JSON", "000000.json", "00000.json.bak", "notes.txt", "-0001.json"),
        *("٠٠٠٠٠.json", "00000.open.jsonl", "\x1b[31mred"),
    ],
)
def test_an_unknown_name_among_the_shards_is_reported_and_ignored(copy, name):
    (copy / "shards" / name).write_bytes(b"[]")
    (text,) = texts(copy)
    assert text.isprintable() and text.endswith("is not a file of a dataset; remove it")
    assert run(copy) == []


@pytest.mark.parametrize("name", ["000010+99999999", "000001+0", "1+1", "000001+02", "+", "000001"])
def test_an_unknown_name_in_a_journal_is_reported_and_ignored(copy, name):
    (copy / "shards/00002.journal" / name).write_bytes(b"")
    (text,) = texts(copy)
    assert text.startswith(f"shards/00002.journal/{name}: is not a file of this journal")
    assert run(copy) == []
    assert mend(copy) == (0, [])
    assert texts(copy) == []


DEEP = b"[" * 100_000
NOT_OBJECTS = [b"", b"null", b"[]", b"7", b'"text"', b"\xff", b"{", DEEP, b'{"sha256": 1}']


@pytest.mark.parametrize(
    "name",
    ["shards/00000.json", "shards/00000.jsonl", "shards/closed.json", "shards/00002.open.json"],
)
def test_what_is_not_an_object_in_a_file_of_the_dataset_is_a_problem_and_no_more(made, copy, name):
    for content in NOT_OBJECTS:
        (copy / name).write_bytes(content)
        assert any(text.startswith(name) for text in texts(copy))
        assert max(map(len, texts(copy))) < 3000
    assert mend(copy) == (0, [])
    assert tree(copy) == tree(made)


@pytest.mark.parametrize("name", ["shards/00000.json", "shards/closed.json"])
@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": []},
        {"files": {"a": 7}},
        {"files": {"a": {}}},
        {"files": {"a": {"bytes": "5", "sha256": "0"}}},
        {"files": {"a": {"bytes": -1, "sha256": "0"}}},
        {"files": {"a": {"bytes": 10**400, "sha256": "0"}}},
        {"files": {"a": {"bytes": 1, "sha256": None}}},
        {"samples": None},
        {"failed": "1"},
        {"empty": True},
        {"samples": 1.5},
    ],
    ids=str,
)
def test_entries_of_another_kind_with_the_right_checksum_are_a_problem(copy, name, change):
    rewrite(copy / name, lambda content: content.update(change))
    assert [text for text in texts(copy) if text.startswith(f"{name}: ")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("format", value) for value in (None, "files", [7], [["files"]], [], ["no such"])),
        *(("shard_size", value) for value in (None, 0, -1, 1.5, "3", True, 10**30)),
        *(("soft_masks", value) for value in (7, [], "tiff")),
        *(("seed_maps", value) for value in (None, 1, "yes")),
        *(("class_names", value) for value in (None, 7, "cat", [7], {"a": 1})),
    ],
)
def test_settings_of_another_kind_are_one_line(copy, key, value):
    for name in ("settings.json", "shards/settings.json"):
        rewrite(copy / name, lambda content: content.update({key: value}))
    with pytest.raises(UserError) as error:
        verify(open_folder(copy))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"index": "1"},
        {"index": None},
        {"index": 10**30},
        {"index": -5},
        {"sha256": None},
        {"sha256": []},
        {"sha256": {"image.png": 7}},
    ],
    ids=str,
)
def test_records_of_another_kind_with_the_right_checksum_are_a_problem(made, copy, change):
    lines = (copy / "shards/00000.jsonl").read_bytes().splitlines(keepends=True)
    record = json.loads(lines[1])
    record.pop("crc32")
    lines[1] = json_line(add_checksum(record | change))
    (copy / "shards/00000.jsonl").write_bytes(b"".join(lines))
    assert re.search("lacks 1 samples|has changed|instead of", "\n".join(texts(copy)))
    assert mend(copy) == (0, [])
    assert tree(copy) == tree(made)
