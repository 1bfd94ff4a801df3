"""safetensors files: tensors are read as by the safetensors library, and damaged files refused."""

import errno
import json
import os
import re
import struct
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from seediff_jax.checkpoints import safetensors_files
from seediff_jax.checkpoints.safetensors_files import FLOATS, open_weights
from seediff_jax.errors import UserError

TENSORS = {
    "float64": np.linspace(-3, 3, 7),
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.arange(4, dtype=np.float16).reshape(2, 2, 1),
    "bfloat16": np.array([1.5, -2], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "float8": np.array([0.5, -448, 2.0**-9], ml_dtypes.float8_e4m3fn),
    "float8 of range": np.array([[57344], [-(2.0**-16)]], ml_dtypes.float8_e5m2),
}


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b"", length=None):
    """Writes a file; `header` is an object or bytes, `length` what the file says of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_tensors_of_every_dtype_equal_those_that_the_safetensors_library_wrote(tmp_path):
    path = tmp_path / "made.safetensors"
    expected = {**TENSORS, "ids": np.arange(3)}
    save_file(expected, path, metadata={"format": "pt"})
    tensors, metadata = open_weights(path)
    assert metadata == {"format": "pt"}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    assert shapes == {name: array.shape for name, array in expected.items()}
    assert {n for n, tensor in tensors.items() if tensor.dtype not in FLOATS} == {"ids"}
    for name in TENSORS:
        array = tensors[name].read()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name].astype(np.float32))


def test_changing_a_read_tensor_does_not_change_the_next_read(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path)
    tensor = open_weights(path)[0]["float32"]
    tensor.read()[:] = 9
    np.testing.assert_array_equal(tensor.read(), TENSORS["float32"])


def test_a_file_is_open_as_long_as_one_of_its_tensors_is_in_use(tmp_path):
    def is_open():
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return str(path) in links

    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path)
    tensor = open_weights(path)[0]["float32"]
    assert is_open()
    np.testing.assert_array_equal(tensor.read(), TENSORS["float32"])
    del tensor
    assert not is_open()


def test_a_file_that_is_replaced_is_still_read_as_it_was(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file({"a": np.zeros(5, np.float32)}, path)
    tensor = open_weights(path)[0]["a"]
    save_file({"a": np.ones(5, np.float32)}, tmp_path / "new.safetensors")
    os.replace(tmp_path / "new.safetensors", path)
    np.testing.assert_array_equal(tensor.read(), np.zeros(5, np.float32))


def test_blocks_of_rows_are_the_stored_tensor(tmp_path):
    path = tmp_path / "made.safetensors"
    tensors = TENSORS | {"many rows": np.arange(2**20, dtype=np.float16).reshape(2**11, 2**9)}
    del tensors["scalar"]
    save_file(tensors, path)
    stored, _ = open_weights(path)
    for name, tensor in tensors.items():
        blocks = [block.copy() for block in stored[name].read_blocks()]
        assert all(block.dtype == tensor.dtype for block in blocks)
        joined = np.concatenate([np.zeros_like(tensor[:0]), *blocks])
        np.testing.assert_array_equal(joined, tensor)
    assert len(blocks) == 4


def test_reading_in_blocks_needs_little_memory(tmp_path):
    def resident():
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"RssFile:\s+(\d+) kB", status)[1])

    path = tmp_path / "made.safetensors"
    save_file({"a": np.ones((2**12, 2**12), np.float32)}, path)
    tensor = open_weights(path)[0]["a"]
    before = resident()
    tracemalloc.start()
    assert sum(block.sum(dtype=np.float64) for block in tensor.read_blocks()) == 2**24
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A block has 1 MiB, the tensor 64; a mapped file would count as resident memory.
    assert peak < 2**22 and resident() < before + 2**23


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ([], b"", "invalid type: sequence"),
        (b"{", b"", "EOF while parsing"),
        (b'{"\xff": 0}', b"", "invalid UTF-8"),
        (b"[" * 10**5, b"", "invalid JSON in header"),
        (b'{"a": ' + b"9" * 5000 + b"}", b"", "invalid JSON in header"),
        ({"a": {"dtype": "F32"}}, b"", "missing field `shape`"),
        ({"a": 3}, b"", "invalid type: integer `3`"),
        ({"a": entry(0, 4, [1], dtype=32)}, bytes(4), "invalid JSON in header"),
        ({"a": entry(0, 4, [1], dtype="F33")}, bytes(4), "unknown variant `F33`"),
        ({"a": entry(0, 4, [3], dtype="I16")}, bytes(4), "invalid shape, data type, or offset"),
        ({"__metadata__": {"format": 3}}, b"", "expected a string"),
        ({"__metadata__": ["pt"]}, b"", "invalid type: sequence"),
        ({"__metadata__": 0}, b"", "invalid type: integer `0`"),
        ({"a": entry(0, 4, [True])}, bytes(4), "invalid type: boolean `true`"),
        ({"a": entry(0, 4, [-1])}, bytes(4), "invalid value: integer `-1`"),
        ({"a": entry(0, 4, [1.0])}, bytes(4), "invalid type: floating point `1.0`"),
        ({"a": entry(4, 0, [1])}, bytes(4), "invalid offset"),
        ({"a": entry(-4, 0, [1])}, bytes(4), "invalid value: integer `-4`"),
        ({"a": entry(0, 4, [2])}, bytes(4), "invalid shape, data type, or offset"),
        ({"a": entry(0, 4 * 10**20, [10**20])}, bytes(4), "invalid JSON in header"),
        ({"a": entry(0, 2**62, [2**61, 2**61])}, bytes(4), "overflow"),
        ({"a": entry(0, 4, [1])}, bytes(3), "file not fully covered"),
        ({"a": entry(0, 4, [1])}, bytes(5), "file not fully covered"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12), "invalid offset"),
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, bytes(12), "invalid offset"),
    ],
)
def test_a_wrong_header_is_refused_with_the_reason(tmp_path, header, data, message):
    path = write(tmp_path / "wrong.safetensors", header, data)
    with pytest.raises(UserError, match=message) as caught:
        open_weights(path)
    assert str(caught.value).startswith(f"{path} is damaged or cut short")


def test_a_name_with_control_characters_is_shown_escaped_and_cut(tmp_path):
    name = "\x1b[31mred" + "x" * 10**6
    path = write(tmp_path / "wrong.safetensors", {name: entry(0, 8, [1])}, bytes(4))
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 5000


@pytest.mark.parametrize("length", [100, 2**40, 2**64 - 1])
def test_a_header_longer_than_its_file_is_not_read(tmp_path, length):
    path = write(tmp_path / "wrong.safetensors", {}, length=length)
    with pytest.raises(ValueError, match="it has 10 bytes, too few for its header"):
        open_weights(path)


def test_a_header_above_the_limit_of_the_format_is_not_read_and_not_called_damaged(tmp_path):
    """The file is as long as its header says, without a block on the disk."""
    path = write(tmp_path / "huge.safetensors", {}, length=2**33)
    with open(path, "r+b") as file:
        file.truncate(2**33 + 8)
    with pytest.raises(UserError, match="safetensors reads up to 100000000") as caught:
        open_weights(path)
    assert "damaged" not in str(caught.value)


def test_a_header_with_megabytes_of_training_tags_is_read(tmp_path):
    path = tmp_path / "trained.safetensors"
    save_file(TENSORS, path, metadata={"ss_tag_frequency": "tag " * (5 * 2**20)})
    tensors, metadata = open_weights(path)
    assert tensors.keys() == TENSORS.keys()
    assert len(metadata["ss_tag_frequency"]) == 20 * 2**20


@pytest.fixture
def unmapped(monkeypatch):
    """A filesystem whose files cannot be mapped, as the safetensors library does."""
    real = safetensors_files.safe_open

    def refuse(path, framework):
        if str(path).endswith(".safetensors"):
            raise OSError(errno.ENODEV, "No such device")
        return real(path, framework)

    monkeypatch.setattr(safetensors_files, "safe_open", refuse)


@pytest.mark.usefixtures("unmapped")
def test_files_are_read_where_they_cannot_be_mapped(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    tensors, metadata = open_weights(path)
    assert metadata == {"format": "pt"}
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(tensors[name].read(), tensor.astype(np.float32))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="file not fully covered"):
        open_weights(path)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "made.safetensors"
    save_file(TENSORS, path)

    def refuse(*unused):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        open_weights(path)[0]["float32"].read()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_refused_without_waiting(tmp_path, make):
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(UserError, match="is not a file, but a folder, pipe or device"):
        open_weights(path)


def test_a_git_lfs_pointer_is_named_as_such(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(ValueError, match="pointer of Git LFS, `git lfs pull` fetches"):
        open_weights(path)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "made.safetensors"
    save_file({"a": np.zeros(10**5, np.float32)}, path)
    tensors, _ = open_weights(path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 10)
    with pytest.raises(ValueError, match="it ends 10 bytes before the end of a tensor"):
        tensors["a"].read()


def test_float64_beyond_float32_becomes_infinity_without_a_warning(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file({"a": np.array([1e300, -1e300])}, path)
    np.testing.assert_array_equal(open_weights(path)[0]["a"].read(), [np.inf, -np.inf])


def test_a_folder_and_a_missing_file_are_named(tmp_path):
    for path, message in ((tmp_path, "is not a file"), (tmp_path / "nothing", "cannot be read")):
        with pytest.raises(UserError, match=f"{path} {message}"):
            open_weights(path)
