"""Columns of recorded attention, one a class, and the tokens of which each is the mean.

A class that the prompt names is found at its own tokens. A class that the prompt does not name is
found by a text that names it and that the image is never drawn from: its keys are compared with the
image's queries (as with the class prompts of Dataset Diffusion, arXiv 2309.14303, and OVAM, arXiv
2403.20105). Host only.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seediff_jax.arrays import Bool
from seediff_jax.class_names import require_classes, require_unnamed
from seediff_jax.model import Model
from seediff_jax.prompt_tokens import mark_classes


class ClassColumns(NamedTuple):
    """Tokens of the classes of b prompts; c is the longest list, the others are padded.

    Attributes:
        token_mask: bool `[b, c, l]`, tokens of the prompt; none for a class that it does not name.
        texts: b texts that name the other classes, or None where there are none.
        text_token_mask: bool `[b, c, l]`, tokens of these texts, or None.
    """

    token_mask: Bool[np.ndarray, "b c l"]
    texts: list[str] | None = None
    text_token_mask: Bool[np.ndarray, "b c l"] | None = None


def class_columns(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    unnamed_classes: Sequence[Sequence[str]] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> ClassColumns:
    """Marks the tokens of the classes that each prompt names, and of those that it does not.

    Args:
        model: whose tokenizers read the texts.
        prompts: b texts.
        classes: the classes that each prompt names, see `mark_classes`.
        unnamed_classes: further classes of each prompt, which it does not name; their columns
            follow those of `classes`. A prompt with some of them may have no others.
        synonyms: words that name a class, see `class_names.find_mentions`.

    Raises:
        ValueError: as `mark_classes`; or a prompt names one of its unnamed classes, or they are
            too many for one text.
    """
    if unnamed_classes is None:
        return ClassColumns(mark_classes(model, prompts, classes, synonyms))
    if not len(prompts) == len(classes) == len(unnamed_classes):
        raise ValueError(
            f"{len(prompts)} prompts need as many lists of classes and of unnamed classes, got "
            f"{len(classes)} and {len(unnamed_classes)}"
        )
    for prompt, names, unnamed in zip(prompts, classes, unnamed_classes, strict=True):
        require_classes([*names, *unnamed], f"prompt {prompt!r}")
        require_unnamed(prompt, names, unnamed, synonyms)
    texts = [" and ".join(names) for names in unnamed_classes]
    named = _mark(model, prompts, classes, synonyms)
    other = _mark(model, texts, unnamed_classes, synonyms)
    count = max(len(a) + len(b) for a, b in zip(classes, unnamed_classes, strict=True))
    shape = (len(prompts), count, model.tokenizer.max_length)
    token_mask, text_token_mask = np.zeros(shape, bool), np.zeros(shape, bool)
    for i, (names, unnamed) in enumerate(zip(classes, unnamed_classes, strict=True)):
        token_mask[i, : len(names)] = named[i]
        text_token_mask[i, len(names) : len(names) + len(unnamed)] = other[i]
    return ClassColumns(token_mask, texts, text_token_mask)


def _mark(
    model: Model,
    texts: Sequence[str],
    classes: Sequence[Sequence[str]],
    synonyms: Mapping[str, Sequence[str]] | None,
) -> list[Bool[np.ndarray, "c l"]]:
    """Token masks of each text, which may have no class."""
    no_class = np.zeros((0, model.tokenizer.max_length), bool)
    return [
        mark_classes(model, [text], [names], synonyms)[0] if names else no_class
        for text, names in zip(texts, classes, strict=True)
    ]
