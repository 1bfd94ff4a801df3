"""Sampling: guidance, averaged attention, and samples that depend on nothing but their index."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.models.attention_choice import Place
from seediff_jax.models.model import decode_latents, encode_text, predict_noise
from seediff_jax.prompts.tokenizer import class_token_mask
from seediff_jax.sampling import sampler
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.inputs import PairInputs
from seediff_jax.sampling.noise import initial_latents, latent_size
from seediff_jax.sampling.sampler import (
    Samples,
    class_token_weights,
    decode_in_chunks,
    require_finite,
    sample,
    to_uint8,
)
from seediff_jax.schedulers.noise_schedule import make_noise_schedule
from seediff_jax.schedulers.step import init_scheduler_state, make_steps, scheduler_step
from tests.helpers.random_models import (
    normal,
    quick_jit,
    random_params,
    relative_difference,
    small_config,
)

PROMPTS = ["a cat", "a dog", "a cow", "a hen"] * 2
CLASSES = [["cat"], ["dog"], ["cow"], ["hen"]] * 2
CONFIG = SamplingConfig(num_steps=3)
# Networks are evaluated in another order of sums; random weights make that grow from step to step.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return make_model(config, random_params(config), model_id="random")


def inputs(model, rows, negative_prompt="a red cup"):
    """The arrays with a batch axis for some of PROMPTS, whose positions are their indices."""
    prompts = [PROMPTS[row] for row in rows]
    token_mask = class_token_mask(model.tokenizer, prompts, [CLASSES[row] for row in rows])
    negative = model.tokenizer.encode([negative_prompt] * len(rows))
    return model.tokenizer.encode(prompts), negative, token_mask, np.array(rows, np.int32)


@functools.cache
def program(config):
    return quick_jit(functools.partial(sample, config=config))


def settings(guidance_scale=4.0):
    return {"rng_seed": np.uint32(7), "guidance_scale": np.float32(guidance_scale)}


def run(model, arrays, config=CONFIG, guidance_scale=4.0):
    return program(config)(model, PairInputs(*arrays), **settings(guidance_scale))


@pytest.fixture(scope="module")
def batch(model):
    return run(model, inputs(model, range(8)))


def assert_maps_close(got, expected, atol):
    np.testing.assert_allclose(got.cross_attention, expected.cross_attention, rtol=0, atol=atol)
    assert got.sides == expected.sides
    for side in expected.sides:
        np.testing.assert_allclose(
            got.self_attention[side], expected.self_attention[side], rtol=0, atol=atol
        )


def test_latents_and_attention_are_those_of_a_loop_over_the_unet_calls(model, batch):
    token_ids, negative_ids, token_mask, indices = inputs(model, range(8))
    text, negative = encode_text(model, token_ids), encode_text(model, negative_ids)
    latents = initial_latents(model, jnp.uint32(7), indices)
    steps = make_steps(model.scheduler_config, 3)
    schedule = make_noise_schedule(model.scheduler_config)
    state = init_scheduler_state(model.scheduler_config, latents)
    cross, own = [], []
    for i, timestep in enumerate(steps.timesteps):
        timesteps = np.full(8, timestep)
        unconditional, _ = predict_noise(model, latents, timesteps, negative)
        conditional, maps = predict_noise(model, latents, timesteps, text)
        guided = np.asarray(unconditional) * -3 + np.asarray(conditional) * 4
        step = jax.tree.map(lambda column, i=i: jnp.asarray(column[i]), steps)
        latents, state = scheduler_step(
            model.scheduler_config, schedule, state, latents, jnp.asarray(guided), step
        )
        # "cat" is three letters here, a token each.
        cross.append([np.asarray(maps.cross_attention)[b][..., token_mask[b, 0]] for b in range(8)])
        own.append(maps.self_attention[8])
    assert len(cross) == 4  # three steps of PNDM
    assert relative_difference(batch.latents, latents) < TOLERANCE
    expected = np.mean(cross, axis=(0, -1))[..., None]
    assert expected.std() > 0.01
    np.testing.assert_allclose(batch.attention_maps.cross_attention, expected, atol=1e-4)
    np.testing.assert_allclose(
        batch.attention_maps.self_attention[8], np.mean(own, axis=0), atol=1e-3
    )
    decoded = to_uint8(decode_latents(model, batch.latents))
    np.testing.assert_array_equal(batch.images, decoded)


def test_attention_that_the_unet_adds_to_the_sum_is_the_same(model, batch, monkeypatch):
    """As on a TPU, where a kernel adds in place."""
    monkeypatch.setattr(sampler, "current_place", lambda: Place("tpu"))
    jax.clear_caches()
    got = run(model, inputs(model, range(8)), dataclasses.replace(CONFIG, attention="xla"))
    jax.clear_caches()
    # The sums of three calls are taken in another order.
    assert_maps_close(got.attention_maps, batch.attention_maps, 1e-6)


def test_a_sample_does_not_depend_on_the_batch_that_it_is_part_of(model, batch):
    noise = initial_latents(model, jnp.uint32(7), jnp.arange(8))
    np.testing.assert_array_equal(initial_latents(model, jnp.uint32(7), jnp.array([5])), noise[5:6])
    alone = run(model, inputs(model, [5]))
    assert relative_difference(alone.latents, batch.latents[5:6]) < TOLERANCE
    difference = np.abs(alone.images.astype(int) - batch.images[5:6].astype(int))
    assert difference.max() <= 1
    one = jax.tree.map(lambda leaf: leaf[5:6], batch.attention_maps)
    assert_maps_close(alone.attention_maps, one, 1e-4)


def test_attention_of_two_half_runs_averages_to_that_of_the_whole(model, batch):
    """Three steps of PNDM are four calls: two in each half."""
    halves = [
        run(
            model.with_config(capture=dataclasses.replace(model.capture, calls=calls)),
            inputs(model, range(8)),
        ).attention_maps
        for calls in ((0.0, 0.5), (0.5, 1.0))
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    assert_maps_close(mean, batch.attention_maps, 1e-4)
    assert np.abs(halves[0].cross_attention - halves[1].cross_attention).max() > 0.01


def test_a_class_is_found_by_a_text_that_does_not_influence_the_image(model, batch):
    """The text is here the prompt itself: its columns are then those of the prompt's own tokens."""
    token_ids, negative_ids, token_mask, indices = inputs(model, range(8))
    named = np.zeros_like(token_mask)
    got = run(model, (token_ids, negative_ids, named, indices, token_ids, token_mask))
    assert relative_difference(got.latents, batch.latents) < TOLERANCE
    assert_maps_close(got.attention_maps, batch.attention_maps, 1e-4)


