"""The scenes and the vocabulary of the embedded model "shapes"."""

import cv2
import numpy as np
import pytest

from experiments.shapes import recipe
from experiments.shapes.render import class_hue, hsv_to_rgb, read_label_map, render_scene
from experiments.training.networks import MAX_TOKENS
from experiments.training.vocabulary import END, write_tokenizer
from seediff_jax.prompts.class_lists import SHAPES_CLASSES
from seediff_jax.prompts.tokenizer import class_token_mask, load_tokenizer


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("seed", range(12))
def test_the_label_map_read_from_colours_agrees_with_the_exact_mask(seed):
    scene = render_scene(seed)
    read = read_label_map(scene.image, scene.classes)
    for name in scene.classes:
        k = SHAPES_CLASSES.index(name) + 1
        # Only antialiased border pixels may differ: a thin crescent's border is 4 % of its area.
        assert _iou(read == k, scene.label_map == k) > 0.95


def test_a_scene_depends_on_its_seed_alone():
    np.testing.assert_array_equal(render_scene(5).image, render_scene(5).image)
    assert (render_scene(5).image != render_scene(6).image).any()


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_caption_names_exactly_the_objects_in_the_mask(count, seed):
    scene = render_scene(seed, num_objects=count)
    in_mask = {SHAPES_CLASSES[k - 1] for k in np.unique(scene.label_map) if k}
    assert in_mask == {word for word in scene.caption.split() if word in SHAPES_CLASSES}
    assert len(in_mask) == count


@pytest.mark.parametrize("name", SHAPES_CLASSES)
def test_every_shape_has_one_piece_inside_the_image(name):
    k = SHAPES_CLASSES.index(name)
    scene = next(
        s for s in (render_scene(i, num_objects=1) for i in range(200)) if s.classes == (name,)
    )
    mask = (scene.label_map == k + 1).astype(np.uint8)
    assert cv2.connectedComponents(mask)[0] == 2
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    # Between the thinnest small shape and the largest square that fits: 4 % and 45 % of the image.
    assert 0.04 < mask.mean() < 0.45


def test_hues_agree_with_opencv():
    hues = np.array([class_hue(k) for k in range(8)])
    ours = hsv_to_rgb(hues, np.full(8, 0.8), np.full(8, 0.7))
    hsv = np.stack([hues * 360, np.full(8, 0.8), np.full(8, 0.7)], -1).astype(np.float32)
    theirs = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_every_word_of_a_caption_is_one_token(tmp_path):
    vocabulary = write_tokenizer(tmp_path, recipe.WORDS, MAX_TOKENS)
    tokenizer = load_tokenizer(tmp_path)
    captions = [render_scene(seed, side=32).caption for seed in range(100)]
    for caption, row in zip(captions, tokenizer.encode(captions), strict=True):
        assert (row != vocabulary[END]).sum() == 1 + len(caption.split())
    mask = class_token_mask(tokenizer, ["a photo of a ring and a cross"], [["cross", "ring"]])
    assert [np.flatnonzero(row).tolist() for row in mask[0]] == [[8], [5]]
