"""Attention maps in .npz files, written and read back."""

import numpy as np
import pytest

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.errors import UserError


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    levels = {side: rng.random((2, side**2, side**2), np.float32) / side**2 for side in (16, 4, 8)}
    return AttentionMaps(rng.random((2, 5, 16, 3), np.float32), levels)


def test_they_are_plain_arrays_in_an_npz_and_read_back_as_they_were(maps, tmp_path):
    maps.save(tmp_path / "maps.npz")
    with np.load(tmp_path / "maps.npz") as arrays:
        names = ["cross_attention", "self_attention_4", "self_attention_8", "self_attention_16"]
        assert arrays.files == names
        np.testing.assert_array_equal(arrays["cross_attention"], maps.cross_attention)
    read = AttentionMaps.load(tmp_path / "maps.npz")
    assert read.sides == (4, 8, 16)
    np.testing.assert_array_equal(read.cross_attention, maps.cross_attention)
    for side in read.sides:
        np.testing.assert_array_equal(read.self_attention[side], maps.self_attention[side])


def test_float16_takes_half_of_the_bytes_and_is_read_as_float32(maps, tmp_path):
    maps.save(tmp_path / "maps")  # the name is not changed
    maps.save(tmp_path / "half", "float16")
    whole, half = ((tmp_path / name).stat().st_size for name in ("maps", "half"))
    assert half < 0.51 * whole
    read = AttentionMaps.load(tmp_path / "half")
    assert read.cross_attention.dtype == read.self_attention[16].dtype == np.float32
    # Half a unit in the last of 11 digits; of numbers below 6e-5 there are fewer.
    for got, expected in (
        (read.cross_attention, maps.cross_attention),
        (read.self_attention[16], maps.self_attention[16]),
    ):
        np.testing.assert_allclose(got, expected, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["self_attention_8"], "expected arrays cross_attention and self_attention_SIDE"),
        (["cross_attention", "soft_masks"], "not cross_attention, soft_masks"),
        (["cross_attention", "self_attention_x"], "expected"),
    ],
)
def test_other_arrays_are_refused(tmp_path, names, message):
    np.savez(tmp_path / "other.npz", **dict.fromkeys(names, np.zeros(1)))
    with pytest.raises(UserError, match=message):
        AttentionMaps.load(tmp_path / "other.npz")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "cut.npz", "empty.npz", "one.npy"):
        with pytest.raises(UserError, match=f"{name} has no attention maps"):
            AttentionMaps.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        AttentionMaps.load(tmp_path / "none.npz")
