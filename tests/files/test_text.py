"""Lines of text files: encodings, endings, places."""

import pytest

from seediff_jax.files.text import read_entries, read_lines


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_byte_order_mark_and_line_endings_do_not_matter(tmp_path, mark, ending):
    path = tmp_path / "lines.txt"
    lines = [" # \u00fc", "", "a line\u2028separator "]
    path.write_bytes(mark + ending.join(line.encode() for line in lines))
    assert list(read_lines(path)) == [(f"{path}:{k}", line) for k, line in enumerate(lines, 1)]
    assert list(read_entries(path)) == [(f"{path}:3", "a line\u2028separator")]


def test_lines_before_one_that_is_not_utf8_can_be_read(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(b"a dog\na d\xf6g\n")
    lines = read_lines(path)
    assert next(lines)[1] == "a dog"
    with pytest.raises(ValueError, match=r"lines\.txt:2: not UTF-8 .*save it as UTF-8"):
        next(lines)


def test_an_absent_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        list(read_lines(tmp_path / "absent.txt"))
