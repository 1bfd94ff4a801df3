"""Names that are not models are refused with advice."""

import os
import shutil

import pytest

from seediff_jax.checkpoints.diffusers_folder import write_model_config
from seediff_jax.checkpoints.sources import find_source, read_source_config
from tests.helpers.random_models import small_config


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder that holds that of a model (without weights) and an empty one."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "sd").mkdir()
    write_model_config(folder / "sd", small_config(folder / "made"))
    (folder / "empty").mkdir()
    return folder


def refusal(name):
    with pytest.raises(ValueError) as caught:
        read_source_config(find_source(name))
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "has_other"), [("empty", False), ("sd/unet", True), ("sd/tokenizer", True), ("", True)]
)
def test_a_folder_near_a_model_is_refused_and_the_model_named(models, name, has_other):
    other = f"; {models / 'sd'} does" if has_other else ""
    path = models / name / "model_index.json"
    expected = f"{path} is missing; name the folder of a model, which holds it{other}"
    assert refusal(models / name) == expected


def test_an_empty_name_is_not_the_current_folder(models, monkeypatch):
    monkeypatch.chdir(models / "sd")
    assert find_source(".") and find_source("./")
    assert "there is no model '': neither 'stickers', 'shapes', nor a folder" in refusal("")
    with pytest.raises(ValueError, match="tokenizer='' is neither a folder nor"):
        read_source_config(find_source("."), tokenizer="")


@pytest.mark.parametrize(
    ("name", "near"),
    [("Stickers", "stickers"), ("sticker", "stickers"), ("shape", "shapes"), ("/models/sd", None)],
)
def test_the_embedded_model_of_a_similar_name_is_suggested(name, near):
    assert refusal(name).endswith(f" hub; did you mean {near}?" if near else " hub")


def test_the_home_folder_can_be_written_as_a_tilde(models, monkeypatch):
    monkeypatch.setenv("HOME", str(models))
    assert find_source("~/sd") == models / "sd"
    config = read_source_config(find_source("~/sd"), tokenizer="~/sd/tokenizer")
    assert config == read_source_config(models / "sd")
    assert "there is no model '~/other': neither" in refusal("~/other")
    with pytest.raises(ValueError, match=f"{models}/own.json is missing; check the name"):
        read_source_config(find_source("~/sd"), capture="~/own.json")


def test_a_pipe_is_not_a_model(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert "is not a regular file" in refusal(tmp_path / "model.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    assert "is not a regular file" in refusal(tmp_path / "zero.safetensors")


@pytest.mark.parametrize("ending", [".ckpt", ".bin", ".pt", ".pth"])
def test_a_pickle_is_refused_with_a_conversion_command(tmp_path, ending):
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"anything")
    assert f"StableDiffusionPipeline.from_single_file('{path}')" in refusal(path)


def test_other_files_are_refused_without_a_conversion_command(models, tmp_path):
    (tmp_path / "passwd").write_text("root")
    needed = "is a file; a .safetensors file or a diffusers folder is needed"
    assert refusal(tmp_path / "passwd") == f"{tmp_path / 'passwd'} {needed}"
    shutil.copytree(models / "sd", tmp_path / "sd")
    path = tmp_path / "sd" / "model_index.json"
    assert refusal(path) == f"{path} {needed}; name the folder, {path.parent}"