def test_images_of_another_size_are_sampled_with_their_attention(model):
    config = SamplingConfig(num_steps=2, height=16, width=24)
    samples = run(model, inputs(model, [1, 4]), config)
    assert samples.images.shape == (2, 16, 24, 3)
    assert samples.attention_maps.cross_attention.shape[2] == 96
    assert {k: v.shape for k, v in samples.attention_maps.self_attention.items()} == {
        8: (2, 96, 96)
    }
    require_finite(samples, np.arange(2))


@pytest.mark.parametrize(("name", "pixels"), [("height", 18), ("width", 0), ("width", 16.0)])
def test_a_size_that_cannot_be_halved_is_refused(model, name, pixels):
    assert latent_size(model, width=32) == (8, 16)
    with pytest.raises(ValueError, match=f"{name}={pixels} must be a multiple of 4 pixels"):
        latent_size(model, **{name: pixels})


def test_samples_of_one_prompt_differ_by_index_and_by_seed(model, batch):
    # Rows 1 and 5 have the same prompt.
    assert relative_difference(batch.latents[1], batch.latents[5]) > 1
    first, second = (initial_latents(model, jnp.uint32(seed), jnp.arange(2)) for seed in (7, 8))
    assert not np.isclose(first, second, atol=1e-6).any()
    whole = np.asarray(initial_latents(model, jnp.uint32(7), jnp.arange(200)))
    # 51200 standard normal values: three standard errors of mean and deviation.
    assert abs(whole.mean()) < 0.014 and abs(whole.std() - 1) < 0.01


def test_without_guidance_and_capture_images_are_those_of_guidance_scale_one(model, batch):
    arrays = inputs(model, range(8))
    guided = run(model, arrays, guidance_scale=1.0)
    token_ids, _, token_mask, indices = arrays
    plain = run(model, (token_ids, None, token_mask[:, :0], indices))
    assert relative_difference(guided.latents, plain.latents) < TOLERANCE
    assert relative_difference(batch.latents, plain.latents) > 0.1
    assert plain.attention_maps.cross_attention.size == 0
    assert plain.attention_maps.self_attention == {}


