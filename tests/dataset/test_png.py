"""PNG encoding, read back with OpenCV and Pillow."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.png import encode_png


def make_pixels(shape, dtype):
    """Smooth in one half and noise in the other, so that all differences of bytes occur."""
    rng = np.random.default_rng(sum(shape))
    pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    ramp = np.arange(pixels[: len(pixels) // 2].size, dtype=np.int64) * 7
    pixels[: len(pixels) // 2] = ramp.reshape(pixels[: len(pixels) // 2].shape).astype(dtype)
    return pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (64, 33), (1, 1, 3), (37, 50, 3)])
def test_opencv_reads_the_pixels_back(shape, dtype):
    pixels = make_pixels(shape, dtype)
    content = np.frombuffer(encode_png(pixels), np.uint8)
    decoded = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded, pixels[..., ::-1] if len(shape) == 3 else pixels)


@pytest.mark.parametrize(("shape", "mode"), [((40, 30), "L"), ((40, 30, 3), "RGB")])
def test_pillow_reads_the_pixels_and_the_mode(shape, mode):
    pixels = make_pixels(shape, np.uint8)
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        picture.verify()  # compares the checksums
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_pixels_of_a_view_are_those_that_the_view_shows():
    pixels = make_pixels((20, 24, 3), np.uint8)[::-1, ::2]
    with Image.open(io.BytesIO(encode_png(pixels))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_a_smooth_image_takes_a_small_part_of_its_pixels():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    assert len(encode_png(ramp)) < ramp.size / 20


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_they_are(pixels):
    with pytest.raises(
        ValueError, match=rf"got {pixels.dtype} \[{', '.join(map(str, pixels.shape))}\]"
    ):
        encode_png(pixels)
