"""Strips of the method: single pixels of each picture, captions and the colour bar."""

import numpy as np
import pytest

from seediff_jax.dataset.pictures import HEAT, MARGIN, PAPER, overlay
from seediff_jax.dataset.strips import ClassStages, method_strip, stage_pictures

IMAGE = np.full((8, 8, 3), 100, np.uint8)
MASK = np.zeros((8, 8), np.uint8)
MASK[4:, :4], MASK[4:, 4:] = 1, 2


def stages(**changes):
    given = {
        "name": "cat",
        "label": 1,
        "seed_map": np.array([1, 0.5, 0.25, 0], np.float32),
        "seeds": np.array([True, False, False, False]),
        "levels": [np.eye(2, dtype=np.float32), np.ones((4, 4), np.float32)],
    }
    return ClassStages(**given | changes)


def test_pictures_are_image_seeds_levels_and_the_mask_of_one_class():
    named = stage_pictures(IMAGE, MASK, stages())
    captions = ["image", "seeds: 1 of 4", "level 2 x 2", "level 4 x 4", "mask"]
    assert [caption for caption, _ in named] == captions
    image, seeds, coarse, fine, mask = (picture for _, picture in named)
    np.testing.assert_array_equal(image, IMAGE)
    # Cells of 4 x 4 pixels: 1, 0.5 / 0.25, 0 are colours of HEAT; lines are around the seed.
    colours = [seeds[y, x].tolist() for y, x in ((0, 0), (0, 7), (7, 0), (7, 7))]
    assert colours == HEAT[[4, 2, 1, 0]].tolist()
    assert (seeds[:4, 3] == 255).all() and (seeds[3, :4] == 255).all()
    assert (seeds[:4, 4] == 0).all() and (seeds[4, :4] == 0).all()
    assert coarse[0, 0].tolist() == HEAT[-1].tolist() and coarse[0, 7].tolist() == HEAT[0].tolist()
    assert (fine == HEAT[-1]).all()
    np.testing.assert_array_equal(mask, overlay(IMAGE, np.where(MASK == 1, MASK, 0)))


def test_a_soft_mask_of_the_size_of_the_image_is_called_so():
    named = stage_pictures(IMAGE, MASK, stages(levels=[np.zeros((8, 8), np.float32)]))
    assert named[2][0] == "soft mask"


def test_an_image_that_is_no_square_has_cells_of_its_proportions():
    image, mask = np.zeros((4, 8, 3), np.uint8), np.zeros((4, 8), np.uint8)
    seed_map = np.arange(8, dtype=np.float32) / 7
    named = stage_pictures(image, mask, stages(seed_map=seed_map, seeds=seed_map > 2, levels=[]))
    (_, seeds) = named[1]
    assert seeds.shape == (4, 8, 3) and len(np.unique(seeds.reshape(-1, 3), axis=0)) == 8


def test_the_strip_has_all_pictures_in_a_row_with_name_captions_and_colour_bar():
    strip = np.asarray(method_strip(IMAGE, MASK, stages(), tile=64))
    top = 2 * 14
    assert strip.shape[0] == 64 + 2 * top
    pictures = [strip[top : top + 64, k * (64 + MARGIN) :][:, :64] for k in range(5)]
    for (_, expected), got in zip(stage_pictures(IMAGE, MASK, stages()), pictures, strict=True):
        np.testing.assert_array_equal(got, expected.repeat(8, axis=0).repeat(8, axis=1))
    bar = strip[top : top + 64, 5 * (64 + MARGIN)]
    assert bar[0].tolist() == HEAT[-1].tolist() and bar[-1].tolist() == HEAT[0].tolist()
    assert (strip[:top, :64] != PAPER).any() and (strip[top + 64 :, :64] != PAPER).any()


def test_the_name_of_the_class_is_drawn():
    one, other = (np.asarray(method_strip(IMAGE, MASK, stages(name=n))) for n in ("cat", "dog"))
    differs = (one != other).any(axis=(1, 2))
    assert differs.any() and not differs[2 * 18 :].any()


def test_seeds_that_fill_no_grid_are_refused():
    with pytest.raises(ValueError, match="5 locations do not form a grid"):
        stage_pictures(IMAGE, MASK, stages(seeds=np.zeros(5, bool)))
