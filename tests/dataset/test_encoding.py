"""The parts of a sample: what Pillow, OpenCV and NumPy read back, and that bytes never vary."""

import concurrent.futures
import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.encoding import PARTS, Sample, decode_png, encode
from seediff_jax.dataset.pictures import overlay
from tests.helpers.format_runs import SAMPLES, make_sample

SAMPLE = SAMPLES[5]


def encoded(part, sample=SAMPLE):
    return encode(sample, [part]).files[part]


def opened(part, sample=SAMPLE):
    picture = Image.open(io.BytesIO(encoded(part, sample)))
    picture.load()
    return picture


def with_image(image):
    return Sample(0, image, np.zeros(image.shape[:2], np.uint8), {})


def test_only_the_parts_asked_for_are_made_in_a_fixed_order():
    got = encode(SAMPLE, {"seeds.npz", "mask.png", "image.jpg"})
    assert list(got.files) == ["image.jpg", "mask.png", "seeds.npz"]
    assert (got.index, got.record) == (SAMPLE.index, SAMPLE.record)
    assert encode(SAMPLE, ()).files == {}


@pytest.mark.parametrize("sample", SAMPLES.values())
def test_png_image_is_without_loss(sample):
    picture = opened("image.png", sample)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), sample.image)


def test_mask_is_a_palette_picture_of_class_ids_with_the_colours_of_voc():
    picture = opened("mask.png")
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), SAMPLE.mask)
    assert picture.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert picture.getpalette()[-3:] == [224, 224, 192]
    # OpenCV applies the palette: the ignored pixels are pale, in its order blue, green, red.
    colours = cv2.imdecode(np.frombuffer(encoded("mask.png"), np.uint8), cv2.IMREAD_COLOR)
    assert (colours[SAMPLE.mask == 255] == [192, 224, 224]).all()


def test_grey_mask_has_the_ids_as_values_without_a_palette():
    picture = opened("mask_grey.png")
    assert picture.mode == "L"
    np.testing.assert_array_equal(np.asarray(picture), SAMPLE.mask)


def test_decoded_mask_has_the_ids_of_the_sample():
    for sample in SAMPLES.values():
        np.testing.assert_array_equal(decode_png(encoded("mask.png", sample)), sample.mask)


def test_overlay_shows_the_mask_on_the_image():
    np.testing.assert_array_equal(
        np.asarray(opened("overlay.png")), overlay(SAMPLE.image, SAMPLE.mask)
    )


def test_panoptic_ids_are_class_ids_plus_one_and_void_where_ignored():
    mask = np.array([[0, 1, 254, 255]], np.uint8)
    sample = Sample(0, np.zeros((1, 4, 3), np.uint8), mask, {})
    picture = opened("panoptic.png", sample)
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(
        np.asarray(picture), [[[1, 0, 0], [2, 0, 0], [255, 0, 0], [0, 0, 0]]]
    )


