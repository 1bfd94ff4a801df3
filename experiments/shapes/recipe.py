"""What the embedded model is: its vocabulary and the JSON configs of its diffusers folder."""

import json
import pathlib

from experiments.shapes.render import BACKGROUNDS, LEADS
from seediff_jax.prompts import SHAPES_CLASSES

_START, _END = "<|startoftext|>", "<|endoftext|>"
WORDS = tuple(
    sorted({*SHAPES_CLASSES, *BACKGROUNDS, "and", "on", "background", *" ".join(LEADS).split()})
)
MAX_TOKENS = 16


def make_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Builds byte-pair tokens that spell each of `WORDS` as one token.

    Returns:
        Token -> id, and the merges in order of priority.
    """
    letters = dict.fromkeys(letter for word in WORDS for letter in _letters(word))
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        # A merge that comes later has a lower priority, so it leaves the earlier words whole.
        while len(pieces := _split(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    tokens = [*letters, *dict.fromkeys(a + b for a, b in merges), _START, _END]
    return {token: i for i, token in enumerate(tokens)}, [f"{a} {b}" for a, b in merges]


def _letters(word: str) -> list[str]:
    return [*word[:-1], word[-1] + "</w>"]


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: the first merge in the list that fits anywhere is made first."""
    pieces = _letters(word)
    for left, right in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def write_tokenizer(folder: pathlib.Path) -> None:
    """Writes a CLIPTokenizer folder: vocab.json, merges.txt, tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = make_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=0) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MAX_TOKENS,
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def text_encoder_json() -> dict:
    """Config of the text encoder, as transformers writes it."""
    vocabulary, _ = make_vocabulary()
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
        "bos_token_id": vocabulary[_START],
        "eos_token_id": vocabulary[_END],
        "pad_token_id": vocabulary[_END],
    }


UNET_JSON = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64, 128],
    "layers_per_block": 1,
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 96,
    "norm_num_groups": 8,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "use_linear_projection": True,
}
VAE_JSON = {
    "_class_name": "AutoencoderKL",
    "sample_size": 128,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "act_fn": "silu",
    # Convolutions alone: the latents of a crop are then those of the image.
    "mid_block_add_attention": False,
}
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
