"""Pictures for people: colours by hand, and single pixels of sheets and strips."""

import numpy as np
import pytest
from PIL import ImageFont

from seediff_jax.dataset.pictures import (
    MARGIN,
    PALETTE,
    _wrap,
    contact_sheet,
    contour,
    contrast_palette,
    labelled_overlay,
    overlay,
)

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


def test_overlay_blends_inside_draws_two_lines_and_leaves_the_background():
    image = np.full((8, 8, 3), 100, np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4, :4] = 1
    got = overlay(image, mask)
    assert got.dtype == np.uint8
    assert (got[:3, :3] == [82, 50, 50]).all()  # mean of 100 and (64, 0, 0)
    assert (got[3, :4] == 255).all() and (got[:4, 3] == 255).all()
    assert (got[4, :4] == 0).all() and (got[:4, 4] == 0).all()
    assert (got[4:, 4:] == 100).all() and (got[5:] == 100).all() and (got[:, 5:] == 100).all()


@pytest.mark.parametrize("value", [0, 64, 128, 192, 255])
@pytest.mark.parametrize("class_id", [1, 8, 15, 255])
def test_the_edge_of_a_mask_can_be_seen_on_an_image_of_any_grey(value, class_id):
    image = np.full((9, 9, 3), value, np.uint8)
    mask = np.zeros((9, 9), np.uint8)
    mask[2:7, 2:7] = class_id
    row = overlay(image, mask)[4].astype(int).sum(-1)
    across = row[:4]  # outside, dark line, light line, inside
    assert np.abs(np.diff(across)).max() >= 3 * 128


@pytest.mark.parametrize(
    ("under", "shade"),
    [
        ((250, 250, 250), (64, 0, 0)),  # on white the dark one
        ((60, 0, 0), (191, 127, 127)),  # on dark red the light one
        ((0, 200, 255), (128, 0, 0)),  # on cyan the dark ones; pure red is further from it
        ((0, 0, 0), (191, 127, 127)),
    ],
)
def test_the_shade_of_a_class_is_the_one_that_differs_most_from_what_it_covers(under, shade):
    pixels, ids = np.array([under] * 3, np.uint8), np.ones(3, np.uint8)
    assert tuple(contrast_palette(pixels, ids)[1].tolist()) == shade


def test_each_class_has_a_shade_of_its_own_and_ignore_has_one():
    pixels = np.array([[0] * 3, [255] * 3, [255] * 3], np.uint8)
    chosen = contrast_palette(pixels, np.array([1, 2, 255], np.uint8))
    assert chosen[[1, 2, 255]].tolist() == [[191, 127, 127], [0, 64, 0], [224, 224, 192]]


def test_contour_separates_classes_from_one_another_and_from_the_background():
    mask = np.array([[0, 0, 1, 1, 3, 3]] * 2, np.uint8)
    light, dark = contour(mask)
    assert light[0].tolist() == [False, False, True, False, True, False]
    assert dark[0].tolist() == [False, True, False, True, False, False]


def test_overlay_shows_ignored_pixels_pale():
    np.testing.assert_array_equal(overlay(GREY, SQUARE * 255)[0, 0], [162, 162, 146])


def test_contact_sheet_places_image_mask_and_overlay_beside_one_another():
    sheet = np.asarray(contact_sheet([sample()], tile=80))
    row = sheet[MARGIN + 40]
    np.testing.assert_array_equal(row[MARGIN + 40], [100, 100, 100])
    np.testing.assert_array_equal(row[MARGIN + 84 + 40], [128, 0, 0])
    np.testing.assert_array_equal(row[MARGIN + 168 + 40], [82, 50, 50])
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


