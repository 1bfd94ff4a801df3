"""The dataset folder: what its files hold, and that a stopped run leaves nothing half done."""

import errno
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from seediff_jax import dataset
from seediff_jax.dataset import DatasetWriter, require_resumable, write_whole

SETTINGS = {
    "seediff_jax_version": "1.2.3",
    "model": "shapes",
    "num_steps": 3,
    "uncertain": None,
    "class_names": ["cat", "dog", "zebra"],
}
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
LABELS = np.zeros((6, 8), np.uint8)
LABELS[:3, :4], LABELS[3:5, :4], LABELS[5] = 1, 2, 255


def write(writer, index, labels=LABELS, image=IMAGE):
    return writer.write(
        index,
        image,
        labels,
        prompt="a zebra and a cat",
        classes=("zebra", "cat"),
        seed_counts=[5, 7],
    )


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "made"
    writer = DatasetWriter(folder, SETTINGS)
    for index in range(3):
        write(writer, index)
    writer.finish()
    return folder


def test_masks_hold_the_ids_of_the_run_with_the_palette_of_voc(folder):
    with Image.open(folder / "mask/000001.png") as mask:
        assert mask.mode == "P"
        ids, palette = np.asarray(mask), mask.getpalette()
    expected = np.zeros((6, 8), np.uint8)
    expected[:3, :4], expected[3:5, :4], expected[5] = 3, 1, 255  # zebra is third, cat first
    np.testing.assert_array_equal(ids, expected)
    assert palette[:6] == [0, 0, 0, 128, 0, 0] and palette[-3:] == [224, 224, 192]


def test_images_are_stored_without_loss(folder):
    with Image.open(folder / "image/000002.png") as image:
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), IMAGE)


def test_mask_gives_labels_the_ids_that_are_stored(folder):
    mask = DatasetWriter(folder, SETTINGS).mask(LABELS, ("zebra", "cat"))
    with Image.open(folder / "mask/000000.png") as stored:
        np.testing.assert_array_equal(mask, np.asarray(stored))


def test_a_manifest_line_tells_everything_about_its_sample(folder):
    assert manifest(folder)[1] == {
        "index": 1,
        "image": "image/000001.png",
        "mask": "mask/000001.png",
        "overlay": "overlay/000001.png",
        "prompt": "a zebra and a cat",
        "classes": ["zebra", "cat"],
        "class_ids": [3, 1],
        "area_fractions": [12 / 48, 8 / 48],
        "seed_counts": [5, 7],
        "empty": [],
        "ignored_fraction": 8 / 48,
        "seediff_jax_version": "1.2.3",
        "model": "shapes",
        "num_steps": 3,
        "uncertain": None,
    }


def test_a_class_without_a_pixel_is_reported_as_empty(tmp_path):
    write(DatasetWriter(tmp_path, SETTINGS), 0, labels=np.minimum(LABELS, 1))
    assert manifest(tmp_path)[0]["empty"] == ["cat"]


def test_line_k_of_the_class_file_names_id_k(folder):
    assert (folder / "classes.txt").read_text().splitlines() == ["cat", "dog", "zebra"]


def test_the_contact_sheet_shows_the_first_samples_only(folder, monkeypatch):
    monkeypatch.setattr(dataset, "_SHEET_SAMPLES", 1)
    with Image.open(folder / "contact_sheet.png") as sheet:
        width = sheet.width
    DatasetWriter(folder, SETTINGS).finish()
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width < width


def test_a_finished_folder_is_opened_without_a_change(folder):
    before = tree(folder)
    writer = DatasetWriter(folder, SETTINGS)
    assert sorted(writer.rows) == [0, 1, 2]
    writer.finish()
    assert tree(folder) == before


