"""safetensors files byte by byte: read as the safetensors library reads them, and every lie."""

import json
import re
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seediff_jax.json_files import LONGEST
from seediff_jax.tensor_files import read_header
from seediff_jax.weight_files import open_weights

TENSORS = {
    "float64": np.linspace(-3, 3, 7),
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.arange(4, dtype=np.float16).reshape(2, 2, 1),
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b"", length=None):
    """Writes a file; `header` is an object or bytes, `length` what the file says of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_tensors_of_every_float_dtype_are_those_of_the_safetensors_library(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file({**TENSORS, "ids": np.arange(3)}, path, metadata={"format": "pt"})
    expected = load_file(path)
    with open_weights([path]) as reader:
        assert reader.shapes == {name: array.shape for name, array in expected.items()}
        assert not reader.is_number("ids")
        for name in TENSORS:
            array = reader.read(name)
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, expected[name].astype(np.float32))


def test_every_tensor_is_read_into_an_array_of_its_own(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path)
    with open_weights([path]) as reader:
        reader.read("float32")[:] = 9
        np.testing.assert_array_equal(reader.read("float32"), TENSORS["float32"])


def test_a_borrowed_tensor_is_the_stored_one_and_cannot_be_changed(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path)
    expected = load_file(path)
    with open_weights([path]) as reader:
        for name in TENSORS:
            with reader.borrow(name) as tensor:
                assert tensor.dtype == expected[name].dtype
                np.testing.assert_array_equal(tensor, expected[name])
                with pytest.raises(ValueError, match="read-only"):
                    tensor[...] = 0


def test_pages_of_a_tensor_that_was_read_are_given_back(tmp_path):
    def mapped():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssFile:\s+(\d+) kB", status)[1])

    path = tmp_path / "made.safetensors"
    save_file({name: np.ones(2**24, np.float32) for name in "abc"}, path)
    with open_weights([path]) as reader:
        before = mapped()
        for name in "abc":
            with reader.borrow(name) as tensor:
                assert tensor.sum(dtype=np.float64) == 2**24
                assert mapped() > before + 2**25  # half of the tensor's size
        # What the system maps around the last page that is read is far below a tensor's 64 MiB.
        assert mapped() < before + 2**23


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ([], b"", "its header is no JSON object"),
        (b"{", b"", "Expecting property name"),
        (b'{"\xff": 0}', b"", "'utf-8' codec can't decode"),
        (b"[" * 10**5, b"", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "4300 digits"),
        (b'{"a": {}, "a": {}}', b"", "given twice: 'a'"),
        ({"a": {"dtype": "F32"}}, b"", "'a' is not described by dtype, shape and data_offsets"),
        ({"a": 3}, b"", "'a' is not described by dtype, shape and data_offsets"),
        (
            {"a": entry(0, 4, [1], dtype=32)},
            bytes(4),
            "'a' has dtype 32, which safetensors",
        ),
        ({"a": entry(0, 4, [1], dtype="F33")}, bytes(4), "'a' has dtype 'F33', which"),
        ({"a": entry(0, 4, [3], dtype="I16")}, bytes(4), "'a' of shape .3,. and dtype I16 has 4"),
        ({"__metadata__": {"format": 3}}, b"", "its __metadata__ is no object of texts"),
        ({"__metadata__": ["pt"]}, b"", "its __metadata__ is no object of texts"),
        ({"__metadata__": []}, b"", "its __metadata__ is no object of texts"),
        ({"__metadata__": 0}, b"", "its __metadata__ is no object of texts"),
        ({"a": entry(0, 4, [True])}, bytes(4), r"'a' has shape \[True\]"),
        ({"a": entry(0, 4, [-1])}, bytes(4), r"'a' has shape \[-1\]"),
        ({"a": entry(0, 4, [1.0])}, bytes(4), r"'a' has shape \[1.0\]"),
        ({"a": entry(0, 4, [1] * 9)}, bytes(4), "needed up to 8 counts"),
        ({"a": entry(4, 0, [1])}, bytes(4), r"'a' has data_offsets \[4, 0\]"),
        ({"a": entry(-4, 0, [1])}, bytes(4), r"'a' has data_offsets \[-4, 0\]"),
        ({"a": entry(0, 4, [2])}, bytes(4), r"'a' of shape \(2,\) and dtype F32 has 4 bytes"),
        ({"a": entry(0, 4 * 10**20, [10**20])}, bytes(4), "its tensors end at byte 4000000000"),
        ({"a": entry(0, 4, [1])}, bytes(3), "its tensors end at byte"),
        ({"a": entry(0, 4, [1])}, bytes(5), "its tensors end at byte"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "'b' starts at byte"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "'b' starts at byte"),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(tmp_path, header, data, message):
    path = write(tmp_path / "lie.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as caught, open_weights([path]):
        pass
    assert str(caught.value).startswith(f"{path} is damaged or cut short")


@pytest.mark.parametrize("length", [100, 2**40, 2**64 - 1])
def test_a_header_longer_than_its_file_is_not_read(tmp_path, length):
    path = write(tmp_path / "lie.safetensors", {}, length=length)
    with pytest.raises(ValueError, match="it has 10 bytes, too few for its header"):
        with open_weights([path]):
            pass


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    """The file is as long as its header says, without a block on the disk."""
    path = write(tmp_path / "huge.safetensors", {}, length=2**33)
    with open(path, "r+b") as file:
        file.truncate(2**33 + 8)
    with pytest.raises(ValueError, match=f"headers are read up to {LONGEST}"):
        with open_weights([path]):
            pass


def test_a_pointer_of_git_lfs_is_told_apart(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match="pointer of Git LFS, `git lfs pull` fetches"):
        with open_weights([path]):
            pass


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file({"a": np.zeros(10**5, np.float32)}, path)
    with open_weights([path]) as reader:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 10)
        with pytest.raises(ValueError, match="it ends 10 bytes before the end of a tensor"):
            reader.read("a")


def test_float64_beyond_float32_becomes_infinity_without_a_warning(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file({"a": np.array([1e300, -1e300])}, path)
    with open_weights([path]) as reader:
        np.testing.assert_array_equal(reader.read("a"), [np.inf, -np.inf])


def test_a_folder_and_a_missing_file_are_no_crash(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ValueError, match="is damaged or cut short"), open_weights([path]):
            pass


def test_positions_count_from_the_start_of_the_file(tmp_path):
    path = write(tmp_path / "made.safetensors", {"a": entry(0, 4, [1])}, b"\0\0\x80\x3f")
    with open(path, "rb") as file:
        stored = read_header(file, path)[0]["a"]
    assert path.read_bytes()[stored.start : stored.start + stored.size] == b"\0\0\x80\x3f"
