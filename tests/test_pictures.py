"""Pictures for people: colours by hand, and single pixels of sheets and strips."""

import numpy as np
import pytest

from seediff_jax.pictures import HEAT, MARGIN, PALETTE, contact_sheet, method_strip, overlay

GREY = np.full((4, 4, 3), 100, np.uint8)
SQUARE = np.zeros((4, 4), np.uint8)
SQUARE[:3, :3] = 1


def sample(side=40, value=100, label=1, caption="a photo of a dog"):
    image = np.full((side, side, 3), value, np.uint8)
    return image, np.full((side, side), label, np.uint8), caption


@pytest.mark.parametrize(
    ("class_id", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),  # aeroplane
        (2, (0, 128, 0)),  # bicycle
        (3, (128, 128, 0)),  # bird
        (7, (128, 128, 128)),  # car
        (8, (64, 0, 0)),  # cat
        (15, (192, 128, 128)),  # person
        (20, (0, 64, 128)),  # tvmonitor
        (255, (224, 224, 192)),  # void
    ],
)
def test_palette_is_that_of_pascal_voc(class_id, colour):
    assert tuple(PALETTE[class_id].tolist()) == colour


def test_palette_gives_every_id_its_own_colour_and_is_read_only():
    assert PALETTE.shape == (256, 3) and PALETTE.dtype == np.uint8
    assert len(np.unique(PALETTE, axis=0)) == 256
    with pytest.raises(ValueError, match="read-only"):
        PALETTE[0] = 1


def test_overlay_blends_inside_draws_rims_and_leaves_the_background():
    got = overlay(GREY, SQUARE)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got[0, 0], [114, 50, 50])  # mean of 100 and (128, 0, 0)
    np.testing.assert_array_equal(got[1, 2], [128, 0, 0])  # beside the background
    np.testing.assert_array_equal(got[3], GREY[3])
    np.testing.assert_array_equal(got[:, 3], GREY[:, 3])


def test_overlay_shows_ignored_pixels_pale():
    np.testing.assert_array_equal(overlay(GREY, SQUARE * 255)[0, 0], [162, 162, 146])


def test_contact_sheet_places_image_mask_and_overlay_beside_one_another():
    sheet = np.asarray(contact_sheet([sample()], tile=80))
    row = sheet[MARGIN + 40]
    np.testing.assert_array_equal(row[MARGIN + 40], [100, 100, 100])
    np.testing.assert_array_equal(row[MARGIN + 84 + 40], [128, 0, 0])
    np.testing.assert_array_equal(row[MARGIN + 168 + 40], [114, 50, 50])
    np.testing.assert_array_equal(row[MARGIN + 82], [255, 255, 255])


def test_contact_sheet_grows_by_rows_of_its_columns():
    one, three, four = (
        contact_sheet([sample()] * count, columns=3, tile=80).size for count in (1, 3, 4)
    )
    assert three == (3 * (one[0] - MARGIN) + MARGIN, one[1])
    assert four == (three[0], 2 * (one[1] - MARGIN) + MARGIN)


def test_contact_sheet_names_the_classes_that_its_masks_show():
    plain = contact_sheet([sample(label=2)], tile=80)
    keyed = np.asarray(contact_sheet([sample(label=2)], tile=80, class_names={1: "cat", 2: "dog"}))
    assert keyed.shape[0] > plain.height
    key = keyed[plain.height - MARGIN :]
    assert (key == [0, 128, 0]).all(-1).any() and not (key == [128, 0, 0]).all(-1).any()


def test_contact_sheet_cuts_a_caption_that_is_too_long():
    short, long = (contact_sheet([sample(caption=text)], tile=80) for text in ("dog", "dog " * 99))
    assert short.size == long.size
    assert (np.asarray(long)[:, -MARGIN:] == 255).all()


def test_contact_sheet_puts_a_title_above():
    untitled, titled = (contact_sheet([sample()], tile=80, title=t) for t in ("", "Dogs"))
    added = titled.height - untitled.height
    assert added > 0 and (np.asarray(titled)[:added] < 128).any()


def test_contact_sheet_scales_landscape_pictures_by_their_longer_edge():
    image, label_map, caption = sample()
    sheet = np.asarray(contact_sheet([(image[:20], label_map[:20], caption)], tile=80))
    red = (sheet == [128, 0, 0]).all(-1)[:, : MARGIN + 84 + 80]
    assert red.any(1).sum() == 40 and red.any(0).sum() == 80


def test_contact_sheet_without_a_sample_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])


def test_method_strip_shows_four_stages_in_order():
    image, _, _ = sample(side=8)
    seeds = np.array([True, False, False, False])
    expansion = np.tile(np.array([0.0, 1.0]), (2, 1))
    label_map = np.zeros((8, 8), np.uint8)
    label_map[4:] = 1
    strip = np.asarray(method_strip(image, seeds, expansion, label_map, tile=32))
    assert strip.shape[1] == 4 * 32 + 3 * MARGIN
    pictures = [strip[:32, k * (32 + MARGIN) :][:, :32] for k in range(4)]
    np.testing.assert_array_equal(pictures[0], np.full((32, 32, 3), 100))
    np.testing.assert_array_equal(pictures[1][4, 4], [255, 210, 0])
    np.testing.assert_array_equal(pictures[1][4, 28], [33, 33, 33])
    np.testing.assert_array_equal(pictures[2][16, 0], HEAT[0])
    np.testing.assert_array_equal(pictures[2][16, 31], HEAT[-1])
    np.testing.assert_array_equal(pictures[3][4, 4], [100, 100, 100])
    np.testing.assert_array_equal(pictures[3][28, 28], [114, 50, 50])


def test_method_strip_refuses_seeds_that_fill_no_square():
    image, label_map, _ = sample(side=8)
    with pytest.raises(ValueError, match="5 locations make no grid"):
        method_strip(image, np.zeros(5, bool), np.zeros((2, 2)), label_map)
