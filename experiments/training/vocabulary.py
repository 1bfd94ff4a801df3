"""A small vocabulary in the format of CLIP's byte-pair tokenizer."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

START, END = "<|startoftext|>", "<|endoftext|>"


def make_vocabulary(words: tuple[str, ...]) -> tuple[dict[str, int], list[str]]:
    """Builds byte-pair tokens that spell each of `words` as one token.

    Returns:
        Token -> id, and the merges in order of priority.
    """
    letters = dict.fromkeys(letter for word in words for letter in _letters(word))
    merges: list[tuple[str, str]] = []
    for word in words:
        # A merge that comes later has a lower priority, so it leaves the earlier words whole.
        while len(pieces := _split(word, merges)) > 1:
            merges.append((pieces[0], pieces[1]))
    tokens = [*letters, *dict.fromkeys(a + b for a, b in merges), START, END]
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


def write_tokenizer(
    folder: pathlib.Path, words: tuple[str, ...], max_tokens: int
) -> dict[str, int]:
    """Writes a CLIPTokenizer folder and returns its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = make_vocabulary(words)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=0) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "unk_token": END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return vocabulary


def copy_synonyms(
    embedding: np.ndarray, vocabulary: Mapping[str, int], synonyms: Mapping[str, str]
) -> np.ndarray:
    """Gives every synonym the embedding of its word.

    Args:
        embedding: of all tokens, `[len(vocabulary), d]`.
        vocabulary: token -> row.
        synonyms: word -> the trained word that it means; both are single tokens.
    """
    copied = np.array(embedding)
    for word, trained in synonyms.items():
        copied[vocabulary[word + "</w>"]] = embedding[vocabulary[trained + "</w>"]]
    return copied
