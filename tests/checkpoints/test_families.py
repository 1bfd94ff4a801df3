"""The built-in configs of each family equal the published ones."""

import pytest

from seediff_jax.checkpoints.families import FAMILIES
from seediff_jax.checkpoints.model_config import make_model_config
from seediff_jax.models.config import clip_text_config, unet_config, vae_config
from seediff_jax.prompts.tokenizer import read_tokenizers
from seediff_jax.schedulers.config import scheduler_config
from tests.helpers.published_configs import (
    SD1_SCHEDULER,
    SD1_TEXT,
    SD1_UNET,
    SD1_VAE,
    SD2_SCHEDULER,
    SD2_TEXT,
    SD2_UNET,
    SD2_VAE,
    XL_SCHEDULER,
    XL_TEXT,
    XL_TEXT_2,
    XL_UNET,
    XL_VAE,
)
from tests.helpers.random_models import write_small_tokenizer

TEXT_2 = {"text_encoder_2": clip_text_config(XL_TEXT_2, projects=True)}
# Text encoder, UNet, VAE and scheduler of a folder, and the additions of XL. That of 2.1 base has
# the changes below and PNDM: a single file names no scheduler, so that one is written for both.
PUBLISHED = {
    ("sd1", "epsilon"): (SD1_TEXT, SD1_UNET, SD1_VAE, SD1_SCHEDULER, {}),
    ("sd2", "v_prediction"): (SD2_TEXT, SD2_UNET, SD2_VAE, SD2_SCHEDULER, {}),
    ("sd2", "epsilon"): (
        SD2_TEXT,
        SD2_UNET | {"sample_size": 64},
        SD2_VAE | {"sample_size": 512},
        SD2_SCHEDULER | {"prediction_type": "epsilon"},
        {},
    ),
    ("sdxl", "epsilon"): (XL_TEXT, XL_UNET, XL_VAE, XL_SCHEDULER, TEXT_2),
}


@pytest.mark.parametrize(("family", "prediction_type"), PUBLISHED)
def test_configs_of_the_full_size_are_the_published_ones(family, prediction_type, tmp_path):
    text, unet, vae, scheduler, more = PUBLISHED[family, prediction_type]
    configs = FAMILIES[family].folder_configs(prediction_type)
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer")
    tokenizers = dict.fromkeys(FAMILIES[family].pad_tokens, tokenizer)
    tokenizers = read_tokenizers(tokenizers, FAMILIES[family].pad_tokens)
    config = make_model_config(configs, tokenizers, "")
    assert {name: getattr(config, name) for name in (*config.components, "scheduler")} == {
        "text_encoder": clip_text_config(text),
        "unet": unet_config(unet),
        "vae": vae_config(vae),
        "scheduler": scheduler_config(scheduler),
        **more,
    }
    # XL alone reads an empty negative prompt as zeros.
    assert config.force_zeros_for_empty_prompt == (family == "sdxl")
