"""The Model pytree, its four functions, and where it is loaded from."""

import dataclasses
import json
import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.load import load_model, make_model
from seediff_jax.checkpoints.orbax_folder import save_orbax
from seediff_jax.models.capture import CaptureConfig, two_levels_capture
from seediff_jax.models.model import decode_latents, encode_images, encode_text, predict_noise
from seediff_jax.models.transformer import TokenColumns
from tests.helpers.checkpoint_files import weights_hash
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import (
    LENGTH,
    normal,
    quick_jit,
    random_params,
    relative_difference,
    small_config,
)

TIMESTEPS = np.array([3, 500, 999], np.int32)
FOUR_ROWS = TokenColumns(normal(2, 4, 5, 1))


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return config, random_params(config)


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    write_folder(folder, *parts)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def inputs():
    return normal(0, 3, 8, 8, 4), TIMESTEPS, normal(1, 3, LENGTH, 24)


@pytest.fixture(scope="module")
def everything(model, inputs):
    """The result of `predict_noise` with its default token weights."""
    return predict_noise(model, *inputs)


def test_text_is_embedded_from_the_tokenizers_ids(model):
    token_ids = model.tokenizer.encode(["a cat", "a dog"])
    embeddings = encode_text(model, token_ids)
    assert embeddings.shape == (2, LENGTH, 24) and embeddings.dtype == jnp.float32
    # "a" comes first in both, and the encoder is causal.
    np.testing.assert_allclose(embeddings[0, :2], embeddings[1, :2], atol=1e-6)
    assert not np.allclose(embeddings[0, 2], embeddings[1, 2], atol=0.1)


def test_all_rows_and_tokens_are_recorded_by_default(everything):
    noise_pred, maps = everything
    assert noise_pred.shape == (3, 8, 8, 4) and noise_pred.dtype == jnp.float32
    # Two up layers and one down layer at the only level; 2 heads a row.
    assert maps.cross_attention.shape == (3, 3, 64, LENGTH)
    assert {side: rows.shape for side, rows in maps.self_attention.items()} == {8: (3, 64, 64)}
    np.testing.assert_allclose(maps.cross_attention.sum(-1), 2, rtol=1e-5)
    np.testing.assert_allclose(maps.self_attention[8].sum(-1), 2, rtol=1e-5)


def test_the_last_rows_are_recorded_and_projected_on_columns(model, inputs, everything):
    expected_noise, expected = everything
    weights = np.random.default_rng(2).random((2, LENGTH, 5), np.float32)
    noise_pred, maps = predict_noise(model, *inputs, TokenColumns(weights))
    np.testing.assert_allclose(noise_pred, expected_noise, atol=1e-5)
    columns = np.einsum("bynl,blk->bynk", expected.cross_attention[1:], weights)
    np.testing.assert_allclose(maps.cross_attention, columns, atol=1e-5)
    np.testing.assert_allclose(maps.self_attention[8], expected.self_attention[8][1:], atol=1e-5)


def test_layers_of_a_coarser_side_are_resized_to_the_seed_level(model):
    inputs = (normal(5, 1, 8, 12, 4), TIMESTEPS[:1], normal(6, 1, LENGTH, 24))

    def cross_attention(capture):
        maps = predict_noise(model.with_config(capture=capture), *inputs)[1]
        return np.asarray(maps.cross_attention)[0]

    capture = two_levels_capture(model.unet_config)
    mid = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert capture.cross_layers == (*model.capture.cross_layers, mid)
    both = cross_attention(capture)
    alone = cross_attention(CaptureConfig(cross_layers=(mid,)))[0]
    resized = cv2.resize(alone.reshape(4, 6, -1), (12, 8), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(both[-1], resized.reshape(96, -1), rtol=0, atol=1e-6)
    seed_level = cross_attention(model.capture)
    np.testing.assert_allclose(both[:-1], seed_level, rtol=0, atol=1e-6)


def test_a_second_call_of_the_same_shapes_does_not_compile_again(model, inputs, everything):
    compiled = predict_noise.__wrapped__
    before = compiled._cache_size()
    latents, timesteps, text = inputs
    predict_noise(model, latents + 1, timesteps[::-1].copy(), -text)
    predict_noise(model, np.float64(latents), list(timesteps), [jnp.asarray(row) for row in text])
    assert compiled._cache_size() == before


def test_splitting_a_batch_over_devices_does_not_change_results(model, inputs, everything):
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        lambda *arrays: predict_noise(model, *arrays),
        mesh=mesh,
        in_specs=(P("data"),) * 3,
        out_specs=P("data"),
    )
    got = quick_jit(split)(*inputs)
    for leaf, expected in zip(jax.tree.leaves(got), jax.tree.leaves(everything), strict=True):
        assert len(leaf.sharding.device_set) == 3
        np.testing.assert_allclose(leaf, expected, atol=1e-5)  # sums in another order