@pytest.mark.parametrize("text", ["dog " * 60, "d" * 200])
def test_contact_sheet_shows_all_of_a_long_caption_and_title(text):
    short, long, titled = (
        np.asarray(contact_sheet([sample(caption=caption)], tile=80, title=title))
        for caption, title in (("d", "d"), (text, "d"), ("d", text))
    )
    for sheet in (long, titled):
        assert sheet.shape[1] == short.shape[1] and sheet.shape[0] > short.shape[0] + 80
        assert (sheet[:, -MARGIN:] == 255).all()


def test_lines_of_a_caption_have_all_its_words_and_fit():
    font = ImageFont.load_default(15)
    for text in ("a photo of two dogs and a cat", "x" * 90, "in " + "y" * 50 + " z", "", "a\nb c"):
        lines = _wrap(text, font, 100)
        assert all(font.getlength(line) <= 100 for line in lines)
        assert "".join("".join(lines).split()) == "".join(text.split())
    assert _wrap("one two", font, 1000) == ["one two"]


def test_contact_sheet_names_ignored_pixels():
    names = {1: "cat"}
    one, two = (
        np.asarray(contact_sheet([sample(label=label)], tile=80, class_names=names))
        for label in (1, 255)
    )
    assert one.shape == two.shape
    key = two[MARGIN + 84 + 20 :]
    assert (key == PALETTE[255]).all(-1).sum() > 100


def test_a_legend_of_many_classes_takes_several_lines():
    image, mask, caption = sample()
    mask.ravel()[:30] = np.arange(1, 31)
    names = {k: f"class {k}" for k in range(1, 31)}
    sheet = np.asarray(contact_sheet([(image, mask, caption)], tile=80, class_names=names))
    assert (sheet[:, -MARGIN:] == 255).all()
    below = sheet[MARGIN + 84 + 20 :]
    for k in names:
        assert (below == PALETTE[k]).all(-1).sum() > 100, k


def test_contact_sheet_puts_a_title_above():
    untitled, titled = (contact_sheet([sample()], tile=80, title=t) for t in ("", "Dogs"))
    added = titled.height - untitled.height
    assert added > 0 and (np.asarray(titled)[:added] < 128).any()


def test_contact_sheet_puts_headings_above_the_pictures_that_they_name():
    row = (*sample(), [np.full((40, 40), 2, np.uint8)])
    plain, headed = (
        np.asarray(contact_sheet([row], tile=80, headings=headings))
        for headings in ((), ("", "", "", "a method with a long name"))
    )
    added = headed.shape[0] - plain.shape[0]
    np.testing.assert_array_equal(headed[MARGIN + added :], plain[MARGIN:])
    heading = headed[MARGIN : MARGIN + added, MARGIN:].min(-1) < 255
    assert heading[:, 3 * 84 :].any() and not heading[:, : 3 * 84].any()
    assert not heading[:, 4 * 84 :].any()


def test_contact_sheet_scales_landscape_pictures_by_their_longer_edge():
    image, label_map, caption = sample()
    sheet = np.asarray(contact_sheet([(image[:20], label_map[:20], caption)], tile=80))
    red = (sheet == [128, 0, 0]).all(-1)[:, : MARGIN + 84 + 80]
    assert red.any(1).sum() == 40 and red.any(0).sum() == 80


def test_contact_sheet_without_a_sample_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        contact_sheet([])


def test_a_labelled_overlay_names_the_shades_that_it_uses():
    image, mask, _ = sample(side=8)
    mask[:, :4] = 255
    drawn = np.asarray(labelled_overlay(image, mask, {1: "cat"}, tile=80))
    expected = overlay(image, mask).repeat(10, axis=0).repeat(10, axis=1)
    np.testing.assert_array_equal(drawn[:80], expected)
    below = {tuple(colour) for colour in drawn[80:].reshape(-1, 3).tolist()}
    assert {(64, 0, 0), (224, 224, 192)} <= below  # the dark red of class 1 on grey, and ignore
    plain = labelled_overlay(image, np.zeros_like(mask), {1: "cat"}, tile=80)
    np.testing.assert_array_equal(np.asarray(plain), image.repeat(10, 0).repeat(10, 1))
