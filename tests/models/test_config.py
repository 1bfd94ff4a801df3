"""Configs from the JSON files of Stable Diffusion 1, 2 and XL, and unsupported ones."""

import pytest

from seediff_jax.models.config import (
    ClipTextConfig,
    UNetConfig,
    VaeConfig,
    clip_text_config,
    clip_text_json,
    unet_config,
    unet_json,
    vae_config,
    vae_json,
)
from tests.helpers.published_configs import (
    ATTENDING,
    ATTENDING_UP,
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_UNET,
    XL_TEXT,
    XL_TEXT_2,
    XL_UNET,
    XL_VAE,
)


def without(json, key):
    return {name: value for name, value in json.items() if name != key}


def test_attention_head_dim_of_stable_diffusion_1_is_a_number_of_heads():
    assert unet_config(SD1_UNET) == UNetConfig(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        down_block_types=tuple(ATTENDING),
        up_block_types=tuple(ATTENDING_UP),
        block_out_channels=(320, 640, 1280, 1280),
        num_attention_heads=(8, 8, 8, 8),
        transformer_layers_per_block=(1, 1, 1, 1),
        cross_attention_dim=768,
    )


def test_stable_diffusion_2_has_heads_by_block_and_linear_projections():
    config = unet_config(SD2_UNET)
    assert config.num_attention_heads == (5, 10, 20, 20)
    assert config.use_linear_projection and config.sample_size == 96


def test_vae_and_text_encoder_of_stable_diffusion_1():
    vae = vae_config(SD1_VAE)
    widths = (128, 256, 512, 512)
    assert vae == VaeConfig(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=widths,
        layers_per_block=2,
    )
    assert (vae.scaling_factor, vae.downsampling) == (0.18215, 8)
    assert clip_text_config(SD1_TEXT) == ClipTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
    )


def test_stable_diffusion_xl_pools_text_and_reads_sizes():
    config = unet_config(XL_UNET)
    assert config.transformer_layers_per_block == (1, 2, 10)
    assert config.pooled_text_dim == 1280
    text = clip_text_config(XL_TEXT_2, projects=True)
    assert (text.projection_dim, text.eos_token_id) == (1280, 2)
    first = clip_text_config(XL_TEXT)
    assert first == clip_text_config(SD1_TEXT) and first.projection_dim is None
    assert first.hidden_size + text.hidden_size == config.cross_attention_dim
    vae = vae_config(XL_VAE)
    assert vae.force_upcast and vae.scaling_factor == 0.13025


def test_a_projecting_text_encoder_has_the_defaults_of_transformers():
    json = without(without(XL_TEXT_2, "projection_dim"), "eos_token_id")
    text = clip_text_config(json, projects=True)
    assert (text.projection_dim, text.eos_token_id) == (512, 49407)
    with pytest.raises(ValueError, match="eos_token_id must be numbers"):
        clip_text_config(XL_TEXT_2 | {"eos_token_id": None}, projects=True)


@pytest.mark.parametrize("json", [SD1_UNET, SD2_UNET, SD2_UNET | {"norm_eps": 1e-6}, XL_UNET])
def test_written_unet_configs_read_back_equal(json):
    config = unet_config(json)
    written = unet_json(config)
    assert unet_config(written) == config
    assert "num_attention_heads" not in written  # diffusers refuses this key