@pytest.mark.parametrize("part", ["image", "mask", "overlay"])
def test_a_sample_that_lost_a_file_is_missing_again(folder, part):
    before = tree(folder)
    (folder / part / "000001.png").unlink()
    writer = DatasetWriter(folder, SETTINGS)
    assert sorted(writer.rows) == [0, 2]
    write(writer, 1)
    writer.finish()
    assert tree(folder) == before


@pytest.mark.parametrize("lost", [1, 30, 400])
def test_a_manifest_torn_in_its_last_line_is_repaired(folder, lost):
    before = tree(folder)
    path = folder / "manifest.jsonl"
    os.truncate(path, path.stat().st_size - lost)
    writer = DatasetWriter(folder, SETTINGS)
    for index in {0, 1, 2} - writer.rows.keys():
        write(writer, index)
    writer.finish()
    assert tree(folder) == before


def test_a_damaged_line_in_the_midst_of_the_manifest_is_named(folder):
    path = folder / "manifest.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(ValueError, match=r"manifest\.jsonl:2: .*delete the line"):
        DatasetWriter(folder, SETTINGS)


def test_samples_may_be_written_in_any_order(folder, tmp_path):
    writer = DatasetWriter(tmp_path / "other", SETTINGS)
    for index in (2, 0, 1):
        write(writer, index)
    writer.finish()
    assert tree(tmp_path / "other") == tree(folder)


def test_other_settings_are_refused_with_old_and_new_value(folder):
    changed = SETTINGS | {"num_steps": 50, "uncertain": 0.4}
    with pytest.raises(ValueError, match="num_steps: 3 there, 50 now; uncertain: null there, 0.4"):
        DatasetWriter(folder, changed)


def test_a_folder_without_a_sample_takes_other_settings(tmp_path):
    changed = SETTINGS | {"num_steps": 50}
    DatasetWriter(tmp_path, SETTINGS)
    DatasetWriter(tmp_path, changed)
    assert json.loads((tmp_path / "settings.json").read_text()) == changed


def test_settings_that_are_not_known_yet_are_not_compared(folder):
    require_resumable(folder, {"num_steps": 3})
    with pytest.raises(ValueError, match="num_steps: 3 there, 4 now"):
        require_resumable(folder, {"num_steps": 4})


def test_a_folder_with_other_things_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and no dataset"):
        DatasetWriter(tmp_path, SETTINGS)
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("content", ["{", "[]", '{"theme": "dark"}'])
def test_a_settings_file_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="choose a new folder"):
        DatasetWriter(tmp_path, SETTINGS)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "made").write_text("")
    with pytest.raises(ValueError, match="made is a file"):
        DatasetWriter(tmp_path / "made", SETTINGS)


def test_a_run_stopped_before_its_settings_were_written_can_start_again(tmp_path):
    (tmp_path / "settings.json.part").write_text("{")
    DatasetWriter(tmp_path, SETTINGS)
    assert not (tmp_path / "settings.json.part").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_finished_does_not_appear(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full_disk())
    with pytest.raises(OSError, match=re.escape(str(path))):
        write_whole(path, b"new content")
    assert tree(tmp_path) == {"file": b"old"}


def full_disk(calls_before=0):
    """Stands in for a call that fails from some call on."""
    count = iter(range(1000))

    def fail(*_):
        if next(count) >= calls_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fail


# Three files and one manifest line a sample: the disk fills up in each of them in turn.
@pytest.mark.parametrize("calls_before", [0, 1, 2, 3])
def test_a_full_disk_keeps_what_was_written_and_the_run_can_go_on(
    folder, monkeypatch, calls_before
):
    writer = DatasetWriter(folder, SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk(calls_before))
        with pytest.raises(OSError, match="No space left on device"):
            write(writer, 3)
    assert not list(folder.rglob("*.part"))
    assert len(manifest(folder)) == 3
    again = DatasetWriter(folder, SETTINGS)
    assert sorted(again.rows) == [0, 1, 2]
    write(again, 3)
    assert len(manifest(folder)) == 4
