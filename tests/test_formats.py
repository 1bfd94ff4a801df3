"""What all formats have in common, and the formats of plain files, read as their users would."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from format_runs import CLASS_NAMES, OPTIONS, SAMPLES, tree, write_run
from PIL import Image

from seediff_jax.encoding import PARTS, encode
from seediff_jax.formats import FORMATS, Format
from seediff_jax.formats.base import json_text
from seediff_jax.formats.voc import is_val


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_has_the_same_bytes_again(tmp_path, name):
    first = tree(write_run(name, tmp_path / "first", **OPTIONS))
    assert first and tree(write_run(name, tmp_path / "second", **OPTIONS)) == first


def test_another_process_writes_the_same_bytes(tmp_path):
    code = f"""
import pathlib
from format_runs import OPTIONS, write_run
for name in {list(FORMATS)}:
    write_run(name, pathlib.Path({str(tmp_path / "other")!r}), **OPTIONS)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for name in FORMATS:
        write_run(name, tmp_path / "this", **OPTIONS)
    assert tree(tmp_path / "other") == tree(tmp_path / "this")


@pytest.mark.parametrize("name", FORMATS)
def test_paths_of_a_format_begin_with_its_name(tmp_path, name):
    paths = list(tree(write_run(name, tmp_path / "run", **OPTIONS)))
    tops = {path.partition("/")[0] for path in paths}
    assert tops == ({"image", "mask", "overlay", "soft", "seeds"} if name == "files" else {name})


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("soft", [None, "npz", "png"])
def test_parts_are_parts_of_the_encoding_and_shards_need_some_of_them(name, soft):
    form = FORMATS[name](CLASS_NAMES, soft, True)
    assert set(form.shard_parts) <= set(form.parts) <= set(PARTS)
    assert set(form.sample_files(7).values()) <= set(form.parts)
    assert set(form.sample_files(7).values()) | set(form.shard_parts) == set(form.parts)


@pytest.mark.parametrize("name", FORMATS)
def test_another_way_to_store_soft_masks_is_refused(name):
    with pytest.raises(ValueError, match="npz or png, not as 'tiff'"):
        FORMATS[name](CLASS_NAMES, "tiff", False)


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch):
    class Rare(Format):
        name = "rare"
        libraries = ("json", "no_such_library")

    with pytest.raises(
        ValueError, match="rare needs no_such_library; run: pip install no_such_lib"
    ):
        Rare(CLASS_NAMES).require_available()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    Rare(CLASS_NAMES).require_available()


def test_json_refuses_what_is_no_json():
    assert json.loads(json_text({"b": "ü", "a": 1})) == {"b": "ü", "a": 1}
    assert json_text({"b": 1, "a": 2}) == '{"b": 1, "a": 2}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"score": float("nan")})


@pytest.mark.parametrize("soft", ["npz", "png"])
def test_files_has_a_file_a_part_in_folders_at_the_top(tmp_path, soft):
    folder = write_run("files", tmp_path / "run", soft=soft, seeds=True)
    folders = {"image": "png", "mask": "png", "overlay": "png", "soft": soft, "seeds": "npz"}
    assert set(tree(folder)) == {
        f"{name}/{index:06d}.{ending}" for name, ending in folders.items() for index in SAMPLES
    }
    for index, sample in SAMPLES.items():
        with Image.open(folder / f"image/{index:06d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), sample.image)
        with Image.open(folder / f"mask/{index:06d}.png") as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), sample.mask)
        with np.load(folder / f"seeds/{index:06d}.npz") as seeds:
            np.testing.assert_array_equal(seeds["seed_maps"], sample.seed_maps)


def test_files_has_no_soft_masks_and_seeds_unless_asked_for(tmp_path):
    folder = write_run("files", tmp_path / "run")
    assert {path.name for path in folder.iterdir()} == {"image", "mask", "overlay"}


def test_numbers_of_more_than_six_digits_are_written_in_full():
    assert "image/1234567.png" in FORMATS["files"](CLASS_NAMES, None, False).sample_files(1234567)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_voc_list_leads_to_images_and_masks_of_class_ids(tmp_path):
    folder = write_run("voc", tmp_path / "run") / "voc"
    names = lines(folder / "ImageSets/Segmentation/trainval.txt")
    assert [int(name) for name in names] == sorted(SAMPLES)
    for name in names:
        sample = SAMPLES[int(name)]
        image = (folder / "JPEGImages" / f"{name}.jpg").read_bytes()
        assert image == encode(sample, ["image.jpg"]).files["image.jpg"]
        with Image.open(folder / "SegmentationClass" / f"{name}.png") as mask:
            assert mask.mode == "P"
            np.testing.assert_array_equal(np.asarray(mask), sample.mask)


def test_voc_labels_name_the_id_of_their_line(tmp_path):
    folder = write_run("voc", tmp_path / "run")
    assert lines(folder / "voc/labels.txt") == ["background", "cat", "dog", "zebra"]


def test_voc_lists_split_the_samples_by_the_hash_of_their_index(tmp_path):
    made = FORMATS["voc"](CLASS_NAMES).closing_files(
        lambda: ({"index": index} for index in range(40) if index != 39), None, [], tmp_path
    )
    train, val, both = (
        [int(name) for name in lines(made[f"voc/ImageSets/Segmentation/{split}.txt"])]
        for split in ("train", "val", "trainval")
    )
    assert val == [5, 15, 21, 38]  # 10 k and the last digit of what sha256sum says of k
    assert both == sorted(train + val) == list(range(39))


def test_voc_val_set_has_its_share_of_prompts_that_recur():
    val = np.array([is_val(index) for index in range(20_000)]).reshape(-1, 20)
    # A thousand draws of one in ten have a standard deviation of 0.0095: four of them.
    np.testing.assert_allclose(val.mean(axis=0), 0.1, atol=0.038)
