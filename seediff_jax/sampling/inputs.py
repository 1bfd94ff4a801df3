"""From prompts and class names to the arrays that the sampling program reads. Host only.

A class that the prompt names is found at its own tokens. A class that the prompt does not name is
found by a separate text that names it and does not influence the image: the keys of this text are
compared with the image's queries (like the class prompts of Dataset Diffusion, arXiv 2309.14303,
and OVAM, arXiv 2403.20105).
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from flax import struct

from seediff_jax.array_typing import Array, Bool, Int, typechecked
from seediff_jax.errors import UserError
from seediff_jax.masks.config import IGNORE_INDEX
from seediff_jax.models.model import Model
from seediff_jax.prompts.embedded_models import require_known_words
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import require_classes
from seediff_jax.prompts.templates import list_classes
from seediff_jax.prompts.tokenizer import class_token_mask
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.sampling.guidance import uses_guidance
from seediff_jax.sampling.segment_config import SegmentConfig

DEFAULT_SAMPLING = SamplingConfig()
"""The default settings."""


@typechecked
def encode_prompts(model: Model, prompts: Sequence[str]) -> Int[np.ndarray, "b *encoders l"]:
    """Turns prompts into the token ids that `encode_text` takes.

    Returns:
        int32 `[b, l]`, or `[b, 2, l]` for the two text encoders of Stable Diffusion XL.

    Raises:
        UserError: see `Tokenizer.encode`.
    """
    token_ids = model.tokenizer.encode(prompts)
    if model.config.tokenizer_2 is None:
        return token_ids
    return np.stack([token_ids, model.config.tokenizer_2.encode(prompts)], axis=1)


def surely_fit(model: Model, prompts: Sequence[str]) -> list[bool]:
    """Tells which prompts `encode_prompts` and `mark_classes` certainly accept.

    It may say False of a prompt that they accept, see `Tokenizer.surely_fit`.
    """
    fits = model.tokenizer.surely_fit(prompts)
    if (second := model.config.tokenizer_2) is None:
        return fits
    padding = second.backend.pad_token.removesuffix("</w>")
    also = second.surely_fit(prompts)
    return [
        a and b and padding not in prompt for a, b, prompt in zip(fits, also, prompts, strict=True)
    ]


@typechecked
def mark_classes(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Bool[np.ndarray, "b c l"]:
    """Marks the tokens of each class, see `class_token_mask`.

    Raises:
        UserError: as `class_token_mask`, or the tokens of a class have other positions for the
            second text encoder.
    """
    mask = class_token_mask(model.tokenizer, prompts, classes, synonyms)
    if model.config.tokenizer_2 is not None:
        other = class_token_mask(model.config.tokenizer_2, prompts, classes, synonyms)
        for prompt, differs in zip(prompts, (mask != other).any(axis=(1, 2)), strict=True):
            if differs:
                padding = model.config.tokenizer_2.backend.pad_token
                raise UserError(
                    f"the two tokenizers of the model split the prompt {prompt!r} differently, so "
                    f"its classes have no common tokens; leave out {padding!r}, the padding token"
                )
    return mask


class ClassColumns(NamedTuple):
    """Tokens of the classes of b prompts; c is the length of the longest list.

    Attributes:
        token_mask: bool `[b, c, l]`, tokens of the prompts; none for classes that they do not name.
        texts: b texts that name the other classes, or None if there are none.
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

    The columns of `unnamed_classes` follow those of `classes`. A prompt may have only unnamed
    classes.

    Raises:
        UserError: as `mark_classes`; or a prompt names one of its unnamed classes, or they are
            too many for one text.
    """
    if unnamed_classes is None:
        return ClassColumns(mark_classes(model, prompts, classes, synonyms))
    if not len(prompts) == len(classes) == len(unnamed_classes):
        raise UserError(
            f"got {len(prompts)} prompts, but {len(classes)} lists of classes and "
            f"{len(unnamed_classes)} lists of unnamed classes"
        )
    finder = mention_finder(synonyms)
    for prompt, names, unnamed in zip(prompts, classes, unnamed_classes, strict=True):
        require_classes([*names, *unnamed], f"prompt {prompt!r}")
        if unnamed:
            finder.require_unnamed(prompt, names, unnamed)
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


@struct.dataclass
class PairInputs:
    """Inputs of `sampler.sample`, or of `noised.attend`, for a batch, one row per sample.

    Attributes:
        token_ids: int32 `[b, l]`, or `[b, 2, l]` for two text encoders, see `encode_prompts`.
        negative_token_ids: likewise of the negative prompts; None for no guidance.
        class_token_mask: bool `[b, c, l]`, the tokens of each class; a class without any gets zero
            attention. With c = 0 no attention is recorded.
        indices: int32 `[b]`, which samples of the seed these are, from 0.
        unnamed_token_ids: of the form of `token_ids`, of texts that name classes which the prompts
            do not, or None; images do not depend on them.
        unnamed_token_mask: bool `[b, c, l]`, the tokens of each class in these texts, or None.
        evidence_token_ids: int32 `[b, 1 + c, l]`, or `[b, 1 + c, 2, l]`, of the empty text and of
            a text that names each class, see `class_evidence`; None for no evidence.
        images: uint8 `[b, H, W, 3]`, whose attention `noised.attend` reads; None for `sample`.
    """

    token_ids: Array
    negative_token_ids: Array | None
    class_token_mask: Array
    indices: Array
    unnamed_token_ids: Array | None = None
    unnamed_token_mask: Array | None = None
    evidence_token_ids: Array | None = None
    images: Array | None = None


class ClassLists(NamedTuple):
    """The classes of b prompts, for `generate`.

    Attributes:
        named: the classes that each prompt names.
        unnamed: further classes of each prompt, to look for although the prompt does not name
            them; their labels follow those of `named`, see `class_columns`.
        synonyms: words that name a class, see `MentionFinder`.
        num_classes: c, to which the lists are padded, so that batches with lists of other lengths
            run the same programs; None is the length of the longest.
    """

    named: Sequence[Sequence[str]]
    unnamed: Sequence[Sequence[str]] | None = None
    synonyms: Mapping[str, Sequence[str]] | None = None
    num_classes: int | None = None


def pair_inputs(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]] | ClassLists | None,
    indices: Sequence[int] | np.ndarray,
    sampling: SamplingConfig | SegmentConfig = DEFAULT_SAMPLING,
) -> PairInputs:
    """Tokenises prompts and marks their classes.

    Args:
        model: its tokenizers read the texts.
        prompts: b texts.
        classes: the class names that each prompt names, or more about them; None for no classes.
        indices: of the samples, each 0 to 2**31 - 1.
        sampling: has the negative prompt.

    Raises:
        UserError: a prompt is too long, does not name a class or has a word that an embedded model
            does not know, or there are too many classes.
    """
    for prompt in prompts:
        require_known_words(model.model_id, prompt)
    evidence_token_ids = None
    if classes is None:
        columns = ClassColumns(np.zeros((len(prompts), 0, model.tokenizer.max_length), bool))
    else:
        lists = classes if isinstance(classes, ClassLists) else ClassLists(classes)
        columns = class_columns(model, prompts, lists.named, lists.unnamed, lists.synonyms)
        columns = _pad_classes(columns, lists.num_classes)
        count = columns.token_mask.shape[1]
        if count >= IGNORE_INDEX:
            raise UserError(f"{count} classes, but a label map holds at most {IGNORE_INDEX - 1}")
        if sampling.presence_draws:
            texts = _evidence_texts(model, prompts, lists, sampling.template, count)
            rows = encode_prompts(model, [text for row in texts for text in row])
            evidence_token_ids = rows.reshape(len(texts), 1 + count, *rows.shape[1:])
    negative = None
    if uses_guidance(model, sampling):
        require_known_words(model.model_id, sampling.negative_prompt, "negative prompt")
        negative = encode_prompts(model, [sampling.negative_prompt]).repeat(len(prompts), axis=0)
    return PairInputs(
        token_ids=encode_prompts(model, prompts),
        negative_token_ids=negative,
        class_token_mask=columns.token_mask,
        indices=np.asarray(indices, np.int32),
        unnamed_token_ids=(None if columns.texts is None else encode_prompts(model, columns.texts)),
        unnamed_token_mask=columns.text_token_mask,
        evidence_token_ids=evidence_token_ids,
    )


def _evidence_texts(
    model: Model, prompts: Sequence[str], lists: ClassLists, template: str, count: int
) -> list[list[str]]:
    """The empty text and one per class for each prompt; empty ones too for the padding.

    A class is named by the words of the prompt, which the model is known to read. If the template
    leaves no room for them, they stand alone.
    """
    finder, unnamed = mention_finder(lists.synonyms), lists.unnamed or [()] * len(prompts)
    rows = []
    for prompt, names, others in zip(prompts, lists.named, unnamed, strict=True):
        text = unicodedata.normalize("NFC", prompt)
        mentions = finder.find(text, names) if names else {}
        words = [text[slice(*spans[0])] for spans in mentions.values()]
        words += others
        texts = [list_classes(template, [word]) for word in words]
        _, tokens = model.tokenizer.tokenize(texts)
        fits = [len(row) <= model.tokenizer.max_length for row in tokens]
        texts = [text if fit else word for text, fit, word in zip(texts, fits, words, strict=True)]
        rows.append(["", *texts, *[""] * (count - len(texts))])
    return rows


def image_prompts(classes: Sequence[Sequence[str]], template: str) -> list[str]:
    """Makes one prompt per list, which names all classes of an image; see `list_classes`."""
    return [list_classes(template, names) for names in classes]


def with_token_columns(inputs: PairInputs) -> PairInputs:
    """Adds a column for each of the l token positions of the prompt after those of the classes."""
    b, _, length = inputs.class_token_mask.shape
    each = np.broadcast_to(np.eye(length, dtype=bool), (b, length, length))
    unnamed = inputs.unnamed_token_mask
    return inputs.replace(
        class_token_mask=np.concatenate([inputs.class_token_mask, each], axis=1),
        unnamed_token_mask=(
            None if unnamed is None else np.pad(unnamed, ((0, 0), (0, length), (0, 0)))
        ),
    )


def _pad_classes(columns: ClassColumns, num_classes: int | None) -> ClassColumns:
    count = columns.token_mask.shape[1]
    missing = 0 if num_classes is None else num_classes - count
    if missing < 0:
        raise UserError(f"num_classes={num_classes}, but a prompt has {count} classes")
    padding = ((0, 0), (0, missing), (0, 0))
    text_mask = columns.text_token_mask
    return columns._replace(
        token_mask=np.pad(columns.token_mask, padding),
        text_token_mask=None if text_mask is None else np.pad(text_mask, padding),
    )
