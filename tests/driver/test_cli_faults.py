"""Command lines on which a value was forgotten."""

import pytest

from seediff_jax.main import main
from tests.helpers.small_runs import error_line


@pytest.mark.parametrize("flag", ["--output", "-output", "--prompts", "--num_images", "--lora"])
def test_a_flag_does_not_take_the_next_flag_for_its_value(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["seediff", flag, "--num_steps=1"]) == 2
    assert error_line(capsys) == f"seediff: {flag} has no value; write {flag}=value"
    assert not list(tmp_path.iterdir())


def test_an_empty_list_is_named_as_a_flag(capsys):
    assert main(["seediff", "--dilations="]) == 2
    assert error_line(capsys) == "seediff: --dilations= is empty; give at least one number"


def test_a_url_whose_client_is_missing_says_what_is_missing(monkeypatch, capsys):
    def missing(_):
        raise ImportError("HTTPFileSystem requires requests and aiohttp to be installed")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    assert main(["seediff", "--output=http://host/x"]) == 2
    assert "http://host/x cannot be used: HTTPFileSystem requires" in error_line(capsys)


@pytest.mark.parametrize("lora", ["", ":0.5"])
def test_a_lora_without_a_file_is_one_line(lora, capsys):
    assert main(["seediff", f"--lora={lora}"]) == 2
    assert error_line(capsys) == f"seediff: --lora='{lora}': it names no file; write path:weight"
