"""From prompts and class names to the arrays that the sampling program reads; host only."""

from collections.abc import Mapping, Sequence

import numpy as np
from flax import struct

from seediff_jax.arrays import Array
from seediff_jax.class_columns import ClassColumns, class_columns
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.model import Model
from seediff_jax.prompt_tokens import encode_prompts


@struct.dataclass
class PairInputs:
    """What a batch of samples is made of, a row a sample; see `sampling.sample`.

    Attributes:
        token_ids: int32 `[b, l]`, or `[b, 2, l]` for two text encoders.
        negative_token_ids: the same form.
        class_token_mask: bool `[b, c, l]`.
        indices: int32 `[b]`.
        unnamed_token_ids: form of `token_ids`, or None where no class is unnamed.
        unnamed_token_mask: bool `[b, c, l]`, or None.
    """

    token_ids: Array
    negative_token_ids: Array
    class_token_mask: Array
    indices: Array
    unnamed_token_ids: Array | None = None
    unnamed_token_mask: Array | None = None


def pair_inputs(
    model: Model,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]] | None,
    indices: Sequence[int] | np.ndarray,
    *,
    negative_prompt: str = "",
    unnamed_classes: Sequence[Sequence[str]] | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    num_classes: int | None = None,
) -> PairInputs:
    """Tokenises prompts and marks their classes.

    Args:
        model: whose tokenizers read the texts.
        prompts: b texts.
        classes: the class names of each; None for no classes at all.
        indices: of the samples, each 0 to 2**31 - 1.
        negative_prompt: what to guide away from.
        unnamed_classes: see `class_columns`.
        synonyms: see `class_columns`.
        num_classes: c, to which the lists of classes are padded; None is the longest.

    Raises:
        ValueError: a prompt is too long, does not name a class, or there are too many classes.
    """
    if classes is None:
        columns = ClassColumns(np.zeros((len(prompts), 0, model.tokenizer.max_length), bool))
    else:
        columns = class_columns(model, prompts, classes, unnamed_classes, synonyms)
        columns = _pad_classes(columns, num_classes)
        count = columns.token_mask.shape[1]
        if count >= IGNORE_INDEX:
            raise ValueError(f"{count} classes, a label map holds {IGNORE_INDEX - 1}")
    return PairInputs(
        token_ids=encode_prompts(model, prompts),
        negative_token_ids=encode_prompts(model, [negative_prompt]).repeat(len(prompts), axis=0),
        class_token_mask=columns.token_mask,
        indices=np.asarray(indices, np.int32),
        unnamed_token_ids=(None if columns.texts is None else encode_prompts(model, columns.texts)),
        unnamed_token_mask=columns.text_token_mask,
    )


def _pad_classes(columns: ClassColumns, num_classes: int | None) -> ClassColumns:
    count = columns.token_mask.shape[1]
    missing = 0 if num_classes is None else num_classes - count
    if missing < 0:
        raise ValueError(f"num_classes={num_classes}, but a prompt has {count} classes")
    padding = ((0, 0), (0, missing), (0, 0))
    text_mask = columns.text_token_mask
    return columns._replace(
        token_mask=np.pad(columns.token_mask, padding),
        text_token_mask=None if text_mask is None else np.pad(text_mask, padding),
    )
