"""A model is not written to a folder that is named like the scheme of a URL."""

import pytest

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.orbax_folder import save_orbax
from seediff_jax.convert import main
from seediff_jax.errors import UserError


@pytest.mark.parametrize("write", [save_model, save_orbax])
def test_models_are_not_written_to_urls(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/a is a URL; models are written to local"):
        write(None, "gs://bucket/a")
    assert not list(tmp_path.iterdir())


def test_a_conversion_to_a_url_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "--model=shapes", "--output=s3://bucket/a"]) == 2
    assert capsys.readouterr().err.startswith("seediff_jax.convert: s3://bucket/a is a URL")
    assert not list(tmp_path.iterdir())
