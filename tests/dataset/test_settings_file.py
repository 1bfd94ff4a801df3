"""settings.json determines the samples of a folder; classes.txt names the classes."""

import pytest

from seediff_jax.dataset.settings_file import read_settings, write_settings
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from tests.helpers.stored_runs import settings


def test_line_k_of_the_class_file_names_id_k(tmp_path):
    folder, written = open_folder(tmp_path), settings() | {"class_names": ["cat", "dog"]}
    write_settings(folder, written)
    assert folder.read("classes.txt") == b"cat\ndog\n"
    assert read_settings(folder) == written


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "a\x85b", "\x0b", "", "ends\n"])
def test_the_name_of_a_class_that_would_shift_the_lines_of_the_class_file_is_refused(
    tmp_path, name
):
    folder = open_folder(tmp_path / "made")
    with pytest.raises(UserError, match="must be one line; rename it"):
        write_settings(folder, settings() | {"class_names": ["cat", name, "dog"]})
    assert not folder.exists()
