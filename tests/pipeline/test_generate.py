"""generate(): the stages composed, ragged classes, compilations, and errors at the door."""

import dataclasses
import inspect
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import seediff_jax
from seediff_jax.checkpoints.load import make_model
from seediff_jax.masks.config import MaskConfig, Thresholds
from seediff_jax.masks.image_ops import min_max
from seediff_jax.masks.label_maps import label_map, make_masks
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.masks.refinement import refine
from seediff_jax.masks.seeds import find_seeds, seed_map
from seediff_jax.models.capture import NO_CAPTURE
from seediff_jax.pipeline.generate import generate, generate_images
from seediff_jax.pipeline.method_check import require_capture
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import ClassColumns, ClassLists
from tests.helpers.random_models import LENGTH, quick_jit, random_params, small_config
from tests.helpers.settings import split_options

PROMPTS = ["a cat", "a dog, a cat"]
CLASSES = [["cat"], ["dog", "cat"]]
STEPS = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return make_model(config, random_params(config), model_id="random")


def run(model, prompts=PROMPTS, classes=CLASSES, **options):
    """generate(), with every option given to what it is of."""
    options = split_options({"num_steps": STEPS} | options)
    lists = {name: options.pop(name) for name in ("unnamed", "num_classes") if name in options}
    return generate(model, prompts, ClassLists(classes, **lists) if lists else classes, **options)


@pytest.fixture(scope="module")
def pairs(model):
    return run(model)


def masks(pairs, threshold, uncertain, refined_threshold=0.8, **options):
    values = [np.float32(value) for value in (threshold, uncertain, refined_threshold)]
    options = {"config": MaskConfig()} | options
    return make_masks(pairs.images, pairs.attention_maps, Thresholds(*values), **options)


def test_pairs_know_their_prompts_and_classes(pairs, model):
    assert [pair.prompt for pair in pairs] == PROMPTS
    assert [list(pair.classes) for pair in pairs] == CLASSES
    assert pairs[0].soft_masks.shape == (1, 16, 16) and pairs[1].soft_masks.shape == (2, 16, 16)
    assert len(repr(pairs)) < 100


def test_images_and_masks_have_the_documented_form(pairs):
    assert pairs.images.shape == (2, 16, 16, 3) and pairs.images.dtype == jnp.uint8
    assert pairs.soft_masks.shape == (2, 2, 16, 16) and pairs.soft_masks.dtype == jnp.float32
    assert pairs.label_maps.shape == (2, 16, 16) and pairs.label_maps.dtype == jnp.uint8
    assert pairs.seed_counts.shape == (2, 2) and pairs.seed_counts.dtype == jnp.int32
    assert pairs.attention_maps.cross_attention.shape == (2, 3, 64, 2)
    assert pairs.images.astype(jnp.float32).std() > 20


def test_a_class_attends_as_the_tokens_that_spell_it(pairs):
    """Every letter is a token of the small model; the first is the start token."""
    assert pairs.token_attention.shape == (2, 3, 64, LENGTH)
    pair = pairs[1]
    assert pair.prompt == "a dog, a cat" and pair.token_positions("dog") == (2, 3, 4)
    tokens = pair.token_attention[..., [2, 3, 4]].mean(axis=-1)
    np.testing.assert_allclose(pair.cross_attention[..., 0], tokens, rtol=0, atol=1e-5)
    np.testing.assert_allclose(pair.heat_map("dog"), pair.heat_map("dog", 0), rtol=0, atol=1e-4)
    assert pair.token_positions("a") == (1, 6)
    # The heads are summed, of which there are 2, and each attends with a weight of 1.
    np.testing.assert_allclose(pair.token_attention.sum(axis=-1), 2, rtol=1e-5)


def test_another_method_needs_no_other_sampling(model, pairs, monkeypatch):
    expected = run(model, method="exponentiation", threshold=0.3)
    monkeypatch.setattr(seediff_jax.pipeline.generate, "_sample", None)
    other = pairs.remask(MaskConfig(method="exponentiation", threshold=0.3))
    for name in ("images", "label_maps", "soft_masks", "seed_counts", "token_attention"):
        np.testing.assert_array_equal(getattr(other, name), getattr(expected, name))


@pytest.mark.parametrize("again", [False, True])
def test_several_methods_share_the_attention_and_each_is_that_of_it_alone(model, pairs, again):
    methods = ("exponentiation", "seediff", "cross_attention")
    config = MaskConfig(method=methods)
    together = pairs.remask(config) if again else run(model, method=methods)
    assert [*together.other_methods] == ["seediff", "cross_attention"]
    for name, found in {"exponentiation": together, **together.other_methods}.items():
        wanted = pairs.remask(MaskConfig(method=name))
        for leaf in ("images", "label_maps", "soft_masks", "seed_counts", "presence"):
            np.testing.assert_array_equal(getattr(found, leaf), getattr(wanted, leaf))
        assert not wanted.other_methods
    for k, pair in enumerate(together):
        other = pair.other_methods["seediff"]
        np.testing.assert_array_equal(other.label_map, pairs.label_maps[k])
        assert (other.prompt, other.classes) == (pair.prompt, pair.classes)
    assert np.abs(together.soft_masks - pairs.soft_masks).max() > 0.1
    assert not together.remask().other_methods


