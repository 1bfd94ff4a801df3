"""JSON files: the objects that are read, and the texts that Python's parser takes or fails on."""

import os

import pytest

from seediff_jax.files.strict_json import DEEPEST, LONGEST, read_json


@pytest.fixture
def path(tmp_path):
    return tmp_path / "config.json"


def test_an_object_is_read_as_it_is(path):
    path.write_text('{"name": "caf\\u00e9", "sizes": [1, 2.5, null, true], "inner": {"a": -1}}')
    expected = {"name": "café", "sizes": [1, 2.5, None, True], "inner": {"a": -1}}
    assert read_json(path) == expected


def nested(depth):
    return '{"a": ' + "[" * depth + "1" + "]" * depth + "}"


def test_lists_may_be_nested_up_to_a_bound(path):
    path.write_text(nested(DEEPEST - 2))
    assert "a" in read_json(path)
    path.write_text(nested(DEEPEST - 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": NaN}', "NaN is not a number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number of JSON"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "keys that are given twice: 'a'"),
        (b'{"a": ' + b"[" * 10**6, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300 digits"),
    ],
)
def test_files_that_are_not_json_are_refused_by_name(path, text, reason):
    path.write_bytes(text)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} is damaged, it is not JSON: ")


def test_other_values_than_objects_are_refused(path):
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="it must hold a JSON object"):
        read_json(path)


def test_a_file_of_gigabytes_is_not_read(path):
    path.touch()
    os.truncate(path, 2**33)
    with pytest.raises(ValueError, match=f"8589934592 bytes; JSON files are read up to {LONGEST}"):
        read_json(path)


def test_paths_that_are_not_files_are_refused(path):
    with pytest.raises(ValueError, match="config.json is missing"):
        read_json(path)
    os.mkfifo(path)
    with pytest.raises(ValueError, match="is not a file"):
        read_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        read_json(path)
