"""The attention of given images: noised, read by UNet calls, averaged; alone and mirrored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax import AttentionMaps, encode_images, encode_prompts, encode_text, predict_noise
from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.pipeline.segment_images import attend_images
from seediff_jax.sampling.noise import step_noise
from seediff_jax.sampling.noised import mirror_maps
from seediff_jax.sampling.segment_config import SegmentConfig
from tests.helpers.random_models import SCHEDULER, random_params, small_config

PROMPTS, CLASSES = ["dog cat", "a cow"], [["dog", "cat"], ["cow"]]
# Positions of the letters, after the start token; one token per letter.
TOKENS = [[[1, 2, 3], [4, 5, 6]], [[2, 3, 4]]]
TIMESTEPS, SEED, FIRST = (50, 300), 3, 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    both = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    }
    config = small_config(tmp_path_factory.mktemp("model") / "tokenizer", unet=both)
    return make_model(config, random_params(config), model_id="small")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)


def attend(model, images, mirror=False, rows=slice(None), timesteps=TIMESTEPS):
    indices = [*range(FIRST, FIRST + 2)][rows]
    config = SegmentConfig(timesteps=timesteps, mirror=mirror, template="{classes}")
    options = {"rng_seed": SEED, "config": config}
    return attend_images(model, images[rows], PROMPTS[rows], CLASSES[rows], indices, **options)


@pytest.fixture(scope="module")
def plain(model, images):
    return attend(model, images)


def test_maps_equal_those_of_the_networks_called_one_by_one(model, images, plain):
    root = np.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000)
    left = np.cumprod(1 - root**2)
    maps = plain.attention_maps
    assert maps.sides == (4, 8) and maps.cross_attention.shape == (2, 3, 16, 2)
    for i in range(2):
        pixels = jnp.asarray(images[i : i + 1].astype(np.float32) / 127.5 - 1)
        latents = np.asarray(encode_images(model, pixels))
        text = encode_text(model, encode_prompts(model, PROMPTS[i : i + 1]))
        crosses, selves = [], []
        for number, timestep in enumerate(TIMESTEPS):
            index = np.array([FIRST + i], np.int32)
            noise = np.asarray(step_noise(model, np.uint32(SEED), index, np.int32(number)))
            noised = left[timestep] ** 0.5 * latents + (1 - left[timestep]) ** 0.5 * noise
            times = np.array([timestep], np.int32)
            _, found = predict_noise(model, noised.astype(np.float32), times, text)
            crosses.append(np.asarray(found.cross_attention[0]))
            selves.append({side: np.asarray(m[0]) for side, m in found.self_attention.items()})
        for k, tokens in enumerate(TOKENS[i]):
            expected = np.mean(crosses, axis=0)[..., tokens].mean(axis=-1)
            # Noise by another order of float32 operations, through the whole UNet.
            np.testing.assert_allclose(maps.cross_attention[i, ..., k], expected, atol=2e-5)
        for side in (4, 8):
            expected = np.mean([each[side] for each in selves], axis=0)
            np.testing.assert_allclose(maps.self_attention[side][i], expected, atol=2e-5)
    assert not np.asarray(maps.cross_attention[1, ..., 1]).any()  # padding of a shorter list


def flip(array, axis, side):
    """Mirrors a level's locations along an axis, by their indices."""
    order = np.arange(side * side).reshape(side, side)[:, ::-1].ravel()
    return np.take(np.asarray(array), order, axis)


def test_a_mirrored_copy_is_the_mean_with_the_mirrored_image_mirrored_back(model, images, plain):
    found = attend(model, images, mirror=True).attention_maps
    other = attend(model, images[:, :, ::-1]).attention_maps
    own = plain.attention_maps
    expected = (own.cross_attention + flip(other.cross_attention, 2, 4)) / 2
    # Rounding of other programs, through the whole UNet.
    np.testing.assert_allclose(found.cross_attention, expected, atol=2e-5)
    for side, leaf in own.self_attention.items():
        mirrored = flip(flip(other.self_attention[side], 1, side), 2, side)
        np.testing.assert_allclose(found.self_attention[side], (leaf + mirrored) / 2, atol=2e-5)


def test_a_row_depends_on_its_index_and_not_on_the_batch(model, images, plain):
    alone = attend(model, images, rows=slice(1, 2)).attention_maps
    expected = jax.tree.map(lambda leaf: leaf[1:], plain.attention_maps)
    np.testing.assert_allclose(
        alone.cross_attention[..., 0], expected.cross_attention[..., 0], atol=1e-5
    )
    for side in (4, 8):
        np.testing.assert_allclose(
            alone.self_attention[side], expected.self_attention[side], atol=1e-5
        )
    twice = attend(model, np.stack([images[0]] * 2)).attention_maps.self_attention[4]
    assert np.abs(twice[0] - twice[1]).max() > 1e-3  # other noise


def test_locations_of_images_that_are_not_square_are_mirrored_by_rows():
    cross = np.arange(6, dtype=np.float32).reshape(1, 1, 6, 1)
    level = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    found = mirror_maps(AttentionMaps(cross, {2: level}), (16, 24))
    order = [2, 1, 0, 5, 4, 3]  # two rows of three
    assert np.asarray(found.cross_attention).ravel().tolist() == order
    np.testing.assert_array_equal(found.self_attention[2][0], level[0][order][:, order])


def test_values_that_are_not_finite_are_named(model, images):
    broken = jax.tree.map(lambda leaf: leaf, model.params)
    broken["unet"]["conv_in"]["bias"] = np.full(16, np.nan, np.float32)
    with pytest.raises(FloatingPointError, match=r"attention of the samples \[7, 8\] are not fin"):
        attend(model.replace(params=broken), images)


def test_timesteps_beyond_the_schedule_are_refused(model, images):
    with pytest.raises(UserError, match=r"timesteps=0,1000 must lie in 0\.\.999"):
        attend(model, images, timesteps=(0, 1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": ()}, "timesteps= is empty"),
        ({"timesteps": (-1,)}, "timesteps=-1 must be a whole number"),
        ({"template": "a photo"}, r"template 'a photo' must name the classes as \{classes\}"),
        ({"template": "{classes} {x}"}, "have no other field"),
        ({"tile_overlap": 1.0}, r"tile_overlap=1.0 must be a finite number in 0\.\.0.9"),
        ({"attention": "fast"}, "attention=fast is not one of"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SegmentConfig(**options)
