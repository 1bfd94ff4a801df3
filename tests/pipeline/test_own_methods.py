"""Methods of one's own: a function, or its name, makes the masks; a bad one is refused at once."""

import dataclasses
import hashlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.masks.own_methods import own_method_sources
from seediff_jax.pipeline import generate as generate_module
from seediff_jax.pipeline.generate import generate
from seediff_jax.pipeline.method_check import require_method
from seediff_jax.sampling.config import SamplingConfig
from tests.helpers.random_attention import random_attention
from tests.helpers.random_models import random_params, small_config

SAMPLING = SamplingConfig(num_steps=2)


def share_of_the_mean(cross_attention, self_attention, image_side):
    """The mean of the layers as a share of its largest value, as squares of pixels."""
    height, width = image_side
    mean = cross_attention.mean(axis=0)
    side = int(len(mean) ** 0.5)
    field = (mean / mean.max()).reshape(side, side)
    return jnp.repeat(jnp.repeat(field, height // side, axis=0), width // side, axis=1)


def of_options(cross_attention, self_attention, image_side, *, power=3, affinity, offset=0.25):
    """A constant that tells which options came."""
    return jnp.full(image_side, offset + power / 100 + (affinity == "transition") / 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return make_model(config, random_params(config), model_id="random")


def test_masks_are_made_by_a_function_and_padding_stays_empty(model):
    pairs = generate(
        model,
        ["a cat", "a dog, a cat"],
        [["cat"], ["dog", "cat"]],
        sampling=SAMPLING,
        masks=MaskConfig(method=share_of_the_mean, threshold=0.9),
    )
    cross = np.asarray(pairs.attention_maps.cross_attention)
    for i, count in enumerate((1, 2)):
        mean = cross[i].mean(axis=0)[:, :count]
        expected = (mean / mean.max(axis=0)).T.reshape(count, 8, 8)
        expected = np.kron(expected, np.ones((1, 2, 2), np.float32))
        # float32 means and quotients, in another order
        np.testing.assert_allclose(pairs.soft_masks[i, :count], expected, rtol=1e-6)
        labels = np.where(expected.max(axis=0) > 0.9, expected.argmax(axis=0) + 1, 0)
        assert np.mean(np.asarray(pairs.label_maps[i]) == labels) >= 0.999 and labels.any()
    # The function makes NaN of the column of zeros.
    assert not pairs.soft_masks[0, 1].any()


def test_a_function_is_found_by_its_name_in_the_working_directory(tmp_path, monkeypatch):
    source = "import cv2\nclass Masks:\n    def mean(cross, own, size):\n        return 1\n"
    (tmp_path / "methods_of_a_test.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    method = "methods_of_a_test:Masks.mean"
    expected = hashlib.sha256(source.encode()).hexdigest()
    assert own_method_sources([method]) == {"mask_method_sha256": {method: expected}}
    with pytest.raises(UserError, match=r"Masks.mean returns int \[\]; expected float32 \[8, 8\]"):
        class_soft_mask(jnp.ones((1, 4)), {}, 8, MaskConfig(method=method))


def test_a_function_by_its_name_gives_the_same_mask():
    cross_attention, self_attention = random_attention(0, (8, 16), num_objects=1)
    arguments = (jnp.asarray(cross_attention[..., 0]), self_attention, (64, 32))
    by_name = MaskConfig(method=f"{__name__}:share_of_the_mean")
    got = class_soft_mask(*arguments, by_name)
    np.testing.assert_array_equal(got, share_of_the_mean(*arguments))
    mean = cross_attention[..., 0].mean(axis=0).reshape(8, 8)
    nearest = cv2.resize(mean / mean.max(), (32, 64), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_allclose(got, nearest, rtol=1e-6)  # the mean, in another order


@pytest.mark.parametrize(
    ("options", "value"),
    [({}, 0.28), ({"power": 7}, 0.32), ({"affinity": "transition", "threshold": 0.1}, 0.78)],
    ids=str,
)
def test_keyword_only_parameters_get_the_settings_of_their_names(options, value):
    config = MaskConfig(method=of_options, **options)
    got = class_soft_mask(jnp.ones((1, 4)), {}, (2, 2), config)
    np.testing.assert_allclose(got, np.full((2, 2), value), rtol=1e-6)


def one_argument(cross_attention):
    return cross_attention


def one_more_argument(cross_attention, self_attention, image_side, classes):
    return jnp.zeros(image_side)


def python_branch(cross_attention, self_attention, image_side):
    return jnp.zeros(image_side) if cross_attention.max() > 1 else jnp.ones(image_side)


def small(cross_attention, self_attention, image_side):
    return jnp.zeros((4, 4))


def whole_numbers(cross_attention, self_attention, image_side):
    return jnp.zeros(image_side, jnp.int32)


def not_finite(cross_attention, self_attention, image_side):
    return jnp.log(jnp.zeros(image_side))


def too_large(cross_attention, self_attention, image_side):
    return jnp.full(image_side, 255.0)


def other_level(cross_attention, self_attention, image_side):
    return self_attention[7]


BAD = {
    "one_argument() takes 1 positional argument but 3 were given": one_argument,
    "missing 1 required positional argument: 'classes'": one_more_argument,
    "TracerBoolConversionError": python_branch,
    "small returns float32 [4, 4]; expected float32 [16, 16]": small,
    "whole_numbers returns int32 [16, 16]": whole_numbers,
    "values from -inf to -inf": not_finite,
    "values from 255 to 255": too_large,
    "KeyError: 7": other_level,
    "method=nowhere_to_be_found:mask cannot be imported: ModuleNotFoundError": (
        "nowhere_to_be_found:mask"
    ),
    "method=json:mask cannot be imported: AttributeError": "json:mask",
    "method=json:__name__ is not a function: 'json'": "json:__name__",
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_method_is_one_line_before_anything_is_sampled(model, message, monkeypatch):
    monkeypatch.setattr(generate_module, "_sample", None)
    without_weights = model.replace(params={})
    with pytest.raises(UserError) as caught:
        masks = MaskConfig(method=BAD[message])
        generate(without_weights, ["a cat"], [["cat"]], sampling=SAMPLING, masks=masks)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("seedif", "method=seedif is not one of seediff, .*; did you mean seediff?"),
        ("json.dumps", "nor package.module:function"),
        (":mask", "nor package"),
        (7, "method=7 is not one of"),
        (None, "method=None is not"),
    ],
)
def test_what_is_neither_a_function_nor_a_name_is_refused_by_the_config(method, message):
    with pytest.raises(UserError, match=message):
        MaskConfig(method=method)


def test_masks_of_real_attention_that_are_not_finite_are_said(model):
    def nan_of_small_attention(cross_attention, self_attention, image_side):
        # Random attention has a mean of a half; of 2 heads and 12 tokens it is a sixth.
        return jnp.full(image_side, jnp.where(cross_attention.mean() > 0.3, 1, jnp.nan))

    with pytest.raises(FloatingPointError, match=r"samples \[5\] by .*nan_of_small_attention"):
        masks = MaskConfig(method=nan_of_small_attention)
        generate(model, ["a cat"], [["cat"]], first_index=5, sampling=SAMPLING, masks=masks)


def test_another_function_of_the_same_name_is_another_method(model):
    def make(value):
        return lambda cross_attention, self_attention, image_side: jnp.full(image_side, value)

    cross = jnp.ones((1, 4))
    for value in (0.25, 0.75):
        masks = MaskConfig(method=make(value))
        run = jax.jit(class_soft_mask, static_argnums=(2, 3))
        np.testing.assert_array_equal(run(cross, {}, (2, 2), masks), np.full((2, 2), value))


def test_a_method_of_cross_attention_alone_needs_no_other_layers(model):
    alone = model.with_config(capture=dataclasses.replace(model.capture, self_layers=()))
    require_method(alone, MaskConfig(method=share_of_the_mean), SAMPLING)


def test_a_function_without_a_file_cannot_be_recorded():
    namespace = {}
    exec("def made(cross, own, side): pass", namespace)
    namespace["made"].__module__ = "nowhere"
    with pytest.raises(UserError, match="nowhere:made has no source file"):
        own_method_sources([namespace["made"]])
    assert own_method_sources(["seediff"]) == {}
