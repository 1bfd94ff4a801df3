"""Attention of every UNet call and head, kept for small runs, against the averages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.checkpoints.diffusers_folder import write_model_config
from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.models.model import encode_text, predict_noise
from seediff_jax.pipeline.generate import generate
from seediff_jax.pipeline.segment_images import segment
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import pair_inputs, with_token_columns
from seediff_jax.sampling.noise import initial_latents
from seediff_jax.sampling.sampler import sample
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.schedulers.step import make_steps
from tests.helpers.random_models import LENGTH, one_level_config, quick_jit, random_params

PROMPTS, CLASSES, HEADS, CALLS = ["a cat", "a dog, a cat"], [["cat"], ["dog", "cat"]], 2, 4
SELF, CROSS, MID = (
    f"{block}.attentions.0.transformer_blocks.0.{kind}"
    for block, kind in (
        ("up_blocks.0", "attn1"),
        ("down_blocks.0", "attn2"),
        ("mid_block", "attn1"),
    )
)
# Guidance in the first half of the run: its calls are two loops, one after the other.
SAMPLING = SamplingConfig(num_steps=CALLS, guidance_interval=(0.0, 0.5))

SHORT = SegmentConfig(template="a {classes}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = one_level_config(tmp_path_factory.mktemp("made") / "tokenizer")
    made = make_model(config, random_params(config), model_id="random")
    capture = dataclasses.replace(made.capture, kept_layers=(SELF, CROSS, MID))
    return made.with_config(scheduler=made.scheduler_config.with_kind("ddim"), capture=capture)


@pytest.fixture(scope="module")
def maps(model):
    """Of both prompts, as `generate` samples them: columns of classes, then of tokens."""
    inputs = with_token_columns(pair_inputs(model, PROMPTS, CLASSES, np.arange(2), SAMPLING))
    run = quick_jit(functools.partial(sample, config=SAMPLING))
    traced = {"rng_seed": np.uint32(0), "guidance_scale": np.float32(7.5)}
    return run(model, inputs, **traced).attention_maps


def test_the_averages_are_those_of_what_is_kept(model, maps):
    place = model.capture.cross_layers.index(CROSS)
    assert maps.kept[SELF].shape == maps.kept[MID].shape == (2, CALLS, HEADS, 64, 64)
    assert maps.kept[CROSS].shape == (2, CALLS, HEADS, 64, 2 + LENGTH)
    cross, own = (maps.kept[name].sum(axis=2).mean(axis=1) for name in (CROSS, SELF))
    # The same float32 numbers, of up to 2, are summed in another order.
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(own, maps.self_attention[8], **close)
    np.testing.assert_allclose(cross, maps.cross_attention[:, place], **close)
    for name in (SELF, MID):
        np.testing.assert_allclose(maps.kept[name].sum(axis=-1), 1, rtol=1e-5)
        assert np.std(maps.kept[name], axis=(1, 2)).max() > 0.01  # neither calls nor heads are one


def test_the_first_call_is_that_of_the_initial_latents(model, maps):
    indices = jnp.arange(2, dtype=jnp.int32)
    latents = initial_latents(model, jnp.uint32(0), indices)
    timesteps = np.full(2, make_steps(model.scheduler_config, CALLS).timesteps[0])

    @quick_jit
    def call(model, token_ids):
        return predict_noise(model, latents, timesteps, encode_text(model, token_ids))[1]

    first, kept = call(model, model.tokenizer.encode(PROMPTS)).kept, maps.kept
    for name in (SELF, MID):
        assert first[name].shape == (2, 1, HEADS, 64, 64)
        np.testing.assert_allclose(first[name][:, 0], kept[name][:, 0], rtol=0, atol=1e-5)
    tokens = kept[CROSS][:, 0, ..., -LENGTH:]
    np.testing.assert_allclose(first[CROSS][:, 0], tokens, rtol=0, atol=1e-5)


def test_they_are_saved_and_read_back(maps, tmp_path):
    maps.save(tmp_path / "maps.npz")
    read = AttentionMaps.load(tmp_path / "maps.npz")
    assert set(read.kept) == {SELF, CROSS, MID} and read.sides == (8,)
    jax.tree.map(np.testing.assert_array_equal, read, maps)


def test_what_would_take_too_much_is_refused_with_its_size(model, maps):
    """Of 600 steps, two prompts: 2 * 600 * 2 heads * 64 * (64 + 64 + 14) numbers are 0.08 GiB."""
    size = sum(array.nbytes for array in maps.kept.values()) / CALLS * 600
    with pytest.raises(UserError, match="0.1 GiB for images=2 and 600 UNet calls, at most 0 GiB"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("seediff_jax.pipeline.method_check._MOST_KEPT", size - 1)
            generate(model, PROMPTS, CLASSES, sampling=SamplingConfig(num_steps=600))


def test_layers_that_do_not_exist_or_stand_twice_are_refused(model):
    for layers, message in (((SELF, SELF), "stands twice"), (("attn1",), "no layer 'attn1'")):
        capture = dataclasses.replace(model.capture, kept_layers=layers)
        with pytest.raises(UserError, match=message):
            generate(model.with_config(capture=capture), PROMPTS, CLASSES)


def test_given_images_keep_none_and_say_so(model):
    with pytest.raises(UserError, match="kept_layers works with `generate` only; for"):
        segment(model, np.zeros((1, 8, 8, 3), np.uint8), ["cat"], config=SHORT)


def test_a_saved_model_does_not_keep_them(model, tmp_path):
    write_model_config(tmp_path, model.config)
    assert not (tmp_path / "capture.json").exists()
