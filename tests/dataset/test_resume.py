"""A run resumes in a folder with its own settings, and touches no other folder."""

import itertools
import json

import pytest

from seediff_jax.dataset.lock import LOCK
from seediff_jax.dataset.resume import has_settings, require_resumable
from seediff_jax.dataset.settings_file import (
    FORM,
    VERSIONS,
    settings_files,
    write_settings,
)
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from tests.helpers.crashes import killed_at

SETTINGS = {
    "form": FORM,
    "seediff_jax_version": "1.2.3",
    "num_steps": 3,
    "uncertain": None,
    "class_names": ["cat", "dog"],
    VERSIONS: {"jax": "0.10.2"},
}


@pytest.fixture
def folder(tmp_path):
    return open_folder(tmp_path / "made")


@pytest.fixture
def with_sample(folder):
    write_settings(folder, SETTINGS)
    folder.write("shards/00000.journal/000000+1", b"")
    return folder


def test_new_and_empty_folders_and_what_a_run_left_before_its_settings_are_taken(folder):
    require_resumable(folder, SETTINGS)
    folder.write("settings.json.part", b"{")
    folder.write(LOCK, b"")
    require_resumable(folder, SETTINGS)


def test_other_settings_are_refused_with_old_and_new_value(with_sample):
    changed = SETTINGS | {"num_steps": 50, "uncertain": 0.4}
    with pytest.raises(ValueError, match="num_steps: 3 there, 50 now; uncertain: null there, 0.4"):
        require_resumable(with_sample, changed)


def test_a_folder_of_an_older_release_has_no_draws(with_sample):
    require_resumable(with_sample, SETTINGS | {"presence_draws": 0})
    with pytest.raises(ValueError, match="presence_draws: .* 4 now"):
        require_resumable(with_sample, SETTINGS | {"presence_draws": 4})


def test_settings_that_are_not_known_yet_are_not_compared(with_sample):
    require_resumable(with_sample, {"num_steps": 3})
    with pytest.raises(ValueError, match="num_steps: 3 there, 4 now"):
        require_resumable(with_sample, {"num_steps": 4})


def test_other_versions_of_libraries_are_reported_and_not_refused(with_sample):
    changed = SETTINGS | {VERSIONS: {"jax": "0.11.0"}}
    (notice,) = require_resumable(with_sample, changed)
    assert notice == 'software: {"jax": "0.10.2"} there, {"jax": "0.11.0"} now'
    assert require_resumable(with_sample, SETTINGS) == []


def test_a_folder_without_a_sample_takes_other_settings(folder):
    write_settings(folder, SETTINGS)
    assert require_resumable(folder, SETTINGS | {"num_steps": 50}) == []


@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_settings_that_were_killed_while_they_were_written_are_written_again(tmp_path, kind):
    for number in itertools.count():
        place = tmp_path / f"made{number}" if kind == "disk" else f"memory://settings/{number}"
        folder = open_folder(place)
        with killed_at(number) as calls:
            write_settings(folder, SETTINGS)
        if calls[-1:] != ["killed"]:
            break
        assert require_resumable(folder, SETTINGS) == []
        write_settings(folder, SETTINGS)
        for name, content in settings_files(SETTINGS).items():
            assert folder.read(name) == content
    assert number >= 3  # else the calls were not seen


def test_leftovers_of_a_run_without_samples_are_not_samples(folder):
    write_settings(folder, SETTINGS)
    for name in ("scratch-0/00000.jsonl", "00000.journal.part", "00000.jsonl", "notes"):
        folder.write(f"shards/{name}", b"")
    assert require_resumable(folder, SETTINGS | {"num_steps": 50}) == []
    folder.write("shards/00000.open.json", b"")
    with pytest.raises(ValueError, match="num_steps: 3 there, 50 now"):
        require_resumable(folder, SETTINGS | {"num_steps": 50})


def test_a_folder_with_other_things_is_refused_untouched(folder):
    folder.write("thesis.tex", b"years of work")
    with pytest.raises(ValueError, match="not empty and is not a seediff dataset"):
        require_resumable(folder, SETTINGS)
    assert folder.names() == ["thesis.tex"]


@pytest.mark.parametrize("form", [None, 1, "3"])
def test_a_folder_of_another_form_is_refused_with_a_sentence_that_says_so(folder, form):
    write_settings(folder, SETTINGS | {"form": form})
    message = r"written by another version of seediff_jax \(1.2.3\).* choose a new folder"
    with pytest.raises(UserError, match=message):
        require_resumable(folder, SETTINGS)


@pytest.mark.parametrize("content", ["{", "[]", '{"theme": "dark"}'])
def test_a_settings_file_of_something_else_is_refused(folder, content):
    folder.write("settings.json", content.encode())
    with pytest.raises(ValueError, match="choose a new folder"):
        require_resumable(folder, SETTINGS)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "made").write_text(json.dumps(SETTINGS))
    with pytest.raises(ValueError, match="made is a file"):
        require_resumable(open_folder(tmp_path / "made"), SETTINGS)


def test_a_folder_has_the_settings_of_the_last_run_and_no_others(folder):
    assert not has_settings(folder, SETTINGS)
    write_settings(folder, SETTINGS)
    assert has_settings(folder, dict(reversed(SETTINGS.items())))
    assert not has_settings(folder, SETTINGS | {"num_steps": 4})
    assert not has_settings(folder, SETTINGS | {VERSIONS: {"jax": "0.10.3"}})
    assert not has_settings(folder, {"num_steps": 3})


def test_damaged_settings_equal_no_settings(folder):
    write_settings(folder, SETTINGS)
    folder.write("settings.json", b"{")
    assert not has_settings(folder, SETTINGS)
