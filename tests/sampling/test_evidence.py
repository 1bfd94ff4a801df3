"""Whether an image shows a class, found by denoising, against the networks called one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax import encode_prompts, encode_text, predict_noise
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.masks.config import LEAST_EVIDENCE, MaskConfig, require_presence
from seediff_jax.masks.label_maps import explained, make_masks
from seediff_jax.sampling.config import IMAGE_SIZE, SamplingConfig
from seediff_jax.sampling.evidence import class_evidence, evidence_timesteps
from seediff_jax.sampling.inputs import ClassLists, pair_inputs
from seediff_jax.sampling.noise import step_noise
from seediff_jax.sampling.segment_config import SegmentConfig
from tests.helpers.random_attention import random_attention
from tests.helpers.random_models import SCHEDULER, random_params, small_config

PROMPTS, CLASSES = ["two DOGs", "a cow"], [["dog", "cat"], ["cow"]]
LISTS = ClassLists([["dog"], ["cow"]], [["cat"], []])
TEXTS = [["", "a DOGs", "a cat"], ["", "a cow", ""]]
INDICES, SEED, DRAWS = [7, 8], 3, 2
CONFIG = SegmentConfig(template="{classes}", presence_draws=DRAWS)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request, tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("model") / "tokenizer")
    scheduler = dataclasses.replace(config.scheduler, prediction_type=request.param)
    config = dataclasses.replace(config, scheduler=scheduler)
    return make_model(config, random_params(config), model_id="small")


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)


def evidence_of(model, latents, rows=slice(None), **changes):
    lists = ClassLists(LISTS.named[rows], LISTS.unnamed[rows], num_classes=2)
    inputs = pair_inputs(model, PROMPTS[rows], lists, INDICES[rows], CONFIG)
    options = {"rng_seed": np.uint32(SEED), "draws": DRAWS} | changes
    scale = jnp.asarray(1.0, jnp.float32)
    program = jax.jit(class_evidence, static_argnames=("draws", "size_condition"))
    found = program(
        model, latents[rows], inputs, **options, size_condition=IMAGE_SIZE, guidance_scale=scale
    )
    return np.asarray(found)


def test_draws_are_in_the_middles_of_equal_parts_without_the_last_fifth():
    assert evidence_timesteps(1000, 1).tolist() == [400]
    assert evidence_timesteps(1000, 4).tolist() == [100, 300, 500, 700]
    assert evidence_timesteps(10, 2).tolist() == [2, 6]


def test_evidence_equals_that_of_the_networks_called_one_by_one(model, latents):
    root = np.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000)
    left = np.cumprod(1 - root**2)
    found = evidence_of(model, latents)
    assert found.shape == (2, 8, 8, 2, 2)
    for i in range(2):
        index, totals = np.array(INDICES[i : i + 1], np.int32), np.zeros((2, 8, 8, 2))
        for number, timestep in enumerate((200, 600)):
            noise = np.asarray(
                step_noise(model, np.uint32(SEED), index, np.int32(2**30 + number)), np.float64
            )[0]
            clean = latents[i].astype(np.float64)
            noised = left[timestep] ** 0.5 * clean + (1 - left[timestep]) ** 0.5 * noise
            target = noise
            if model.scheduler_config.prediction_type == "v_prediction":
                target = left[timestep] ** 0.5 * noise - (1 - left[timestep]) ** 0.5 * clean
            predicted = []
            for text in TEXTS[i]:
                states = encode_text(model, encode_prompts(model, [text]))
                times = np.array([timestep], np.int32)
                made, _ = predict_noise(model, noised[None].astype(np.float32), times, states)
                predicted.append(np.asarray(made[0], np.float64))
            for k in (0, 1):
                change = predicted[k + 1] - predicted[0]
                totals[k, ..., 0] += ((target - predicted[0]) * change).sum(axis=-1)
                totals[k, ..., 1] += (change**2).sum(axis=-1)
        for k in range(len(CLASSES[i])):
            expected = totals[k] / totals[k, ..., 1].mean()
            # Differences of predictions, which lose digits of float32.
            scale = np.abs(expected).max()
            np.testing.assert_allclose(found[i, :, :, k], expected, atol=2e-3 * scale)
    assert not found[1, :, :, 1].any()  # padding of a shorter list


def test_evidence_depends_on_seed_and_index_and_not_on_the_batch(model, latents):
    both, alone = evidence_of(model, latents), evidence_of(model, latents, slice(1, 2))
    scale = np.abs(both).max()
    np.testing.assert_allclose(alone[0], both[1], atol=2e-3 * scale)  # as above
    other = evidence_of(model, latents, rng_seed=np.uint32(SEED + 1))
    assert np.abs(other[0] - both[0]).max() > 0.01 * scale


def test_a_class_is_named_in_the_words_of_the_prompt_or_by_its_name(model):
    inputs = pair_inputs(model, PROMPTS, LISTS, INDICES, CONFIG)
    for row, texts in zip(inputs.evidence_token_ids, TEXTS, strict=True):
        np.testing.assert_array_equal(row, encode_prompts(model, texts))
    long = SegmentConfig(template="a photo of {classes}", presence_draws=1)  # ten tokens fit
    made = pair_inputs(model, PROMPTS, LISTS, INDICES, long).evidence_token_ids
    np.testing.assert_array_equal(made[0], encode_prompts(model, ["", "DOGs", "cat"]))
    synonyms = ClassLists([["beast"]], synonyms={"beast": ["cow"]})
    made = pair_inputs(model, ["a cow"], synonyms, [0], CONFIG).evidence_token_ids
    np.testing.assert_array_equal(made[0], encode_prompts(model, ["", "a cow"]))


@pytest.mark.parametrize("config", [SamplingConfig(), SegmentConfig(presence_draws=0)])
def test_without_draws_there_is_no_evidence(model, config):
    assert pair_inputs(model, PROMPTS, LISTS, INDICES, config).evidence_token_ids is None


def test_presence_is_the_share_of_the_change_that_is_right_where_the_mask_is():
    evidence = np.zeros((1, 2, 2), np.float32)
    evidence[0, :, 0], evidence[0, :, 1] = (0.9, -1.0), (1.0, 4.0)
    soft = np.repeat(np.array([[1.0, 0.25]], np.float32), 2, axis=0).repeat(2, axis=1)
    # Weights 1 and 1/4: (0.9 - 1/4) / (1 + 4/4).
    assert float(explained(evidence, soft)) == pytest.approx((0.9 - 1 / 4) / 2, abs=1e-6)
    assert float(explained(-evidence, soft)) == 0.0  # never below 0
    assert float(explained(evidence * [4, 1], soft)) == 1.0  # nor above 1
    assert float(explained(0 * evidence, soft)) == 0.0  # a name without effect


@pytest.fixture(scope="module")
def maps():
    """Attention of two classes, and evidence of 0.5 and 0.1."""
    cross, levels = random_attention(0, (4, 8), 2)
    evidence = np.ones((1, 8, 8, 2, 2), np.float32)
    evidence[..., 0] = (0.5, 0.1)
    return AttentionMaps(
        cross[None], {side: m[None].astype(np.float32) for side, m in levels.items()}, {}, evidence
    )


IMAGES = np.zeros((1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("method", ["seediff", "cross_attention"])
@pytest.mark.parametrize(
    ("least", "is_kept"),
    [(None, [True, False]), (0.0, [True, True]), (0.05, [True, True]), (0.6, [False, False])],
)
def test_classes_of_little_evidence_have_no_pixels_by_default(maps, method, least, is_kept):
    config = MaskConfig(method=method, min_presence=least)
    thresholds = jax.tree.map(np.float32, config.thresholds)
    soft_masks, _, _, presence = make_masks(IMAGES, maps, thresholds, config=config)
    # Sums of 64 numbers in float32.
    np.testing.assert_allclose(presence, [[0.5, 0.1]], atol=1e-6)
    assert np.asarray(soft_masks).any(axis=(2, 3)).tolist() == [is_kept]
    assert 0.1 < LEAST_EVIDENCE < 0.5
    recorded = [config.recorded(draws)["min_presence"] for draws in (0, 4)]
    assert recorded == ([0.0, LEAST_EVIDENCE] if least is None else [least, least])


def test_without_evidence_all_classes_are_kept_by_default(maps):
    config = MaskConfig()
    thresholds = jax.tree.map(np.float32, config.thresholds)
    soft_masks, *_ = make_masks(IMAGES, maps.replace(evidence=None), thresholds, config=config)
    assert np.asarray(soft_masks).any(axis=(2, 3)).all()


def test_a_least_presence_of_cross_attention_needs_evidence():
    for masks in (MaskConfig(), MaskConfig(min_presence=0.5), MaskConfig(method="cross_attention")):
        require_presence(masks, 0)
    masks = MaskConfig(method="cross_attention", min_presence=0.5)
    require_presence(masks, 1)
    require_presence(MaskConfig(method=("cross_attention", "seediff"), min_presence=0.5), 0)
    with pytest.raises(UserError, match=r"min_presence=0\.5 needs presence_draws=NUMBER above 0"):
        require_presence(masks, 0)


def test_evidence_is_kept_with_the_attention(maps, tmp_path):
    maps.save(tmp_path / "maps.npz")
    np.testing.assert_array_equal(AttentionMaps.load(tmp_path / "maps.npz").evidence, maps.evidence)
    for wrong in (maps.evidence[..., :1, :], maps.evidence[0], maps.evidence[..., 0]):
        maps.replace(evidence=wrong).save(tmp_path / "wrong.npz")
        with pytest.raises(UserError, match="are not attention maps of one image or batch"):
            AttentionMaps.load(tmp_path / "wrong.npz")
