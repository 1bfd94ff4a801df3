"""The tokenizers of a model: one, or the two of Stable Diffusion XL, which differ in their padding.

Where the files of others take their place, a single tokenizer can stand for both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seediff_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")


def tokenizer_folders(path: Path) -> dict[str, Path]:
    """Where the files of tokenizers are.

    Args:
        path: a tokenizer's own folder, or that of a model.

    Returns:
        The folder of "tokenizer", and that of "tokenizer_2" where the model has one.
    """
    if not (path / "tokenizer").is_dir():
        return {"tokenizer": path}
    return {name: path / name for name in TOKENIZER_FOLDERS if (path / name).is_dir()}


def read_tokenizers(
    folders: Mapping[str, Path], pad_tokens: Mapping[str, str | None]
) -> dict[str, Tokenizer]:
    """Reads the tokenizers of a model.

    Args:
        folders: of `tokenizer_folders`; the first stands for a second one that is not there.
        pad_tokens: for every tokenizer that the model has, the token that fills a prompt up; None
            is its own.

    Raises:
        ValueError: a file is missing or damaged, or lacks a padding token.
    """
    return {
        name: read_tokenizer(folders.get(name, folders["tokenizer"]), pad_token)
        for name, pad_token in pad_tokens.items()
    }


def read_tokenizer(folder: Path, pad_token: str | None = None) -> Tokenizer:
    """`load_tokenizer`, with a ValueError where a file is missing."""
    try:
        return load_tokenizer(folder, pad_token=pad_token)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def require_same_tokens(first: Tokenizer, second: Tokenizer, source: str) -> None:
    """Checks that two tokenizers of a model differ in nothing but their padding.

    Raises:
        ValueError: naming in what they differ.
    """
    for name, (one, other) in _compared(first, second).items():
        if one != other:
            raise ValueError(
                f"{source}: tokenizer and tokenizer_2 differ in {name}; a class would have other "
                "tokens for each of the two text encoders"
            )


def _compared(*tokenizers: Tokenizer) -> dict[str, list[Any]]:
    models = [json.loads(t.backend.backend_tokenizer.to_str())["model"] for t in tokenizers]
    compared = {name: [model[name] for model in models] for name in ("vocab", "merges")}
    compared["max_length"] = [t.max_length for t in tokenizers]
    for name in ("bos_token", "eos_token", "unk_token"):
        compared[name] = [getattr(t.backend, name) for t in tokenizers]
    return compared
