"""Names that cannot stand in a list are refused by every format that writes one."""

import pytest

from seediff_jax.dataset.formats import FORMATS
from seediff_jax.errors import UserError


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "a\rb", ""])
def test_the_name_of_a_class_that_would_shift_the_lines_of_labels_txt_is_refused(tmp_path, name):
    form = FORMATS["voc"](["cat", name])
    with pytest.raises(UserError, match="must be one line; rename it"):
        form.write_run(lambda: iter(()), lambda *_: b"", [], tmp_path)
