"""settings.json determines the samples of a folder; classes.txt names the classes."""

import pytest

from seediff_jax.dataset.settings_file import (
    FORM,
    VERSIONS,
    read_settings,
    write_settings,
)
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder

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


def test_line_k_of_the_class_file_names_id_k(folder):
    write_settings(folder, SETTINGS)
    assert folder.read("classes.txt") == b"cat\ndog\n"
    assert read_settings(folder) == SETTINGS


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "a\x85b", "\x0b", "", "ends\n"])
def test_the_name_of_a_class_that_would_shift_the_lines_of_the_class_file_is_refused(folder, name):
    with pytest.raises(UserError, match="must be one line; rename it"):
        write_settings(folder, SETTINGS | {"class_names": ["cat", name, "dog"]})
    assert not folder.exists()