@pytest.mark.parametrize(
    "kind",
    [
        "pndm",
        pytest.param("ddim", marks=pytest.mark.slow),
        pytest.param("dpmsolver_multistep", marks=pytest.mark.slow),
        "euler_ancestral",
    ],
)
def test_splitting_a_batch_over_eight_devices_does_not_change_samples(model, batch, kind):
    model = model.with_config(scheduler=model.scheduler_config.with_kind(kind))
    arrays = inputs(model, range(8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(
        lambda model, arrays: sample(model, PairInputs(*arrays), **settings(), config=CONFIG),
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    got = quick_jit(split)(model, arrays)
    expected = batch if kind == "pndm" else run(model, arrays)
    assert relative_difference(got.latents, expected.latents) < TOLERANCE
    assert_maps_close(got.attention_maps, expected.attention_maps, 1e-4)
    assert np.abs(got.images.astype(int) - expected.images.astype(int)).max() <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_finite_and_near_float32(model, batch, dtype, tmp_path):
    config = small_config(tmp_path / "tokenizer")
    half = make_model(config, random_params(config), dtype=dtype, model_id="random")
    got = run(half, inputs(half, range(8)))
    require_finite(got, np.arange(8))
    assert got.latents.dtype == jnp.float32
    assert got.attention_maps.cross_attention.dtype == jnp.float32
    # bfloat16 has 8 bits, and four guided calls with random weights amplify its rounding.
    assert relative_difference(got.latents, batch.latents) < 1
    np.testing.assert_allclose(got.attention_maps.self_attention[8].sum(-1), 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("part", "stage"),
    [("text_encoder", "text_embeddings"), ("unet", "latents"), ("vae", "images")],
)
def test_values_that_are_not_finite_are_reported_with_their_stage(model, batch, part, stage):
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), model.params[part])
    samples = run(model.replace(params=model.params | {part: broken}), inputs(model, range(8)))
    with pytest.raises(FloatingPointError, match=rf"{stage} of the samples \[10, 11, .* not fin"):
        require_finite(samples, np.arange(10, 18))


def test_only_the_samples_that_are_not_finite_are_named(batch):
    is_finite = dict(batch.is_finite) | {"latents": np.arange(8) != 3}
    samples = Samples(batch.images, batch.latents, batch.attention_maps, is_finite)
    with pytest.raises(FloatingPointError, match=r"latents of the samples \[13\]"):
        require_finite(samples, np.arange(10, 18))
    require_finite(batch, np.arange(8))


def test_a_class_is_the_mean_of_its_tokens_and_padding_is_zero():
    token_mask = np.zeros((1, 3, 5), bool)
    token_mask[0, 0, 2] = token_mask[0, 1, 1] = token_mask[0, 1, 4] = True
    expected = np.array([[0, 0, 1, 0, 0], [0, 0.5, 0, 0, 0.5], [0, 0, 0, 0, 0]], np.float32).T
    np.testing.assert_array_equal(class_token_weights(jnp.asarray(token_mask)), expected[None])


@pytest.mark.parametrize(("count", "chunk"), [(6, 3), (5, 1), (3, 3)])
def test_images_are_decoded_in_equal_chunks(model, count, chunk):
    latents = jnp.asarray(normal(0, count, 8, 8, 4))
    lowered = jax.jit(decode_in_chunks, static_argnums=2).lower(model, latents, 4)
    # The decoder's activations have 16 x 16 pixels; never of more images than a chunk.
    assert f"tensor<{chunk}x16x16x8xf32>" in lowered.as_text()
    images = lowered.compile()(model, latents)
    np.testing.assert_allclose(images, decode_latents(model, latents), rtol=0, atol=1e-5)


def test_colours_are_rounded_and_clipped():
    images = jnp.array([-3.0, -1, -0.9, 0.001, 0.5, 1, 1.5]).reshape(1, 1, 7, 1).repeat(3, axis=3)
    np.testing.assert_array_equal(to_uint8(images)[0, 0, :, 0], [0, 0, 13, 128, 191, 255, 255])


@pytest.mark.parametrize("value", [0, 2.5, True])
def test_impossible_settings_are_refused(value):
    with pytest.raises(UserError, match=f"num_steps={value} must be a whole number in 1..10000"):
        SamplingConfig(num_steps=value)
