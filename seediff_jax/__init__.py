"""SeeDiff in JAX/Flax: a text prompt in, an image and its pixel masks out.

    prompts, classes
        |  tokenizer
    token_ids, class_token_mask
        |  sampling: models (text encoder, UNet, VAE) in a scan over schedulers' steps
    images, AttentionMaps {cross_attention [b, layers, n0, c], self_attention {side: [b, n, n]}}
        |  seeds: seed_map, find_seeds
    seeds of each class at the coarsest level
        |  expansion: expand, level by level
    soft_masks
        |  refinement (optional), label_maps
    label_maps

`generate` is all of it; every stage is a function of its own. Method: SeeDiff, arXiv 2507.19808.
"""

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.expansion import expand
from seediff_jax.guidance import SizeCondition
from seediff_jax.label_maps import BACKGROUND, IGNORE_INDEX, label_map
from seediff_jax.masks import MaskConfig, class_soft_mask, soft_mask
from seediff_jax.model import (
    Model,
    decode_latents,
    encode_images,
    encode_text,
    encode_text_and_pool,
    load_model,
    predict_noise,
    save_model,
)
from seediff_jax.models.conditioning import Conditions
from seediff_jax.pipeline import Pairs, generate, generate_images
from seediff_jax.prompt_tokens import encode_prompts
from seediff_jax.refinement import refine
from seediff_jax.seeds import find_seeds, seed_map

__version__ = "0.1.0"

__all__ = [
    "BACKGROUND",
    "IGNORE_INDEX",
    "AttentionMaps",
    "Conditions",
    "MaskConfig",
    "Model",
    "Pairs",
    "SizeCondition",
    "class_soft_mask",
    "decode_latents",
    "encode_images",
    "encode_prompts",
    "encode_text",
    "encode_text_and_pool",
    "expand",
    "find_seeds",
    "generate",
    "generate_images",
    "label_map",
    "load_model",
    "predict_noise",
    "refine",
    "save_model",
    "seed_map",
    "soft_mask",
]