def test_written_vae_and_text_configs_read_back_equal():
    vae = vae_config(SD1_VAE | {"scaling_factor": 0.25, "use_quant_conv": False})
    assert vae_config(vae_json(vae)) == vae
    text = clip_text_config(SD1_TEXT | {"hidden_act": "gelu"})
    assert clip_text_config(clip_text_json(text)) == text
    text = clip_text_config(XL_TEXT_2, projects=True)
    assert clip_text_config(clip_text_json(text), projects=True) == text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier' is not supported"),
        ({"time_magic": 3}, "unknown option 'time_magic' = 3"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu' is not supported; supported: 'silu', 'swish'"),
        ({"down_block_types": ["AttnDownBlock2D"] + ATTENDING[1:]}, "'AttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "no CrossAttnUpBlock2D"),
        ({"up_block_types": ATTENDING_UP[:3]}, "up_block_types has 3 items, expected 4"),
        ({"mid_block_type": None}, "mid_block_type = None is not supported"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim = .* has 2 items, expected 4"),
        ({"attention_head_dim": 7}, "block_out_channels = 320 is not a multiple of 7"),
        ({"attention_head_dim": "8"}, "attention_head_dim"),
        ({"norm_num_groups": 48}, "block_out_channels = 320 is not a multiple of 48"),
        ({"norm_num_groups": None}, "norm_num_groups = None, expected one int"),
        ({"sample_size": [64, 96]}, "sample_size = .*, expected one int"),
        ({"cross_attention_dim": "768"}, "cross_attention_dim = '768', expected one int"),
        ({"use_linear_projection": 1}, "use_linear_projection = 1, expected one bool"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type = 'text_image'"),
        (
            {"addition_embed_type": "text_time"},
            "addition_time_embed_dim = None does not go with 'text_time' conditions",
        ),
        ({"addition_time_embed_dim": 8}, "addition_time_embed_dim = 8 does not go with None"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 48,
            },
            "projection_class_embeddings_input_dim = 48 must be above 6 x",
        ),
        ({"conv_in_kernel": 5}, "conv_in_kernel = 5"),
        ({"dropout": 0.1}, "dropout = 0.1"),
        ({"down_block_types": 4}, "down_block_types = 4, expected a list of str"),
        ({"attention_head_dim": 8.0}, "attention_head_dim = 8.0, expected a number or a list"),
        ({"attention_head_dim": {}}, "attention_head_dim = {}, expected a number or a list"),
        ({"transformer_layers_per_block": None}, "transformer_layers_per_block = None, expected"),
        ({"transformer_layers_per_block": 10**9}, "= 1000000000, expected 0 to 16"),
        ({"transformer_layers_per_block": [0, 0, 0, 1]}, "no CrossAttnUpBlock2D with a transf"),
        ({"layers_per_block": 10**9}, "layers_per_block = 1000000000, expected 1 to 4"),
        ({"layers_per_block": 0}, "layers_per_block = 0, expected 1 to 4"),
        ({"block_out_channels": [320, 640, 1280, 32 * 10**12]}, "= 32000000000000, expected 1 to"),
        ({"block_out_channels": [0, 640, 1280, 1280]}, "block_out_channels = 0, expected 1 to"),
        ({"sample_size": 10**6}, "sample_size = 1000000, expected 1 to 4096"),
        ({"norm_eps": 0.0}, "norm_eps = 0.0, expected a finite number above 0"),
        ({"norm_eps": float("nan")}, "norm_eps = nan, expected a finite number above 0"),
        ({"freq_shift": 2}, "freq_shift = 2, expected 0 to 1"),
        ({"time_cond_proj_dim": 10**9}, "time_cond_proj_dim = 1000000000, expected 1 to 65536"),
        (
            {"time_cond_proj_dim": 2},
            "time_cond_proj_dim = 2, expected an even number of at least 4",
        ),
        (
            {"block_out_channels": [5] * 4, "norm_num_groups": 5, "attention_head_dim": 1},
            "block_out_channels = 5, expected an even number of at least 4",
        ),
    ],
)
def test_unsupported_options_of_the_unet_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=f"^here.json: .*{message}"):
        unet_config(SD1_UNET | change, "here.json")


def test_missing_options_are_named_together():
    json = without(without(SD1_UNET, "in_channels"), "cross_attention_dim")
    with pytest.raises(ValueError, match="missing options cross_attention_dim, in_channels"):
        unet_config(json)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift_factor": 0.1}, "shift_factor = 0.1 is not supported"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types .* expected 4"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "'AttnUpDecoderBlock2D'"),
        ({"block_out_channels": [100] * 4}, "block_out_channels = 100 is not a multiple of 32"),
        ({"scaling_factor": None}, "scaling_factor = None, expected one float"),
        ({"scaling_factor": -0.18}, "scaling_factor = -0.18, expected a finite number above 0"),
        ({"block_out_channels": 128}, "block_out_channels = 128, expected a list of int"),
        ({"block_out_channels": []}, "block_out_channels has 0 items, expected 1 to 8"),
        ({"block_out_channels": [32] * 10**5}, "block_out_channels has 100000 items"),
    ],
)
def test_unsupported_options_of_the_vae_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        vae_config(SD1_VAE | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"num_attention_heads": 7}, "hidden_size = 768 is not a multiple of 7"),
        ({"model_type": "t5"}, "model_type = 't5' is not supported"),
        ({"rope_theta": 1.0}, "unknown option 'rope_theta'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, expected 0 to 64"),
        ({"vocab_size": 10**9}, "vocab_size = 1000000000, expected 1 to 1048576"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps = inf, expected a finite number"),
    ],
)
def test_unsupported_options_of_the_text_encoder_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        clip_text_config(SD1_TEXT | change)


def test_a_text_encoder_may_be_embeddings_alone():
    assert clip_text_config({**SD1_TEXT, "num_hidden_layers": 0}).num_hidden_layers == 0
