"""JSON configs of an embedded model, as diffusers and transformers write them."""

from collections.abc import Sequence
from typing import Any

from experiments.training.vocabulary import END, START

MAX_TOKENS = 16
"""Length of a tokenized caption."""

SCHEDULER_JSON = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def text_encoder_json(vocabulary: dict[str, int]) -> dict[str, Any]:
    """Returns the config of the text encoder."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": len(vocabulary),
        "hidden_size": 96,
        "intermediate_size": 192,
        # No layers: only a class's own word can then tell the UNet which class it is.
        "num_hidden_layers": 0,
        "num_attention_heads": 3,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 96,
        "bos_token_id": vocabulary[START],
        "eos_token_id": vocabulary[END],
        "pad_token_id": vocabulary[END],
    }


def unet_json(latent_channels: int, channels: Sequence[int]) -> dict[str, Any]:
    """Returns the config of the UNet.

    Attention is at the second coarsest level on the way down, and at all but the coarsest on the
    way up.

    Args:
        latent_channels: as in `vae_json`.
        channels: width of each level, finest first; multiples of 32.
    """
    levels = len(channels)
    attends = [k == levels - 2 for k in range(levels)]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 32,
        "in_channels": latent_channels,
        "out_channels": latent_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * (levels - 1)],
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "attention_head_dim": [width // 32 for width in channels],
        "cross_attention_dim": 96,
        "norm_num_groups": 8,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "use_linear_projection": True,
    }


def inner_unet_json(unet: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a UNet without its finest level; see `growing.grow_unet`."""
    return unet | {
        "sample_size": unet["sample_size"] // 2,
        "down_block_types": unet["down_block_types"][1:],
        "up_block_types": unet["up_block_types"][:-1],
        "block_out_channels": unet["block_out_channels"][1:],
        "attention_head_dim": unet["attention_head_dim"][1:],
    }


def vae_json(latent_channels: int) -> dict[str, Any]:
    """Returns the config of the VAE, whose latents have a quarter of the side of the image."""
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": 128,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": latent_channels,
        "block_out_channels": [16, 32, 64],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "act_fn": "silu",
        # Convolutions alone: the latents of a crop are then those of the image.
        "mid_block_add_attention": False,
    }
