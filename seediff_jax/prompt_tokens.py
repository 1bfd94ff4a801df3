"""Prompts and classes as tokens of every text encoder that a model has; host only."""

from collections.abc import Mapping, Sequence

import numpy as np

from seediff_jax.arrays import Bool, Int, typechecked
from seediff_jax.model import Model
from seediff_jax.tokenizer import class_token_mask


@typechecked
def encode_prompts(model: Model, prompts: Sequence[str]) -> Int[np.ndarray, "b *encoders l"]:
    """Turns prompts into the token ids that `encode_text` takes.

    Returns:
        int32 `[b, l]`, or `[b, 2, l]` for the two text encoders of Stable Diffusion XL.

    Raises:
        ValueError: see `Tokenizer.encode`.
    """
    token_ids = model.tokenizer.encode(prompts)
    if model.tokenizer_2 is None:
        return token_ids
    return np.stack([token_ids, model.tokenizer_2.encode(prompts)], axis=1)


@typechecked
def mark_classes(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Bool[np.ndarray, "b c l"]:
    """Marks the tokens of each class, see `class_token_mask`.

    Raises:
        ValueError: as `class_token_mask`, or the tokens of a class stand at other positions for the
            second text encoder.
    """
    mask = class_token_mask(model.tokenizer, prompts, classes, synonyms)
    if model.tokenizer_2 is not None:
        other = class_token_mask(model.tokenizer_2, prompts, classes, synonyms)
        for prompt, differs in zip(prompts, (mask != other).any(axis=(1, 2)), strict=True):
            if differs:
                padding = model.tokenizer_2.backend.pad_token
                raise ValueError(
                    f"the two tokenizers of the model split the prompt {prompt!r} differently, so "
                    f"its classes have no common tokens; leave out {padding!r}, the padding token"
                )
    return mask
