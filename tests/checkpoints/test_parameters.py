"""The shapes computed from configs equal those of the traced networks."""

import math

import jax
import pytest
from flax.traverse_util import flatten_dict

from seediff_jax.checkpoints.families import FAMILIES
from seediff_jax.checkpoints.parameters import (
    parameters,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from seediff_jax.models.config import clip_text_config, unet_config, vae_config
from seediff_jax.models.model import init_params
from tests.helpers.random_models import small_config, small_xl_config

OPTIONS = {
    "default": {},
    "embeddings alone": {"text": {"num_hidden_layers": 0}},
    "linear projection": {"unet": {"use_linear_projection": True}},
    "guidance embedding": {"unet": {"time_cond_proj_dim": 12}},
    "one level": {
        "unet": {
            "down_block_types": ["CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D"],
            "block_out_channels": [16],
        },
        "vae": {"block_out_channels": [8]},
    },
    "four levels": {
        "unet": {
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "block_out_channels": [16, 32, 48, 48],
            "transformer_layers_per_block": [0, 1, 2, 3],
            "layers_per_block": 2,
        },
        "vae": {"block_out_channels": [8, 16, 24, 24], "layers_per_block": 2},
    },
    "VAE without attention and convolutions of one point": {
        "vae": {
            "mid_block_add_attention": False,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
    },
    "other channels": {
        "unet": {"in_channels": 3, "out_channels": 5},
        "vae": {"in_channels": 2, "out_channels": 6, "latent_channels": 7},
    },
}


def shapes_of(params):
    return {path: leaf.shape for path, leaf in flatten_dict(params).items()}


def shapes_by_path(config):
    return {path: parameter.shape for path, parameter in parameters(config).items()}


def traced(config):
    return shapes_of(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_shapes_are_those_of_the_traced_networks(options, tmp_path):
    config = small_config(tmp_path / "tokenizer", **options)
    assert shapes_by_path(config) == traced(config)


def test_shapes_of_stable_diffusion_xl_are_those_of_the_traced_networks(tmp_path):
    config = small_xl_config(tmp_path)
    assert shapes_by_path(config) == traced(config)


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        ("sd1", {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 83_653_863}),
        ("sd2", {"text_encoder": 340_387_840, "unet": 865_910_724, "vae": 83_653_863}),
        ("sdxl", {"text_encoder": 123_060_480, "unet": 2_567_463_684, "vae": 83_653_863}),
    ],
)
def test_full_size_models_have_the_published_numbers_of_weights(family, counts):
    configs = FAMILIES[family].configs
    shapes = {
        "text_encoder": text_encoder_shapes(clip_text_config(configs["text_encoder/config.json"])),
        "unet": unet_shapes(unet_config(configs["unet/config.json"])),
        "vae": vae_shapes(vae_config(configs["vae/config.json"])),
    }
    for name, tree in shapes.items():
        assert sum(math.prod(shape) for shape in flatten_dict(tree).values()) == counts[name]
