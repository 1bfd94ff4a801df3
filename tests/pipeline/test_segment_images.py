"""Masks of given images, from Python."""

import dataclasses

import jax
import numpy as np
import pytest

from seediff_jax import (
    MaskConfig,
    SamplingConfig,
    SegmentConfig,
    generate_images,
    load_model,
    segment,
    soft_mask,
)
from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.pipeline.batch_size import is_measured
from seediff_jax.pipeline.memory import abstract_programs
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.segment_images import attend_images
from seediff_jax.pipeline.settings import PairSettings
from seediff_jax.pipeline.tiles import make_boxes
from tests.helpers.random_models import random_params, small_config

CONFIG = SegmentConfig(template="{classes}", timesteps=(100,))
KEEP_ALL = MaskConfig(min_presence=0.0)  # random weights know no class
CLASSES = [["b"], ["ox", "b"], ["cd"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("model") / "tokenizer")
    return make_model(config, random_params(config), model_id="small")


@pytest.fixture(scope="module")
def images():
    """Of the networks' size; of other proportions; with an edge above 24."""
    random = np.random.default_rng(0)
    return [
        random.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 16), (20, 23), (16, 40))
    ]


@pytest.fixture(scope="module")
def found(model, images):
    return segment(model, images, CLASSES, rng_seed=5, batch_size=2, config=CONFIG, masks=KEEP_ALL)


def _maps(model, image, prompt, names, index):
    """The attention of one image of the networks' size."""
    options = {"rng_seed": 5, "config": CONFIG}
    maps = attend_images(model, image[None], [prompt], [names], [index], **options).attention_maps
    levels = {side: leaf[0] for side, leaf in maps.self_attention.items()}
    return np.asarray(maps.cross_attention[0]), levels


def test_masks_are_those_of_the_kernels(model, images, found):
    cross, levels = _maps(model, images[0], "a b", ["b"], 0)
    soft = np.asarray(soft_mask(cross[..., 0], levels, 16))
    np.testing.assert_allclose(found[0].soft_masks[0], soft, atol=1e-4)
    np.testing.assert_array_equal(found[0].label_map, found[0].soft_masks[0] > 0.5)
    np.testing.assert_allclose(found[0].cross_attention, cross, atol=1e-5)


def test_each_image_has_its_classes_its_size_and_its_prompt(images, found):
    assert [pair.prompt for pair in found] == ["a b", "an ox and a b", "a cd"]
    assert [pair.classes for pair in found] == [("b",), ("ox", "b"), ("cd",)]
    for pair, image in zip(found, images, strict=True):
        size, c = image.shape[:2], len(pair.classes)
        assert pair.soft_masks.shape == (c, *size) and pair.label_map.shape == size
        assert 0 <= pair.soft_masks.min() and pair.soft_masks.max() <= 1
        assert pair.heat_map(pair.classes[-1]).shape == size
        assert pair.seed_counts.shape == (c,) and set(np.unique(pair.label_map)) <= {*range(c + 1)}
        np.testing.assert_array_equal(pair.image, image)


def test_an_image_is_the_same_in_another_batch(model, images, found):
    options = {"rng_seed": 5, "first_index": 1, "config": CONFIG, "masks": KEEP_ALL}
    (alone,) = segment(model, images[1:2], CLASSES[1:2], batch_size=1, **options)
    np.testing.assert_allclose(alone.soft_masks, found[1].soft_masks, atol=1e-4)