def test_masks_are_those_of_each_class_and_image_alone(pairs):
    @quick_jit
    def one_class(cross, own):
        seeds = find_seeds(seed_map(cross))
        return class_soft_mask(cross, own, 16, MaskConfig()), jnp.sum(seeds)

    for i, names in enumerate(CLASSES):
        own = {side: levels[i] for side, levels in pairs.attention_maps.self_attention.items()}
        for k in range(len(names)):
            cross = pairs.attention_maps.cross_attention[i, ..., k]
            soft, count = one_class(cross, own)
            np.testing.assert_allclose(pairs.soft_masks[i, k], soft, rtol=0, atol=1e-5)
            assert pairs.seed_counts[i, k] == count > 0
        np.testing.assert_array_equal(pairs.label_maps[i], label_map(pairs.soft_masks[i], 0.5))
    assert set(np.unique(pairs.label_maps[1])) == {0, 1, 2}


@pytest.mark.parametrize("method", ["seediff", "cross_attention", "exponentiation"])
def test_the_padding_of_a_shorter_list_of_classes_is_empty_and_never_labelled(pairs, method):
    config = MaskConfig(method=method)
    soft_masks, label_maps, seed_counts, presence = masks(pairs, 0, 0, config=config)
    assert not soft_masks[0, 1].any() and not seed_counts[0, 1] and not presence[0, 1]
    # r / r is 1, which was measured; r * (1 / r), which a compiler may make of it, is so to a unit.
    highest = soft_masks[[0, 1], [0, 1]].max(axis=(1, 2))
    np.testing.assert_allclose(highest, 1, rtol=0, atol=np.finfo(np.float32).eps)
    assert set(np.unique(label_maps[0])) <= {0, 1}


def test_each_sample_is_the_one_of_its_index(model, pairs):
    others = run(model, PROMPTS[::-1], CLASSES[::-1], first_index=1)
    assert_images_alike(others.images[0], pairs.images[1])
    np.testing.assert_allclose(others.soft_masks[0], pairs.soft_masks[1], rtol=0, atol=1e-3)


