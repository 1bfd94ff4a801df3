"""Guidance against plain NumPy, and the conditions of XL and of latent consistency models."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from seediff_jax.checkpoints.load import make_model
from seediff_jax.errors import UserError
from seediff_jax.models.conditioning import Conditions, guidance_embedding
from seediff_jax.models.model import (
    decode_latents,
    encode_text,
    encode_text_and_pool,
    predict_noise,
)
from seediff_jax.pipeline.generate import generate, generate_images
from seediff_jax.prompts.tokenizer import load_tokenizer
from seediff_jax.sampling.config import IMAGE_SIZE, SamplingConfig, SizeCondition
from seediff_jax.sampling.guidance import embed_prompts, guide, require_guidance
from seediff_jax.sampling.inputs import PairInputs, encode_prompts, mark_classes
from seediff_jax.sampling.sampler import sample
from tests.helpers.random_models import (
    LENGTH,
    PADDING_2,
    normal,
    quick_jit,
    random_params,
    relative_difference,
    small_config,
    small_xl_config,
    write_small_tokenizer,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    config = small_xl_config(tmp_path_factory.mktemp("xl"))
    return config, random_params(config)


@pytest.fixture(scope="module")
def model(parts):
    return make_model(*parts, model_id="xl")


def draw(model, **settings):
    return generate_images(model, ["a cat"], sampling=SamplingConfig(num_steps=2, **settings))


def embed(model, prompts, size_condition=IMAGE_SIZE, **options):
    token_ids = jnp.asarray(encode_prompts(model, prompts))
    return embed_prompts(model, token_ids, (32, 24), size_condition, jnp.float32(5.0), **options)


def test_guidance_moves_away_from_the_negative_prompt_and_rescaling_restores_the_contrast():
    negative, conditional = (np.float64(normal(seed, 3, 4, 5, 2)) for seed in (0, 1))
    guided = negative + 6 * (conditional - negative)
    arrays = [jnp.asarray(x, jnp.float32) for x in (negative, conditional)]
    np.testing.assert_allclose(guide(*arrays, jnp.float32(6)), guided, atol=1e-5)
    for rescale in (0.0, 0.4, 1.0):
        ratio = [c.std() / g.std() for c, g in zip(conditional, guided, strict=True)]
        factor = 1 - rescale + rescale * np.array(ratio)
        got = guide(*arrays, jnp.float32(6), jnp.float32(rescale))
        np.testing.assert_allclose(got, guided * factor[:, None, None, None], atol=1e-5)
    got = np.std(guide(*arrays, jnp.float32(6), jnp.float32(1)), axis=(1, 2, 3))
    np.testing.assert_allclose(got, conditional.std(axis=(1, 2, 3)), rtol=1e-5)
    assert (guided.std(axis=(1, 2, 3)) > 3 * got).all()


def test_an_empty_negative_prompt_is_zero_only_where_the_checkpoint_says_so(model):
    text, conditions = embed(model, ["", "a cat"], is_negative=True)
    assert not text[0].any() and not conditions.pooled_text[0].any()
    expected, pooled = encode_text_and_pool(model, encode_prompts(model, ["", "a cat"]))
    np.testing.assert_array_equal(text[1], expected[1])
    np.testing.assert_array_equal(conditions.pooled_text[1], pooled[1])
    kept, kept_conditions = embed(
        model.with_config(force_zeros_for_empty_prompt=False), ["", "a cat"], is_negative=True
    )
    prompt, prompt_conditions = embed(model, ["", "a cat"])
    for got in (kept, prompt):
        np.testing.assert_array_equal(got, expected)
    for got in (kept_conditions, prompt_conditions):
        np.testing.assert_array_equal(got.pooled_text, pooled)


def test_sizes_are_those_of_the_image_unless_others_are_given(model):
    _, conditions = embed(model, ["a cat", "dog"])
    np.testing.assert_array_equal(conditions.sizes, [[32, 24, 0, 0, 32, 24]] * 2)
    given = SizeCondition(original=(64, 48), crop=(1, 2), target=(16, 8))
    _, conditions = embed(model, ["a cat"], given)
    np.testing.assert_array_equal(conditions.sizes, [[64, 48, 1, 2, 16, 8]])
    assert conditions.sizes.dtype == jnp.int32


def test_other_sizes_give_another_image(model):
    images = [
        draw(model, size_condition=size)
        for size in (IMAGE_SIZE, SizeCondition(crop=(16, 0)), SizeCondition(original=(32, 32)))
    ]
    assert (images[0] != images[1]).any()
    np.testing.assert_array_equal(images[0], images[2])  # the image's own size


def test_masks_come_from_the_two_levels_of_stable_diffusion_xl(model):
    pairs = generate(model, ["a cat"], [["cat"]], sampling=SamplingConfig(num_steps=2))
    assert pairs.attention_maps.sides == (4, 8)
    assert pairs.soft_masks.shape == (1, 1, 32, 32)
    assert pairs.seed_counts[0, 0] > 0
    # Within one unit in the last place of the map that is stretched to [0, 1].
    assert 0 <= pairs.soft_masks.min() <= 2e-7 and 1 - 2e-7 <= pairs.soft_masks.max() <= 1


@pytest.mark.slow
def test_splitting_a_batch_of_xl_over_devices_does_not_change_samples(model):
    """Sizes are the same on all devices, text and its pooled embedding are not."""
    prompts = ["a cat", "a dog"]
    arrays = (
        encode_prompts(model, prompts),
        encode_prompts(model, ["", "a cup"]),
        mark_classes(model, prompts, [["cat"], ["dog"]]),
        np.arange(2, dtype=np.int32),
    )

    def run(model, arrays):
        return sample(
            model,
            PairInputs(*arrays),
            rng_seed=np.uint32(7),
            guidance_scale=np.float32(5),
            guidance_rescale=np.float32(0.5),
            config=SamplingConfig(num_steps=1),
        )

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    got, expected = quick_jit(split)(model, arrays), quick_jit(run)(model, arrays)
    assert relative_difference(got.latents, expected.latents) < 1e-3  # sums in another order
    cross = expected.attention_maps.cross_attention
    np.testing.assert_allclose(got.attention_maps.cross_attention, cross, rtol=0, atol=1e-4)


def test_without_rescaling_the_program_does_not_compute_it(model):
    plain = draw(model)
    rescaled = draw(model, guidance_rescale=0.9)
    again = draw(model, guidance_rescale=0.0)
    np.testing.assert_array_equal(again, plain)
    assert (rescaled != plain).any()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_vae_that_overflows_is_kept_in_float32(parts, dtype):
    config, params = parts
    low = make_model(config, params, dtype=dtype, model_id="xl")
    for path, leaf in flatten_dict(low.params).items():
        is_low = path[0] != "vae" and leaf.ndim > 1
        assert leaf.dtype == (dtype if is_low else jnp.float32), path
    # Activations beyond 65504, the largest float16: an image all the same.
    latents = 1e4 * jnp.asarray(normal(0, 1, 4, 4, 4))
    expected = decode_latents(make_model(config, params, model_id="xl"), latents)
    np.testing.assert_array_equal(decode_latents(low, latents), expected)
    fixed = dataclasses.replace(config, vae=dataclasses.replace(config.vae, force_upcast=False))
    honoured = make_model(fixed, params, dtype=dtype, model_id="xl")
    assert honoured.params["vae"]["decoder"]["conv_in"]["kernel"].dtype == dtype


def test_the_vae_of_stable_diffusion_1_honours_the_dtype(tmp_path):
    config = small_config(tmp_path / "tokenizer")
    assert config.vae.force_upcast  # what diffusers writes for every VAE
    assert config.dtype_of("vae", jnp.float16) == jnp.float16


def exclaiming_tokenizer(folder, **options):
    """The small tokenizer, which also knows "!!" as one token."""
    write_small_tokenizer(folder, **options)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["!!</w>"] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n! !</w>\n")
    return load_tokenizer(folder)


def test_different_token_positions_in_the_two_text_encoders_are_refused(model, tmp_path):
    """The padding token "!" of the second tokenizer is special there: it joins no neighbour."""
    model = model.with_config(
        tokenizer=exclaiming_tokenizer(tmp_path / "first"),
        tokenizer_2=exclaiming_tokenizer(tmp_path / "second", pad_token=PADDING_2),
    )
    # Another token at the same place, as in diffusers.
    first, second = encode_prompts(model, ["a! cat"])[0]
    assert first[2] != second[2] and (first[3:6] == second[3:6]).all()
    mask = mark_classes(model, ["a! cat", "cat !!"], [["cat"], ["cat"]])
    assert [np.flatnonzero(row).tolist() for row in mask[:, 0]] == [[3, 4, 5], [1, 2, 3]]
    with pytest.raises(ValueError, match="split the prompt 'a !! cat' differently.*leave out '!'"):
        mark_classes(model, ["a! cat", "a !! cat"], [["cat"], ["cat"]])


def test_a_latent_consistency_model_reads_the_guidance_scale_and_no_negative_prompt(tmp_path):
    config = small_config(tmp_path / "tokenizer", unet={"time_cond_proj_dim": 32})
    model = make_model(config, random_params(config), model_id="lcm")

    np.testing.assert_array_equal(draw(model, negative_prompt="a dog"), draw(model))
    for name, value in (
        ("negative_prompt", "a dog"),
        ("guidance_rescale", 0.7),
        ("guidance_interval", (0.0, 0.5)),
    ):
        with pytest.raises(UserError, match=f"^{name}=.* has no effect: this latent consistency"):
            require_guidance(model, SamplingConfig(**{name: value}))
    require_guidance(model, SamplingConfig(guidance_scale=2.0))
    assert (draw(model, guidance_scale=2.0) != draw(model)).any()


def test_a_guidance_scale_of_one_has_angle_zero():
    """Width 4: frequencies 1 and 1/10000 of 1000 (w - 1)."""
    got = guidance_embedding(jnp.array([1.0, 1.5]), 4)
    angles = np.array([500, 0.05])
    expected = [[0, 0, 1, 1], [*np.sin(angles), *np.cos(angles)]]
    np.testing.assert_allclose(got, expected, atol=5e-5)  # a float32 of 500 has a rounding of 3e-5


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (Conditions(), "conditions.pooled_text has shape None, this UNet needs"),
        (Conditions(pooled_text=jnp.zeros((2, 20))), "conditions.sizes has shape None"),
        (
            Conditions(pooled_text=jnp.zeros((2, 19)), sizes=jnp.zeros((2, 6), jnp.int32)),
            r"has shape \(2, 19\), this UNet needs \(2, 20\)",
        ),
        (
            Conditions(
                pooled_text=jnp.zeros((2, 20)),
                sizes=jnp.zeros((2, 6), jnp.int32),
                guidance_scale=jnp.zeros(2),
            ),
            r"guidance_scale has shape \(2,\), this UNet needs None",
        ),
    ],
)
def test_missing_and_superfluous_conditions_are_refused(model, conditions, message):
    latents, text = normal(0, 2, 16, 16, 4), normal(1, 2, LENGTH, 64)
    with pytest.raises(ValueError, match=message):
        quick_jit(predict_noise)(model, latents, np.zeros(2, np.int32), text, conditions=conditions)


def test_token_ids_for_too_few_text_encoders_are_refused(model):
    with pytest.raises(ValueError, match=r"shape \(1, 12\), this model needs \[b, 2, l\]"):
        encode_text(model, model.tokenizer.encode(["a cat"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5 must be a finite number in 0..1"),
        ({"size_condition": SizeCondition(crop=(0, -1))}, r"size_condition.crop=\(0, -1\) must be"),
        ({"size_condition": SizeCondition(original=64)}, "size_condition.original=64 must be two"),
    ],
)
def test_settings_out_of_range_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        draw(model, **options)


@pytest.mark.slow
def test_samples_in_bfloat16_are_close_to_float32(parts, model):
    """bfloat16 keeps 8 bits: the sizes and the pooled text must not be lost to it."""
    low = make_model(*parts, dtype=jnp.bfloat16, model_id="xl")
    token_ids = encode_prompts(model, ["a cat"])
    text, pooled = encode_text_and_pool(model, token_ids)
    conditions = Conditions(pooled_text=pooled, sizes=jnp.array([[1024, 1024, 0, 0, 1024, 1024]]))
    inputs = normal(0, 1, 16, 16, 4), np.array([500], np.int32), text
    got, expected = (predict_noise(m, *inputs, conditions=conditions)[0] for m in (low, model))
    assert relative_difference(got, expected) < 0.3