def test_latents_are_scaled_on_the_way_in_and_out(model):
    """Twice the scaling factor: twice the latents, and the same images from them."""
    images = np.random.default_rng(3).uniform(-1, 1, (2, 6, 8, 3)).astype(np.float32)
    factor = model.vae_config.scaling_factor
    double = model.with_config(vae=dataclasses.replace(model.vae_config, scaling_factor=2 * factor))
    latents = encode_images(model, images)
    assert latents.shape == (2, 3, 4, 4) and latents.dtype == jnp.float32
    np.testing.assert_allclose(encode_images(double, images), 2 * latents, rtol=1e-6)
    decoded = decode_latents(model, latents)
    assert decoded.shape == images.shape and decoded.dtype == jnp.float32
    np.testing.assert_allclose(decode_latents(double, 2 * latents), decoded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.2), (jnp.float16, 0.02)])
def test_low_precision_is_finite_and_close(folder, inputs, everything, dtype, tolerance):
    """bfloat16 keeps 8 bits, float16 11: some tens of roundings of 2^-9 and 2^-12."""
    low = load_model(folder, dtype=dtype)
    for path, leaf in flatten_dict(low.params).items():
        assert leaf.dtype == (dtype if leaf.ndim > 1 else jnp.float32), path
    noise_pred, maps = predict_noise(low, *inputs)
    expected, expected_maps = everything
    assert noise_pred.dtype == maps.cross_attention.dtype == jnp.float32
    assert relative_difference(noise_pred, expected) < tolerance
    # The softmax is float32: its rows still sum to the number of heads.
    np.testing.assert_allclose(maps.self_attention[8].sum(-1), 2, rtol=1e-5)
    atol = tolerance * float(expected_maps.self_attention[8].max())
    np.testing.assert_allclose(
        maps.self_attention[8], expected_maps.self_attention[8], rtol=0, atol=atol
    )
    token_ids = low.tokenizer.encode(["a cat"])
    assert encode_text(low, token_ids).dtype == jnp.float32
    images = decode_latents(low, inputs[0])
    assert images.dtype == jnp.float32 and np.isfinite(images).all()
    assert np.isfinite(encode_images(low, images)).all()


def test_saved_models_load_with_the_same_weights_and_configs(model, tmp_path):
    save_model(model, tmp_path / "folder")
    save_orbax(model, tmp_path / "orbax")
    for name in ("folder", "orbax"):
        again = load_model(tmp_path / name)
        assert again.replace(params=None) == model.replace(params=None)
        assert again.weights_hash == model.weights_hash
        for got, expected in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_a_model_made_of_params_is_that_of_their_folder(parts, model):
    made = make_model(*parts, model_id=model.model_id)
    assert made.weights_hash == model.weights_hash == weights_hash(parts[1])
    assert made.replace(params=None) == model.replace(params=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_loaded_with_the_given_sharding(folder, model, dtype):
    mesh = jax.make_mesh((3,), ("data",), axis_types=(AxisType.Auto,))
    whole = NamedSharding(mesh, P())
    sharded = load_model(folder, dtype=dtype, sharding=whole)
    assert sharded.weights_hash == model.weights_hash
    expected = load_model(folder, dtype=dtype)
    for got, leaf in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected), strict=True):
        assert got.sharding == whole and got.dtype == leaf.dtype
        np.testing.assert_array_equal(got, leaf)
    for leaf in jax.tree.leaves(expected):
        assert leaf.sharding.device_set == {jax.devices()[0]} and not leaf.committed


def test_a_weight_beyond_float16_is_refused_only_in_float16(parts, tmp_path):
    config, params = parts
    large = jax.tree.map(np.copy, params)
    large["vae"]["quant_conv"]["kernel"][0, 0, 0, 0] = 1e5
    write_folder(tmp_path / "large", config, large)
    with pytest.raises(ValueError, match="vae/quant_conv/kernel is beyond the range of float16"):
        load_model(tmp_path / "large", dtype=np.float16)
    loaded = load_model(tmp_path / "large", dtype=jnp.bfloat16)
    assert loaded.params["vae"]["quant_conv"]["kernel"].max() == jnp.bfloat16(1e5)