def test_tiles_are_segmented_one_by_one_and_joined(model, images, found):
    config = SegmentConfig(template="{classes}", timesteps=(100,), tile_side=24)
    options = {"rng_seed": 5, "masks": KEEP_ALL}
    tiled = segment(model, images, CLASSES, batch_size=2, config=config, **options)
    for k in (0, 1):  # no edge is above 24
        np.testing.assert_array_equal(tiled[k].soft_masks, found[k].soft_masks)
    boxes = make_boxes((16, 40), config)
    assert [box[1::2] for box in boxes] == [(0, 40), (0, 24), (16, 40)]
    crops = [found[2].soft_masks]
    for box in boxes[1:]:
        (of_crop,) = segment(
            model, [images[2][box.slices]], ["cd"], first_index=2, config=CONFIG, **options
        )
        crops.append(of_crop.soft_masks)
    expected = np.zeros((16, 40))
    weights = np.zeros((16, 40))
    for soft, box in zip(crops[1:], boxes[1:], strict=True):
        region = crops[0][0][box.slices]
        weight = np.outer(
            *(np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (16, 24))
        )
        expected[box.slices] += weight * (region.min() + np.ptp(region) * soft[0])
        weights[box.slices] += weight
    # The crops were resized to 16 x 16 for the networks, and their masks only once here.
    np.testing.assert_allclose(tiled[2].soft_masks[0], expected / weights, atol=1e-3)


@pytest.mark.parametrize("draws", [0, 2])
def test_the_whole_image_decides_which_classes_are_left_out_of_its_tiles(model, images, draws):
    config = SegmentConfig(template="{classes}", tile_side=24, presence_draws=draws)

    def masks(least):
        options = {"config": config, "masks": MaskConfig(min_presence=least)}
        return segment(model, images[2:], ["cd"], rng_seed=6, **options)[0]

    everything = masks(0.0)
    (presence,) = everything.presence
    assert 0 < presence < 1 and everything.soft_masks.any()
    np.testing.assert_array_equal(masks(float(presence)).soft_masks, everything.soft_masks)
    assert not masks(float(np.nextafter(presence, 2))).soft_masks.any()


def test_several_methods_share_the_attention_and_each_is_that_of_it_alone(model, images):
    options = {"rng_seed": 5, "batch_size": 2}
    options["config"] = SegmentConfig(template="{classes}", timesteps=(100,), tile_side=24)
    methods = ("cross_attention", "seediff")
    masks = MaskConfig(method=methods, threshold=0.4, min_presence=0.0)
    together = segment(model, images, CLASSES, masks=masks, **options)
    singles = (
        segment(model, images, CLASSES, masks=dataclasses.replace(masks, method=name), **options)
        for name in methods
    )
    for pair, *alone in zip(together, *singles, strict=True):
        assert list(pair.other_methods) == ["seediff"]
        for found, wanted in zip((pair, pair.other_methods["seediff"]), alone, strict=True):
            assert (found.prompt, found.classes) == (wanted.prompt, wanted.classes)
            np.testing.assert_allclose(found.soft_masks, wanted.soft_masks, atol=1e-4)
            is_clear = (np.abs(wanted.soft_masks - 0.4) > 1e-3).all(axis=0)
            np.testing.assert_array_equal(found.label_map[is_clear], wanted.label_map[is_clear])
            np.testing.assert_allclose(found.presence, wanted.presence, atol=1e-4)
            np.testing.assert_array_equal(found.seed_counts, wanted.seed_counts)
            assert not wanted.other_methods
        assert np.abs(pair.soft_masks - pair.other_methods["seediff"].soft_masks).max() > 0.1
        assert pair.picture().width > 1.2 * alone[0].picture().width


def test_masks_that_are_not_finite_are_told(model, images):
    def broken(cross_attention, self_attention, image_side):
        field = jax.numpy.zeros(image_side) + cross_attention.mean()
        # Finite on the attention of the trial, whose mean is 0.5; that of the model is 0.2.
        return jax.numpy.where(field > 0.35, 0.5, jax.numpy.nan)

    with pytest.raises(FloatingPointError, match=r"soft masks of the samples \[0\] are not finite"):
        segment(model, images[:1], ["b"], config=CONFIG, masks=MaskConfig(method=broken))


