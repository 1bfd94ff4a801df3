"""Runs with a mask method of one's own: settings.json keeps its name and the hash of its file."""

import hashlib
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.settings_file import read_settings
from seediff_jax.driver import make_dataset
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from tests.helpers.small_runs import command, error_line

SOURCE = """
import jax.numpy as jnp

def left_half(cross_attention, self_attention, image_side):
    height, width = image_side
    return jnp.broadcast_to(jnp.where(jnp.arange(width) < width / 2, 1.0, 0.0), image_side)

def wrong(cross_attention, self_attention, image_side):
    return jnp.zeros(3)
"""
NAME = "halves_of_a_test"


@pytest.fixture
def module(tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # As in the program; tests have strict promotion, which the functions of users need not bear.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield path
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    sys.modules.pop(NAME, None)


def test_a_run_makes_and_records_masks_by_a_function_and_resumes_with_the_same_one(
    inputs, module, tmp_path, capsys
):
    method = f"--mask_method={NAME}:left_half"
    assert main(command(inputs, tmp_path / "set", method)) == 0
    settings = read_settings(open_folder(tmp_path / "set"))
    assert settings["mask_method"] == f"{NAME}:left_half"
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    assert settings["mask_method_sha256"] == {f"{NAME}:left_half": digest}
    mask = np.asarray(Image.open(tmp_path / "set" / "mask" / "000001.png"))
    np.testing.assert_array_equal(mask, np.repeat([[10] * 8 + [0] * 8], 16, axis=0))  # VOC: a cow

    capsys.readouterr()
    assert main(["seediff", "resume", str(tmp_path / "set"), "--compilation_cache="]) == 0
    assert "all 5 images are in" in capsys.readouterr().out
    module.write_text(SOURCE + "# other\n")
    assert main(command(inputs, tmp_path / "set", method)) == 2
    assert "was made with other settings (mask_method_sha256: " in error_line(capsys)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("none", f"--mask_method={NAME}:none cannot be imported: AttributeError"),
        ("wrong", f"{NAME}:wrong returns float32 [3]; expected float32 [16, 16]"),
    ],
)
def test_a_bad_function_is_refused_before_the_model_is_loaded(
    inputs, module, tmp_path, capsys, monkeypatch, function, message
):
    monkeypatch.setattr(make_dataset, "load_model", None)
    arguments = command(inputs, tmp_path / "set", f"--mask_method={NAME}:{function}")
    assert main(arguments) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "set").exists()
