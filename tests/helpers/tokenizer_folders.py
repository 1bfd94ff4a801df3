"""Tokenizer folders for tests: a small vocabulary, and CLIP's real one where it is available.

The small vocabulary has all bytes and a few merges, so that its tokens can be counted by hand.
CLIP's own is read from `shared/data/clip` next to the repository, or from the folder that the
environment variable SEEDIFF_CLIP_VOCAB names. Without either, its cases are not collected.
"""

import json
import os
import shutil
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("p h", "o t", "ph ot", "phot o</w>", "o f</w>", "d o", "do g</w>", "a e", "ae r", "aer o")
MERGES += ("aero p", "l a", "la n", "lan e</w>")
CLIP = Path(
    os.environ.get("SEEDIFF_CLIP_VOCAB") or Path(__file__).parents[3] / "shared" / "data" / "clip"
)
HAS_CLIP = (CLIP / "vocab.json").exists() and (CLIP / "merges.txt").exists()
VOCABULARIES = ["small", "clip"] if HAS_CLIP else ["small"]

# As saved with Stable Diffusion 1.x, and with 2.x, whose two files disagree about the padding.
TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
SD1 = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": END}
SD1 |= {
    name: {"__type": "AddedToken", "content": content, **TOKEN}
    for name, content in [("bos_token", START), ("eos_token", END), ("unk_token", END)]
}
SD2_MAP = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_tokenizer(folder, vocabulary="small", config=SD1, special_tokens_map=None):
    """Writes a diffusers `tokenizer/` folder."""
    folder.mkdir()
    if vocabulary == "clip":
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(CLIP / name, folder / name)
    else:
        letters = sorted(ByteLevel.alphabet())
        entries = [*letters, *(letter + "</w>" for letter in letters)]
        entries += [merge.replace(" ", "") for merge in MERGES] + [START, END]
        write_json(folder / "vocab.json", {token: i for i, token in enumerate(entries)})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if special_tokens_map is not None:
        write_json(folder / "special_tokens_map.json", special_tokens_map)
    return folder
