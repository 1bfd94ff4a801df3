"""What all formats have in common, and the formats of plain files, read as their users would."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from seediff_jax.dataset.encoding import PARTS, encode
from seediff_jax.dataset.formats import FORMATS, Format
from seediff_jax.dataset.formats.base import json_text
from seediff_jax.dataset.formats.names import (
    ATTENTION_PART,
    KEEPING,
    OTHER_METHODS_PART,
    STRIPS_PART,
    kept_parts,
    require_place,
)
from seediff_jax.dataset.formats.voc import is_val
from tests.helpers.format_runs import CLASS_NAMES, OPTIONS, SAMPLES, tree, write_run


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_has_the_same_bytes_again(tmp_path, name):
    first = tree(write_run(name, tmp_path / "first", **OPTIONS))
    assert first and tree(write_run(name, tmp_path / "second", **OPTIONS)) == first


def test_another_process_writes_the_same_bytes(tmp_path):
    code = f"""
import pathlib
from tests.helpers.format_runs import OPTIONS, write_run
for name in {list(FORMATS)}:
    write_run(name, pathlib.Path({str(tmp_path / "other")!r}), **OPTIONS)
"""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(["", *sys.path]),
        "PYTHONHASHSEED": "7",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for name in FORMATS:
        write_run(name, tmp_path / "this", **OPTIONS)
    assert tree(tmp_path / "other") == tree(tmp_path / "this")


@pytest.mark.parametrize("name", FORMATS)
def test_paths_of_a_format_begin_with_its_name(tmp_path, name):
    paths = list(tree(write_run(name, tmp_path / "run", **OPTIONS)))
    tops = {path.partition("/")[0] for path in paths}
    assert tops == (
        {"image", "mask", "overlay", "soft", "seeds", "attention", "methods", "strips"}
        if name == "files"
        else {name}
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("soft", [None, "npz", "png"])
def test_parts_are_parts_of_the_encoding_and_shards_need_some_of_them(name, soft):
    kept = {"soft_masks": soft, "seed_maps": True, "keep_attention": True, "strips": True}
    kept["mask_method"] = ["seediff", "cross_attention"]
    form = FORMATS[name](CLASS_NAMES, kept_parts(kept))
    kept = {ATTENTION_PART, OTHER_METHODS_PART, STRIPS_PART}
    assert (kept <= {*form.parts}) == (name in KEEPING)
    assert set(form.shard_parts) <= set(form.parts) <= set(PARTS)
    assert set(form.sample_files(7).values()) <= set(form.parts)
    assert set(form.sample_files(7).values()) | set(form.shard_parts) == set(form.parts)


def test_only_some_formats_have_a_place_for_more_than_image_and_mask():
    for formats in (["files"], ["voc", "webdataset"]):
        require_place(formats, [ATTENTION_PART])
    require_place(["voc"], [])
    with pytest.raises(
        ValueError, match=r"formats=voc,coco has no place for methods\.png; add one"
    ):
        require_place(["voc", "coco"], [OTHER_METHODS_PART])


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


def test_json_text_refuses_values_that_json_lacks():
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
    assert "image/1234567.png" in FORMATS["files"](CLASS_NAMES).sample_files(1234567)


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
    made = FORMATS["voc"](CLASS_NAMES).write_run(
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


def test_an_image_folder_has_a_table_names_of_ids_and_a_card_for_the_hub(tmp_path):
    root = write_run("imagefolder", tmp_path / "run") / "imagefolder"
    rows = [json.loads(line) for line in (root / "train/metadata.jsonl").read_text().splitlines()]
    assert [row["index"] for row in rows] == sorted(SAMPLES)
    for row in rows:
        record = SAMPLES[row["index"]].record
        assert (row["prompt"], row["classes"]) == (record["prompt"], record["classes"])
        for column in ("image_file_name", "mask_file_name"):
            assert (root / "train" / row[column]).is_file()
    names = json.loads((root / "id2label.json").read_text())
    assert names == {"0": "background", "1": "cat", "2": "dog", "3": "zebra"}
    _, head, body = (root / "README.md").read_text().split("---\n")
    card = yaml.safe_load(head)
    assert card["task_categories"] == ["image-segmentation"]
    assert card["configs"][0]["data_files"] == [{"split": "train", "path": "train/**"}]
    assert "255 is ignored" in body


def test_the_label_map_of_cvat_has_the_colours_of_the_masks(tmp_path):
    root = write_run("cvat", tmp_path / "run") / "cvat"
    text = (root / "labelmap.txt").read_text()
    expected = ["background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::", "zebra:128,128,0::"]
    assert text.splitlines()[1:] == [*expected, "ignored:224,224,192::"]
    for name in (root / "ImageSets/Segmentation/default.txt").read_text().split():
        masks = [root / f"Segmentation{kind}/{name}.png" for kind in ("Class", "Object")]
        assert masks[0].read_bytes() == masks[1].read_bytes()
    whole = {index: sample for index, sample in SAMPLES.items() if not (sample.mask == 255).any()}
    root = write_run("cvat", tmp_path / "whole", whole) / "cvat"
    assert "ignored" not in (root / "labelmap.txt").read_text()


@pytest.mark.parametrize("name", ["a:b", "#1"])
def test_names_that_a_label_map_cannot_hold_are_refused(name):
    with pytest.raises(ValueError, match="cannot be in CVAT's labelmap.txt"):
        FORMATS["cvat"](["cat", name])
