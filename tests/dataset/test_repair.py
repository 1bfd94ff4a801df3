"""A damaged folder: what is wrong is found, and a repair costs one sample per file at most."""

import os
import shutil

import pytest

from seediff_jax.dataset.checksums import json_with_checksum, parse_json_with_checksum
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.repair import repair
from seediff_jax.dataset.verify import verify
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from tests.helpers.crashes import killed_at
from tests.helpers.damaged_folders import cut, flip, mend, texts
from tests.helpers.format_runs import tree
from tests.helpers.stored_runs import NUM_IMAGES, run

# pycocotools decodes by a way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_a_sound_folder_has_no_problem_and_nothing_is_made_again(made):
    assert texts(made) == []
    assert run(made) == []


def files_to_damage():
    """One file of each kind: those of samples 1 and 6, and all that are not of one sample."""
    sample_files = [
        path
        for kind in FORMATS.values()
        for index in (1, 6)
        for path in kind(["cat"], ("soft.npz", "seeds.npz")).sample_files(index)
    ]
    shards = [f"shards/0000{k}.{end}" for k, end in ((0, "json"), (0, "jsonl"), (2, "open.json"))]
    shards += ["shards/00002.jsonl", "shards/00002.journal/000006+2"]
    shards += ["webdataset/shard-00000.tar", "array_record/data-00000.array_record"]
    shards += ["coco/parts/00000.jsonl", "coco_panoptic/parts/00002.jsonl"]
    whole = ["manifest.jsonl", "failed.jsonl", "contact_sheet.png", "voc/labels.txt"]
    whole += ["coco/annotations/instances.json", "shards/closed.json", "classes.txt"]
    return [*sample_files, *shards, *whole, "settings.json", "shards/settings.json"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, flip) for name in files_to_damage()]
    + [(name, damage) for name in files_to_damage()[-18:] for damage in (cut, os.unlink)],
)
def test_damage_of_one_file_is_found_and_costs_one_sample_at_most(made, copy, name, damage):
    damage(copy / name)
    before = tree(copy)
    found = texts(copy)
    assert any(text.startswith(name.partition("/0000")[0]) for text in found), found
    assert tree(copy) == before
    lost, again = mend(copy)
    assert lost == len(again) <= int("/000001." in name or "/000006." in name)
    assert tree(copy) == tree(made)
    assert texts(copy) == []


@pytest.mark.parametrize("formats", [(name,) for name in FORMATS], ids=str)
def test_each_format_alone_gives_the_other_samples_of_a_shard_back(tmp_path, formats):
    run(tmp_path / "made", formats)
    shutil.copytree(tmp_path / "made", tmp_path / "copy")
    flip(tmp_path / "copy" / "shards/00000.json")
    lost, again = mend(tmp_path / "copy", *formats)
    assert (lost, again) == (0, [])
    assert tree(tmp_path / "copy") == tree(tmp_path / "made")


def test_samples_of_a_damaged_shard_file_that_is_the_only_copy_are_made_again(tmp_path):
    run(tmp_path / "made", ("webdataset",))
    shutil.copytree(tmp_path / "made", tmp_path / "copy")
    tar = tmp_path / "copy/webdataset/shard-00000.tar"
    content = bytearray(tar.read_bytes())
    content[content.index(b"000001.jpg") + 600] ^= 1  # in the image
    tar.write_bytes(content)
    assert mend(tmp_path / "copy", "webdataset") == (1, [1])
    assert tree(tmp_path / "copy") == tree(tmp_path / "made")


def test_a_damaged_line_is_taken_from_the_list_of_the_run_or_else_costs_its_sample(made, copy):
    path = copy / "shards/00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"Tier", b"Bier")
    path.write_bytes(b"".join(lines))
    other = shutil.copytree(copy, copy.with_name("other"))
    assert mend(copy) == (0, [])
    assert tree(copy) == tree(made)
    (other / "manifest.jsonl").unlink()
    assert mend(other) == (1, [1])
    assert tree(other) == tree(made)


def test_damage_everywhere_is_mended_at_once(made, copy):
    for name in ("image/000000.png", "voc/JPEGImages/000003.jpg", "shards/00001.json"):
        flip(copy / name)
    (copy / "webdataset/shard-00002.tar").unlink()
    (copy / "classes.txt").write_bytes(b"")
    assert mend(copy) == (2, [0, 3])
    assert tree(copy) == tree(made)


def test_a_sample_of_an_unfinished_shard_is_removed_alone(made, tmp_path):
    place = tmp_path / "out"
    run(place, stop_at=2)
    flip(place / "image/000001.png")
    folder = open_folder(place)
    problems = verify(folder)
    assert [problem.name for problem in problems if problem.is_damage] == ["image/000001.png"]
    assert repair(folder, problems) == 1
    assert run(place) == [1, *range(2, NUM_IMAGES)]
    assert tree(place) == tree(made)


def test_an_unfinished_folder_is_not_damaged_and_repair_leaves_it_alone(tmp_path):
    place = tmp_path / "out"
    run(place, stop_at=5)
    before = tree(place)
    (problem,) = verify(open_folder(place))
    assert not problem.is_damage and "the run is not complete" in str(problem)
    assert repair(open_folder(place), [problem]) == 0
    assert tree(place) == before


def test_a_repair_that_is_killed_anywhere_can_be_repeated(made, tmp_path):
    for number in range(1000):
        place = shutil.copytree(made, tmp_path / f"out-{number}")
        flip(place / "image/000001.png")
        flip(place / "shards/00000.json")
        folder = open_folder(place)
        problems = verify(folder)
        with killed_at(number) as calls:
            repair(folder, problems)
        if calls[-1] != "killed":
            break
        mend(place)
        assert tree(place) == tree(made), f"killed before call {number}: {calls}"
        shutil.rmtree(place)
    assert number > 10  # else the calls were not seen


@pytest.mark.parametrize("name", ["settings.json", "shards/settings.json"])
def test_the_copy_of_the_settings_that_is_sound_is_written_over_the_other(made, copy, name):
    content = (copy / name).read_bytes()
    for at in range(0, len(content), 7):
        (copy / name).write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        folder = open_folder(copy)
        problems = verify(folder)
        assert [problem.name for problem in problems] == [name]
        repair(folder, problems)
        assert (copy / name).read_bytes() == content


def test_settings_that_are_damaged_on_both_sides_say_what_can_still_be_done(copy):
    for name in ("settings.json", "shards/settings.json"):
        flip(copy / name)
    before = tree(copy)
    with pytest.raises(UserError, match="can be used as they are; .* put back one of the two"):
        verify(open_folder(copy))
    assert tree(copy) == before


@pytest.mark.parametrize(
    "name", ["shards/00000.json", "shards/00002.open.json", "shards/closed.json"]
)
def test_every_byte_of_a_summary_is_covered_by_its_checksum(made, name):
    content = (made / name).read_bytes()
    assert json_with_checksum(parse_json_with_checksum(content)) == content
    for at in range(len(content)):
        for changed in (content[at] ^ 1, content[at] ^ 0x80, 32 if content[at] == 10 else 10):
            with pytest.raises(ValueError):
                parse_json_with_checksum(content[:at] + bytes([changed]) + content[at + 1 :])
