"""What all formats have in common, and the formats of plain files, read as their users would."""

import importlib.util
import json

import numpy as np
import pytest
from format_runs import CLASS_NAMES, SAMPLES, tree, write_run
from PIL import Image

from seediff_jax.encoding import PARTS
from seediff_jax.formats import FORMATS, Format
from seediff_jax.formats.base import json_text

OPTIONS = {"soft": "npz", "seeds": True}


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_has_the_same_bytes_again(tmp_path, name):
    first = tree(write_run(name, tmp_path / "first", **OPTIONS))
    assert first and tree(write_run(name, tmp_path / "second", **OPTIONS)) == first


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
