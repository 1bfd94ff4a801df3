"""AttentionMaps equal the probabilities in torch's attention processors, layer by layer."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from seediff_jax.checkpoints.load import load_model
from seediff_jax.models.capture import CaptureConfig
from seediff_jax.models.model import predict_noise
from seediff_jax.models.transformer import TokenColumns
from tests.helpers.random_models import LENGTH, normal, quick_jit, relative_difference
from tests.helpers.torch_models import blocks, capture_probs, random_pipeline, to_numpy, to_torch

MODELS = {
    # Levels 4, 8, 16 like 16, 32, 64 of Stable Diffusion 1; two down and three up layers per level.
    "Stable Diffusion 1": {
        **blocks("aaap"),
        "block_out_channels": [16, 16, 32, 32],
        "layers_per_block": 2,
        "attention_head_dim": 4,
    },
    "two transformer blocks, heads by level": {
        **blocks("aap"),
        "block_out_channels": [16, 32, 32],
        "transformer_layers_per_block": [1, 2, 1],
        "attention_head_dim": [2, 4, 8],
        "use_linear_projection": True,
    },
}
SIDE, BATCH = 16, 3


def layers(*names):
    return tuple(f"{name}.transformer_blocks.0" for name in names)


def make_capture(self_layers, cross_layers):
    return CaptureConfig(
        self_layers=tuple(f"{name}.attn1" for name in self_layers),
        cross_layers=tuple(f"{name}.attn2" for name in cross_layers),
    )


# Other choices than the published one: other blocks, the mid block, a single level.
CAPTURES = {
    "Stable Diffusion 1": make_capture(
        layers("mid_block.attentions.0", "up_blocks.2.attentions.2", "down_blocks.0.attentions.1"),
        layers("mid_block.attentions.0"),
    ),
    "two transformer blocks, heads by level": make_capture(
        ["down_blocks.1.attentions.0.transformer_blocks.1"],
        ["up_blocks.1.attentions.1.transformer_blocks.1"],
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(
    scope="module", params=[pytest.param((16, 16), marks=pytest.mark.slow), (24, 16)], ids=str
)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def inputs(size):
    timesteps = np.array([1, 437, 998], np.int32)
    return normal(1, BATCH, *size, 4), timesteps, normal(2, BATCH, LENGTH, 24)


@pytest.fixture(scope="module")
def case(name, inputs, tmp_path_factory):
    """Returns our model, the reference's noise prediction, and its probabilities of each layer."""
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline = random_pipeline(folder / "made", unet={**MODELS[name], "sample_size": SIDE})
    pipeline.save_pretrained(folder / "saved")
    captured = capture_probs(pipeline.unet)
    latents, timesteps, text = inputs
    with torch.no_grad():
        expected = pipeline.unet(
            to_torch(latents), torch.from_numpy(timesteps), torch.from_numpy(text)
        ).sample
    probs = {layer: processor.head_sum for layer, processor in captured.items()}
    return load_model(folder / "saved"), to_numpy(expected), probs


def assert_maps_equal(maps, capture, probs, rows, size, token_weights=None):
    """Compares maps; entries sum at most 8 probabilities, whose logits differ by about 1e-6."""
    cross = np.stack([probs[layer][rows] for layer in capture.cross_layers], axis=1)
    if token_weights is not None:
        cross = np.einsum("bynl,blk->bynk", cross, token_weights)
    np.testing.assert_allclose(maps.cross_attention, cross, rtol=0, atol=1e-5)
    assert len(maps.self_attention) == len(capture.self_layers)
    for layer in capture.self_layers:
        expected = probs[layer][rows]
        height = round(np.sqrt(expected.shape[-1] * size[0] / size[1]))
        got = maps.self_attention[height]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        # Far from uniform; otherwise the comparison would say little.
        assert expected.max() > 1.5 * expected.mean()


def test_published_layers_of_all_rows_and_tokens(case, inputs, size):
    model, expected, probs = case
    noise_pred, maps = quick_jit(predict_noise)(model, *inputs)
    assert relative_difference(noise_pred, expected) < 1e-4
    heights = tuple(size[0] // factor for factor in (4, 2, 1))
    assert maps.sides == heights[-len(maps.sides) :]
    assert_maps_equal(maps, model.capture, probs, slice(None), size)


def test_other_layers_of_the_last_rows_projected_on_columns(case, inputs, name, size):
    model, expected, probs = case
    model = model.with_config(capture=CAPTURES[name])
    token_weights = np.random.default_rng(3).random((2, LENGTH, 3), np.float32)
    columns = TokenColumns(jnp.asarray(token_weights))
    noise_pred, maps = quick_jit(predict_noise)(model, *inputs, columns)
    assert relative_difference(noise_pred, expected) < 1e-4
    # Weighted sums of 12 tokens, with weights below 1: still at most 8 probabilities per row.
    assert_maps_equal(maps, model.capture, probs, slice(1, None), size, token_weights)
