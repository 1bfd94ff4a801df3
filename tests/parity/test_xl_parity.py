"""The parts of Stable Diffusion XL equal transformers and diffusers, with random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.load import load_model
from seediff_jax.models.conditioning import Conditions
from seediff_jax.models.model import encode_text_and_pool, predict_noise
from seediff_jax.sampling.inputs import encode_prompts
from tests.helpers.random_models import LENGTH, VOCABULARY, normal, quick_jit, relative_difference
from tests.helpers.torch_models import capture_probs, random_xl_pipeline, to_numpy, to_torch

PROMPTS = ["a red cat", "", "dog"]
# Float32 sums in another order differ by about 1e-6 of the reference's deviation.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=[2, VOCABULARY - 1], ids=["legacy end token", "end token"])
def pair(request, tmp_path_factory):
    """Returns a diffusers pipeline and our model, read from the folder that diffusers wrote."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = random_xl_pipeline(folder / "made", text_2={"eos_token_id": request.param})
    pipeline.save_pretrained(folder / "saved")
    return pipeline, load_model(folder / "saved")


@torch.no_grad()
def test_prompts_are_embedded_and_pooled_as_in_diffusers(pair):
    pipeline, model = pair
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    got, got_pooled = encode_text_and_pool(model, jnp.asarray(encode_prompts(model, PROMPTS)))
    assert got.shape == (3, LENGTH, 24 + 40) and got_pooled.shape == (3, 20)
    assert relative_difference(got, text.numpy()) < TOLERANCE
    assert relative_difference(got_pooled, pooled.numpy()) < TOLERANCE


def test_each_text_encoder_reads_the_tokens_of_its_tokenizer(pair):
    pipeline, model = pair
    got = encode_prompts(model, PROMPTS)
    for i, tokenizer in enumerate((pipeline.tokenizer, pipeline.tokenizer_2)):
        expected = tokenizer(PROMPTS, padding="max_length", max_length=LENGTH).input_ids
        np.testing.assert_array_equal(got[:, i], expected)
    assert (got[:, 0] != got[:, 1]).any()


@pytest.mark.parametrize("pair", [VOCABULARY - 1], indirect=True)
@torch.no_grad()
def test_noise_predictions_and_attention_equal_those_of_diffusers(pair):
    pipeline, model = pair
    captured = capture_probs(pipeline.unet)
    latents, timesteps = normal(1, 3, 16, 16, 4), np.array([0, 437, 999], np.int32)
    text, pooled = normal(2, 3, LENGTH, 64), normal(3, 3, 20)
    sizes = np.array(
        [[32] * 2 + [0] * 2 + [32] * 2, [1024, 768, 5, 9, 640, 512], [7] * 6], np.int32
    )
    added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    expected = pipeline.unet(
        to_torch(latents),
        torch.from_numpy(timesteps),
        torch.from_numpy(text),
        added_cond_kwargs=added,
    ).sample
    conditions = Conditions(pooled_text=jnp.asarray(pooled), sizes=jnp.asarray(sizes))
    noise_pred, maps = quick_jit(predict_noise)(
        model, latents, timesteps, text, conditions=conditions
    )
    assert relative_difference(noise_pred, to_numpy(expected)) < TOLERANCE
    assert maps.sides == (4, 8)
    # Two transformers of three blocks on the way down, three on the way up.
    assert maps.cross_attention.shape == (3, 15, 16, LENGTH)
    # Entries are sums of 4 probabilities, whose logits differ by about 1e-6.
    probs = [captured[name].head_sum for name in model.capture.cross_layers]
    np.testing.assert_allclose(maps.cross_attention, np.stack(probs, axis=1), rtol=0, atol=1e-5)
    for side, name in zip(maps.sides, model.capture.self_layers, strict=True):
        expected = captured[name].head_sum
        np.testing.assert_allclose(maps.self_attention[side], expected, rtol=0, atol=1e-5)
        assert expected.max() > 0.5  # far from uniform, else the comparison would say little


def test_a_folder_of_diffusers_is_written_back_with_equal_weights(pair, tmp_path):
    pipeline, model = pair
    save_model(model, tmp_path / "ours")
    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "ours", add_watermarker=False)
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        expected = getattr(pipeline, name).state_dict()
        got = getattr(again, name).state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], tensor) for key, tensor in expected.items())
    assert again.config.force_zeros_for_empty_prompt is True
    assert again.text_encoder_2.config.eos_token_id == pipeline.text_encoder_2.config.eos_token_id
    assert (again.tokenizer.pad_token, again.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    assert load_model(tmp_path / "ours").config == model.config