def test_changing_the_file_does_not_change_loaded_weights(parts, tmp_path):
    write_folder(tmp_path / "model", *parts)
    loaded = load_model(tmp_path / "model")
    for path in (tmp_path / "model").rglob("*.safetensors"):
        with open(path, "r+b") as file:
            file.write(bytes(path.stat().st_size))
    for got, leaf in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(parts[1]), strict=True):
        np.testing.assert_array_equal(got, leaf)


def test_the_hash_of_a_low_precision_model_is_that_of_the_stored_weights(folder, model):
    assert load_model(folder, dtype=jnp.bfloat16).weights_hash == model.weights_hash


@pytest.mark.parametrize(
    ("function", "arrays", "message"),
    [
        (encode_text, [np.zeros((1, 13), np.int32)], "got 13 tokens, .* reads up to 12"),
        (decode_latents, [normal(0, 1, 2, 2, 3)], "latents have 3 channels, this VAE takes 4"),
        (encode_images, [normal(0, 1, 4, 7, 3)], "images are 4 x 7, but must be multiples of 2"),
        (
            predict_noise,
            [normal(0, 3, 8, 8, 5), TIMESTEPS, normal(1, 3, 5, 24)],
            "latents have channels 5, expected 4",
        ),
        (
            predict_noise,
            [normal(0, 3, 8, 8, 4), TIMESTEPS, normal(1, 3, 5, 16)],
            "text_embeddings have width 16, expected 24",
        ),
        (
            predict_noise,
            [normal(0, 3, 8, 8, 4), TIMESTEPS, normal(1, 3, 5, 24), FOUR_ROWS],
            "columns have 4 rows, the batch has 3",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, function, arrays, message):
    with pytest.raises(ValueError, match=message):
        function(model, *arrays)


@pytest.mark.parametrize(
    ("function", "arrays", "message"),
    [
        (
            encode_text,
            [np.zeros(5, np.int32)],
            "token_ids is int32 [5], expected int [b, *encoders, l]",
        ),
        (encode_text, ["a cat"], "token_ids is 'a cat', expected int [b, *encoders, l]"),
        (
            decode_latents,
            [normal(0, 8, 8, 4)],
            "latents is float32 [8, 8, 4], expected float [b, h, w, c]",
        ),
        (
            encode_images,
            [[normal(0, 4, 8, 3), normal(0, 8, 4, 3)]],
            "images is a list of float32 [4, 8, 3], float32 [8, 4, 3], expected float [b, H, W, 3]",
        ),
        (
            predict_noise,
            [normal(0, 3, 8, 8, 4), TIMESTEPS[:2], normal(1, 3, 5, 24)],
            "timesteps is int32 [2], expected real [b] with b = 3",
        ),
    ],
)
def test_a_wrong_shape_gives_one_line(model, function, arrays, message):
    with pytest.raises(TypeError) as error:
        function(model, *arrays)
    assert str(error.value) == f"{function.__name__}: {message}"


def test_a_list_of_images_is_a_batch(model):
    images = np.random.default_rng(3).uniform(-1, 1, (2, 6, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(encode_images(model, list(images)), encode_images(model, images))


def test_unknown_models_and_dtypes_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no model 'nothing'"):
        load_model("nothing")
    with pytest.raises(ValueError, match="dtype float64 is not one of float32, bfloat16, float16"):
        load_model(folder, dtype=np.float64)
    path = tmp_path / "v1-4.ckpt"
    path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=re.escape("is a file; a .safetensors file or a diffusers folder")
    ):
        load_model(path)


def test_a_foreign_scheduler_is_replaced_on_request_and_refused_otherwise(model, tmp_path):
    save_model(model, tmp_path / "heun")
    heun = {"_class_name": "HeunDiscreteScheduler", "beta_schedule": "scaled_linear"}
    heun |= {"beta_start": 0.001, "beta_end": 0.01, "use_exponential_sigmas": False}
    (tmp_path / "heun/scheduler/scheduler_config.json").write_text(json.dumps(heun))
    with pytest.raises(ValueError, match="HeunDiscreteScheduler"):
        load_model(tmp_path / "heun")
    config = load_model(tmp_path / "heun", scheduler="ddim").scheduler_config
    assert (config.kind, config.beta_start, config.beta_end) == ("ddim", 0.001, 0.01)