def test_an_array_of_images_and_one_list_of_classes_are_taken(model, images):
    stacked = np.stack([images[0], images[0][:, ::-1]])
    config = SegmentConfig(template="{classes}", mirror=True, timesteps=(100, 200))
    masks = MaskConfig(method="cross_attention", min_presence=0.0)
    first, _ = segment(model, stacked, ["b", "ox"], config=config, masks=masks)
    (other,) = segment(model, stacked[1:], ["b", "ox"], config=config, masks=masks)
    assert first.classes == ("b", "ox")
    # The same index, hence the same noise: the mirrored image has the mirrored mask.
    np.testing.assert_allclose(other.soft_masks[..., ::-1], first.soft_masks, atol=1e-3)
    np.testing.assert_allclose(other.presence, first.presence, atol=1e-2)  # small differences


@pytest.mark.parametrize(
    ("images", "classes", "options", "message"),
    [
        ([np.zeros((8, 8), np.uint8)], ["b"], {}, r"image 0 is uint8 of shape \[8, 8\]"),
        ([np.zeros((8, 8, 3))], ["b"], {}, "image 0 is float64 of shape"),
        ([np.zeros((0, 8, 3), np.uint8)], ["b"], {}, r"of shape \[0, 8, 3\]"),
        ([np.zeros((8, 8, 3), np.uint8)], "b", {}, "classes='b' must be a list of names"),
        ([np.zeros((8, 8, 3), np.uint8)], [], {}, "the list of classes is empty"),
        ([np.zeros((8, 8, 3), np.uint8)], [["b"], ["c"]], {}, "1 images but 2 lists of classes"),
        ([np.zeros((8, 8, 3), np.uint8)], [["b", "b"]], {}, "are the same name"),
        ([np.zeros((8, 8, 3), np.uint8)], ["b"], {"batch_size": 0}, "batch_size=0 must be 1 or"),
        ([np.zeros((8, 8, 3), np.uint8)], ["b"], {"config": SegmentConfig(height=17)}, "height=17"),
        ([np.zeros((8, 8, 3), np.uint8)], ["a long name"], {}, "beyond the last|too long|tokens"),
    ],
)
def test_what_cannot_be_segmented_is_refused(model, images, classes, options, message):
    options = {"config": CONFIG} | options
    with pytest.raises(UserError, match=message):
        segment(model, images, classes, **options)


def test_a_batch_of_images_is_lowered_from_shapes_alone(model):
    settings = PairSettings(sampling=SegmentConfig(mirror=True))
    programs = abstract_programs(make_mesh(devices=jax.devices()[:2]), model, 4, settings)
    assert "2x16x16x3xui8" in programs.sample.as_text()  # two images on each device
    assert not is_measured(model, settings)


def test_no_images_give_no_masks(model):
    assert segment(model, [], ["b"], config=CONFIG) == []


@pytest.fixture(scope="module")
def drawn():
    """The embedded model, and what it drew: a cat, and a dog with a bus that hardly shows."""
    model = load_model("stickers")
    prompts = ["a photo of a cat", "a photo of a bus and a dog"]
    sampling = SamplingConfig(num_steps=20)
    return model, np.asarray(generate_images(model, prompts, rng_seed=4, sampling=sampling))


NAMES = ["cat", "bus", "boat", "chair"]


def test_classes_of_one_list_that_an_image_does_not_show_have_no_pixels(drawn):
    model, images = drawn
    one, two = segment(model, images, NAMES, rng_seed=1)
    assert one.presence[0] > 0.5 and (one.presence[1:] < 0.2).all()
    assert {*np.unique(one.label_map)} == {0, 1}
    assert (two.presence < 0.2).all() and not two.label_map.any()


def test_classes_of_a_list_for_each_image_all_have_pixels(drawn):
    model, images = drawn
    (pair,) = segment(model, images[:1], [NAMES], rng_seed=1)
    assert {*np.unique(pair.label_map)} == {0, 1, 2, 3, 4}
    config = SegmentConfig(presence_draws=0)
    (again,) = segment(model, images[:1], NAMES, rng_seed=1, config=config)
    np.testing.assert_array_equal(again.label_map, pair.label_map)
    np.testing.assert_array_equal(again.presence, pair.presence)