@pytest.mark.parametrize("sample", SAMPLES.values())
def test_jpeg_is_as_near_to_the_image_as_its_quantisation_allows(sample):
    picture = opened("image.jpg", sample)
    tables = picture.quantization
    # The transform keeps lengths and rounds a coefficient by half a step at most, which bounds the
    # rms of luma and chroma; blue is Y + 1.772 Cb, the largest factor of any colour. Rounding to
    # integers on both ways adds half a unit of each, at most 0.5 + 1.772 * 0.5 + 0.5 < 2.
    luma, chroma = (np.sqrt(np.mean(np.square(tables[k])) / 4) for k in (0, 1))
    error = np.asarray(picture).astype(float) - sample.image
    # Pixels beyond the edge, which fill the last block, take no more than their share of it.
    height, width = (-(-side // 8) * 8 for side in error.shape[:2])
    rms = np.sqrt(np.sum(error**2, axis=(0, 1)) / (height * width))
    assert (rms < luma + 1.772 * chroma + 2).all()
    assert luma < 4 and chroma < 5  # quality 95, not a default of 75 (10 and 15)


def test_jpeg_keeps_colours_that_change_from_pixel_to_pixel():
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 200, 200
    difference = np.asarray(opened("image.jpg", with_image(stripes))).astype(int) - stripes
    # Chroma at half resolution mixes neighbours: every pixel is then off by about 100 in red.
    assert abs(difference).max() < 30


def test_soft_npz_is_exact():
    with np.load(io.BytesIO(encoded("soft.npz"))) as content:
        assert content.files == ["soft_masks"] and content["soft_masks"].dtype == np.float32
        np.testing.assert_array_equal(content["soft_masks"], SAMPLE.soft_masks)


def test_seeds_npz_is_exact():
    with np.load(io.BytesIO(encoded("seeds.npz"))) as content:
        assert content.files == ["seed_maps"] and content["seed_maps"].dtype == np.float32
        np.testing.assert_array_equal(content["seed_maps"], SAMPLE.seed_maps)


def test_attention_npz_is_rounded_to_float16():
    with np.load(io.BytesIO(encoded("attention.npz"))) as content:
        assert content.files == ["cross_attention", "self_attention_4"]
        for name, maps in SAMPLE.attention.items():
            assert content[name].dtype == np.float16
            # Half a unit in the last of 11 digits.
            np.testing.assert_allclose(content[name], maps, rtol=2**-11)


def test_methods_png_stacks_the_masks_of_the_other_methods():
    picture = opened("methods.png", SAMPLE)
    assert picture.mode == "P" and len(SAMPLE.other_masks) == 2
    np.testing.assert_array_equal(np.asarray(picture), np.concatenate(SAMPLE.other_masks))


def test_soft_png_stacks_the_classes_in_sixteen_bits():
    picture = cv2.imdecode(np.frombuffer(encoded("soft.png"), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.dtype == np.uint16 and len(SAMPLE.soft_masks) == 3
    maps = picture.reshape(SAMPLE.soft_masks.shape) / 65535
    # Half a step, and the rounding of float32 on the way.
    np.testing.assert_allclose(maps, SAMPLE.soft_masks, rtol=0, atol=0.5 / 65535 + 1e-7)


def test_soft_png_has_zero_and_one_at_the_ends_of_its_range():
    soft_masks = np.array([[[0, 1, 0.5, 1 + 2e-7]]], np.float32)
    sample = Sample(0, np.zeros((1, 4, 3), np.uint8), np.zeros((1, 4), np.uint8), {}, soft_masks)
    np.testing.assert_array_equal(
        np.asarray(opened("soft.png", sample)), [[0, 65535, 32768, 65535]]
    )


@pytest.mark.parametrize("part", ["soft.npz", "soft.png"])
@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_soft_masks_beyond_their_range_are_refused(part, value):
    soft_masks = SAMPLE.soft_masks.copy()
    soft_masks[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"soft masks of sample 5 lie in .*; \[0, 1\] is needed"):
        encode(dataclasses.replace(SAMPLE, soft_masks=soft_masks), [part])


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("soft.npz", "soft masks"),
        ("soft.png", "soft masks"),
        ("seeds.npz", "seed maps"),
        ("attention.npz", "attention"),
        ("methods.png", "masks of other methods"),
    ],
)
def test_a_part_whose_arrays_are_missing_is_refused(part, name):
    with pytest.raises(ValueError, match=f"sample 0 has no {name}"):
        encode(with_image(SAMPLE.image), [part])


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"unknown parts image\.gif; known are image\.png, image\.jpg"
    ):
        encode(SAMPLE, ["image.gif", "mask.png"])


def test_a_mask_of_another_size_than_the_image_is_refused():
    with pytest.raises(TypeError, match="mask"):
        dataclasses.replace(SAMPLE, mask=SAMPLE.mask[1:])


def test_equal_samples_have_equal_bytes_in_any_thread():
    copies = [make_sample(SAMPLE.index) for _ in range(8)]
    assert copies[0].image is not copies[1].image
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda sample: encode(sample, PARTS).files, copies))
    assert all(files == got[0] for files in got)