def test_images_alone_are_those_of_the_pairs(model, pairs):
    assert_images_alike(
        generate_images(model, PROMPTS, sampling=SamplingConfig(num_steps=STEPS)), pairs.images
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_up_to_a_scale_of_1_the_prompt_alone_makes_the_image(model, pairs, scale):
    def images(scale):
        sampling = SamplingConfig(num_steps=STEPS, guidance_scale=scale)
        return generate_images(model, PROMPTS, sampling=sampling)

    # The guided program, whose weight of the negative prompt is next to nothing.
    assert_images_alike(images(scale), images(1 + 1e-6))


def assert_images_alike(got, expected):
    """Another order of sums may round a colour to its neighbour."""
    assert np.abs(np.asarray(got, int) - np.asarray(expected, int)).max() <= 1


def test_other_prompts_seeds_guidance_and_thresholds_compile_nothing(model, pairs, caplog):
    first = np.asarray(pairs.images)
    with caplog.at_level(logging.WARNING, "jax"), jax.log_compiles():
        changed = [
            run(model, ["a cow", "a hen, a pig"], [["cow"], ["hen", "pig"]]),
            run(model, rng_seed=2**32 - 1),
            run(model, first_index=2**31 - 2),
            run(model, guidance_scale=3),
            run(model, negative_prompt="a red cup"),
            run(model, ["a cow", "a hen"], [["cow"], ["hen"]], num_classes=2),
        ]
        run(model, threshold=0.3, uncertain=0.1)
        messages = [record.message for record in caplog.records]
        assert not any("ompil" in message for message in messages), messages
        jax.jit(lambda x: x + 1)(np.float32(1))
        assert any("ompil" in record.message for record in caplog.records)
    for other in changed:
        assert np.abs(np.asarray(other.images).astype(int) - first.astype(int)).max() > 20


def test_thresholds_are_the_published_ones_of_the_method(model, pairs):
    config = MaskConfig(method="exponentiation")
    published = run(model, method=config.method)
    np.testing.assert_array_equal(published.label_maps, masks(pairs, 0.6, 0.5, config=config)[1])
    assert (published.label_maps == 255).any()
    own = run(model, method=config.method, threshold=0.6)
    assert not (own.label_maps == 255).any()


def test_uncertain_pixels_are_ignored(model, pairs):
    label_maps = np.asarray(run(model, threshold=0.6, uncertain=0.4).label_maps)
    largest = np.asarray(pairs.soft_masks).max(axis=1)
    assert ((largest >= 0.4) & (largest < 0.6)).any()
    np.testing.assert_array_equal(label_maps == 255, (largest >= 0.4) & (largest < 0.6))
    np.testing.assert_array_equal((label_maps > 0) & (label_maps < 255), largest > 0.6)


def test_refinement_takes_the_binary_masks_and_the_published_threshold(model, pairs):
    refined = run(model, refine_iterations=5, dilations=[1, 2])

    @quick_jit
    def refine_one(image, binary):
        return min_max(refine(image, binary, iterations=5, dilations=(1, 2)))

    for i in range(2):
        for k in range(2):
            binary = (pairs.label_maps[i] == k + 1).astype(jnp.float32)
            soft = refine_one(pairs.images[i], binary)
            np.testing.assert_allclose(refined.soft_masks[i, k], soft, rtol=0, atol=1e-5)
        expected = label_map(refined.soft_masks[i], 0.8)
        np.testing.assert_array_equal(refined.label_maps[i], expected)
    assert (refined.label_maps != pairs.label_maps).any()


def test_values_that_are_not_finite_are_said_with_stage_and_sample(model):
    params = flatten_dict(model.params)
    path = ("unet", "conv_out", "bias")
    broken = unflatten_dict(params | {path: params[path] * np.float32(np.inf)})
    with pytest.raises(FloatingPointError, match=r"latents of the samples \[5, 6\]"):
        run(model.replace(params=broken), first_index=5)


ERRORS = {
    "at least one text": {"prompts": []},
    "got 2 prompts but 1 lists of classes; one list per prompt": {"classes": [["cat"]]},
    "'cow'": {"classes": [["cow"], ["cat"]]},
    "first word that is lost": {"negative_prompt": "far too many words"},
    "num_steps=0 must be a whole number in 1..10000": {"num_steps": 0},
    "num_steps=1001 must lie in 1..1000": {"num_steps": 1001},
    "guidance_scale=nan must be a finite number of at least 0": {"guidance_scale": float("nan")},
    "guidance_scale=-1 must be a finite number of at least 0": {"guidance_scale": -1},
    "rng_seed=-1 must be a whole number in 0..4294967295": {"rng_seed": -1},
    "first_index=2147483647 must": {"first_index": 2**31 - 1},
    "threshold=1.5 must be a finite number in 0..1": {"threshold": 1.5},
    "threshold=nan must": {"threshold": float("nan")},
    "refined_threshold=-1 must": {"refine_iterations": 1, "refined_threshold": -1},
    "uncertain=0.6 must lie in 0..0.5, the threshold": {"uncertain": 0.6},
    "refine_iterations=-1 must": {"refine_iterations": -1},
    "num_classes=1, but a prompt has 2 classes": {"num_classes": 1},
    "dilations=0 must be a whole number in 1..16384": {"dilations": [0]},
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input_is_refused_before_anything_is_sampled(model, message, monkeypatch):
    monkeypatch.setattr(seediff_jax.pipeline.generate, "require_finite", None)
    with pytest.raises(ValueError, match=message):
        run(model, **ERRORS[message])


def test_a_model_that_records_nothing_is_refused_before_sampling(model):
    with pytest.raises(ValueError, match="capture has no cross_layers"):
        run(model.with_config(capture=NO_CAPTURE))


def test_cross_attention_alone_makes_the_masks_of_its_method_and_no_others(model, pairs):
    alone = model.with_config(capture=dataclasses.replace(model.capture, self_layers=()))
    with pytest.raises(ValueError, match="no self_layers; masks by 'seediff' need at least one"):
        run(alone)
    require_capture(alone, "cross_attention")
    method = MaskConfig(method="cross_attention")
    expected = masks(pairs, 0.5, 0.5, config=method)
    maps = pairs.attention_maps.replace(self_attention={})
    got = masks(pairs.replace(attention_maps=maps), 0.5, 0.5, config=method)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_more_classes_than_labels_are_refused_before_sampling(model, monkeypatch):
    too_many = np.zeros((1, 255, 12), bool)
    columns = ClassColumns(too_many)
    monkeypatch.setattr(seediff_jax.sampling.inputs, "class_columns", lambda *unused: columns)
    with pytest.raises(ValueError, match="255 classes, but a label map holds at most 254"):
        run(model, ["a cat"], [["cat"]])


def test_generate_has_few_parameters_and_images_alone_take_no_other():
    pairs, images = (inspect.signature(made).parameters for made in (generate, generate_images))
    assert len(pairs) <= 8
    assert [*images] == [name for name in pairs if name not in ("classes", "masks")]


def test_every_public_name_exists():
    assert [name for name in seediff_jax.__all__ if not hasattr(seediff_jax, name)] == []


def test_unnamed_classes_follow_the_others_and_change_no_image(model, pairs):
    more = run(model, unnamed=[["hen"], []])
    np.testing.assert_array_equal(more.images, pairs.images)
    assert more.soft_masks.shape[1] == 2
    cross, before = (p.attention_maps.cross_attention for p in (more, pairs))
    np.testing.assert_allclose(cross[0, ..., 0], before[0, ..., 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cross[1], before[1], rtol=0, atol=1e-5)
    assert before[0, ..., 1].max() == 0 and cross[0, ..., 1].std() > 0.01
    alone = run(model, ["a cat"], [[]], unnamed=[["hen"]])
    np.testing.assert_allclose(
        alone.attention_maps.cross_attention[0, ..., 0], cross[0, ..., 1], rtol=0, atol=1e-4
    )
