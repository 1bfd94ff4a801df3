"""Small models with random weights: no norm is 1 and no bias is 0, so that all paths matter."""

import dataclasses
import json

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers.pre_tokenizers import ByteLevel

from seediff_jax.models.capture import published_capture
from seediff_jax.models.config import clip_text_config, unet_config, vae_config
from seediff_jax.models.model import ModelConfig, init_params
from seediff_jax.prompts.tokenizer import load_tokenizer
from seediff_jax.schedulers.config import scheduler_config

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12
VOCABULARY = 2 * 256 + 2

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": LENGTH,
}
UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "norm_num_groups": 4,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
# Stable Diffusion XL: two text encoders, no attention at the finest level, deeper transformers.
XL_TEXT_2 = TEXT | {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "hidden_act": "gelu",
    "projection_dim": 20,
    "eos_token_id": 2,
}
XL_UNET = UNET | {
    "sample_size": 16,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 2,
    "attention_head_dim": [2, 4, 4],
    "transformer_layers_per_block": [1, 2, 3],
    "cross_attention_dim": TEXT["hidden_size"] + XL_TEXT_2["hidden_size"],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": XL_TEXT_2["projection_dim"] + 6 * 8,
}
PADDING_2 = "!"
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "skip_prk_steps": True,
}


def quick_jit(function):
    """Compiles a function that runs once in half the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def normal(seed, *shape):
    """Draws standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def relative_difference(got, expected):
    """Returns the largest difference of any element, in standard deviations of `expected`."""
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(got, np.float64) - expected).max() / expected.std()


def write_small_tokenizer(folder, pad_token=END):
    """Writes a CLIP tokenizer without merges: every letter is a token."""
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), START, END]
    vocabulary = {token: i for i, token in enumerate(entries)}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    settings |= {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    for name, content in (("vocab.json", vocabulary), ("tokenizer_config.json", settings)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def small_config(folder, text=None, unet=None, vae=None, scheduler=None):
    """Makes a small ModelConfig with options changed; writes a tokenizer to `folder`."""
    unet = unet_config(UNET | (unet or {}))
    return ModelConfig(
        text_encoder=clip_text_config(TEXT | (text or {})),
        unet=unet,
        vae=vae_config(VAE | (vae or {})),
        scheduler=scheduler_config(SCHEDULER | (scheduler or {})),
        tokenizer=load_tokenizer(write_small_tokenizer(folder)),
        capture=published_capture(unet),
    )


def one_level_config(folder, channels=16):
    """Makes the smallest config that records attention, for tests that compile whole programs."""
    unet = {
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "block_out_channels": [channels],
    }
    text, vae = {"num_hidden_layers": 1}, {"block_out_channels": [8]}
    return small_config(folder, text=text, unet=unet, vae=vae)


def small_xl_config(folder, **options):
    """Makes a small config of Stable Diffusion XL; writes both tokenizers to `folder`."""
    config = small_config(folder / "tokenizer", unet=XL_UNET, **options)
    second = write_small_tokenizer(folder / "tokenizer_2", PADDING_2)
    return dataclasses.replace(
        config,
        text_encoder_2=clip_text_config(XL_TEXT_2, projects=True),
        tokenizer_2=load_tokenizer(second),
        force_zeros_for_empty_prompt=True,
    )


def random_params(config, seed=0):
    """Draws float32 NumPy params of a ModelConfig."""
    random = np.random.default_rng(seed)
    shapes = flatten_dict(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    params = {}
    for path, leaf in shapes.items():
        values = random.standard_normal(leaf.shape, np.float32)
        if path[-1] == "kernel":
            values /= np.sqrt(np.prod(leaf.shape[:-1]))
        elif path[-1] in ("scale", "bias"):
            values = 0.3 * values + (path[-1] == "scale")
        params[path] = np.asarray(values, np.float32)
    return unflatten_dict(params)
