"""The tokenizer of a checkpoint: prompts to token ids, and class names to their tokens.

Host only. The byte-pair encoding itself is transformers' CLIPTokenizer; here its folder is checked,
nothing is ever cut off in silence, and the mentions of a class become token positions.
"""

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seediff_jax.arrays import Bool, Int, typechecked
from seediff_jax.class_names import require_mentions
from seediff_jax.json_files import read_json

CLIP_LENGTH = 77
NO_LIMIT = int(1e30)  # what transformers writes as the length of a tokenizer that has none


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer; hashable, and equal to another with the same content, wherever loaded.

    Attributes:
        max_length: tokens of an encoded prompt, the start and the end token among them.
        fingerprint: SHA-256 of vocabulary, merges and special tokens.
        backend: transformers' CLIPTokenizer; not part of the comparison.
    """

    max_length: int
    fingerprint: str
    backend: Any = dataclasses.field(compare=False, repr=False)

    @typechecked
    def encode(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Turns prompts into int32 `[b, max_length]`: start token, text, end token, padding.

        Raises:
            ValueError: for no prompt, a prompt that is too long, or a word that cannot be written
                with the vocabulary.
        """
        rows = []
        for text, tokens in zip(*self.tokenize(prompts), strict=True):
            _require_fit(text, tokens, self.max_length)
            rows.append([token_id for token_id, _, _ in tokens])
        return np.array(rows, np.int32)

    def tokenize(
        self, prompts: Sequence[str]
    ) -> tuple[list[str], list[list[tuple[int, int, int]]]]:
        """Splits prompts into tokens `(id, start, end)`, padded to `max_length` or longer.

        Returns:
            The prompts in Unicode's form NFC, to which the characters [start, end) of a token
            refer, and the tokens of each; start = end = 0 for the tokens that stand for no text.

        Raises:
            ValueError: for no prompt, or a word that cannot be written with the vocabulary.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        texts = [unicodedata.normalize("NFC", prompt) for prompt in prompts]
        encoding = self.backend(
            texts,
            padding="max_length",
            max_length=self.max_length,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        tokens = [
            [(token_id, *span) for token_id, span in zip(ids, spans, strict=True)]
            for ids, spans in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        ]
        for text, row in zip(texts, tokens, strict=True):
            self._require_known(text, row)
        return texts, tokens

    def _require_known(self, text: str, tokens: Sequence[tuple[int, int, int]]) -> None:
        # CLIP's unknown token is its end token: the text encoder would stop reading there.
        unknown_id, unknown_token = self.backend.unk_token_id, self.backend.unk_token
        for token_id, start, end in tokens:
            unknown = token_id == unknown_id and end > start
            if unknown and text[start:end] != unknown_token:
                raise ValueError(
                    f"the vocabulary of this tokenizer cannot write {_word_at(text, start)!r} in "
                    f"the prompt {text!r}; use the words that the model was trained on"
                )


def _require_fit(text: str, tokens: Sequence[tuple[int, int, int]], max_length: int) -> None:
    if len(tokens) > max_length:
        lost = _word_at(text, tokens[max_length - 1][1])
        raise ValueError(
            f"the prompt {text!r} takes {len(tokens) - 2} tokens, only {max_length - 2} fit; the "
            f"first word that is lost is {lost!r}: shorten the prompt"
        )


def _word_at(text: str, i: int) -> str:
    """The run of characters without blanks around character i."""
    return next(word.group() for word in re.finditer(r"\S+", text) if word.end() > i)


@typechecked
def class_token_mask(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    classes: Sequence[Sequence[str]],
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> Bool[np.ndarray, "b c l"]:
    """Marks the tokens that spell each class of each prompt (all mentions, all their tokens).

    Args:
        tokenizer: see `load_tokenizer`.
        prompts: b texts.
        classes: the class names of each prompt; c is the longest list, shorter ones are padded with
            rows that are all False.
        synonyms: words that name a class, see `class_names.find_mentions`.

    Returns:
        `[b, c, max_length]`; position 0 is the start token and never True.

    Raises:
        ValueError: naming class and prompt, where a prompt does not name a class or names it beyond
            the last token; for empty or unequal lists and duplicate classes.
    """
    if isinstance(classes, str) or any(isinstance(names, str) for names in classes):
        raise ValueError(f"classes must be a list of names for each prompt, got {classes!r}")
    texts, tokens = tokenizer.tokenize(prompts)
    if len(classes) != len(texts):
        raise ValueError(f"{len(texts)} prompts need as many lists of classes, got {len(classes)}")
    mask = np.zeros((len(texts), max(map(len, classes)), tokenizer.max_length), bool)
    for i, (text, row) in enumerate(zip(texts, tokens, strict=True)):
        for k, (name, mentions) in enumerate(require_mentions(text, classes[i], synonyms).items()):
            positions = _overlapping(row, mentions)
            if positions[-1] > tokenizer.max_length - 2:
                raise ValueError(
                    f"class {name!r} stands beyond the last of the {tokenizer.max_length - 2} "
                    f"tokens that fit, in the prompt {text!r}; name it earlier"
                )
            mask[i, k, positions] = True
    return mask


def _overlapping(
    tokens: Sequence[tuple[int, int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    return [
        position
        for position, (_, start, end) in enumerate(tokens)
        if any(start < stop and end > first for first, stop in spans)
    ]


_MAX_ID = 2**24
"""Far above any vocabulary."""


def load_tokenizer(
    folder: str | os.PathLike[str], max_length: int | None = None, pad_token: str | None = None
) -> Tokenizer:
    """Reads the `tokenizer/` folder of a diffusers checkpoint.

    Needed: `tokenizer.json`, or `vocab.json` and `merges.txt`; `tokenizer_config.json` and
    `special_tokens_map.json` are read where they exist. The padding token is the one that they
    name, the end token where they name none.

    Args:
        folder: the folder.
        max_length: tokens of a prompt; by default what `tokenizer_config.json` says, else 77.
        pad_token: the padding token in place of the one above.

    Raises:
        FileNotFoundError: where the folder or a needed file is missing.
        ValueError: where a file is damaged or the tokenizer is not CLIP's.
    """
    folder = Path(folder)
    names = _require_files(folder)
    length = _read_length(folder, max_length)
    padding = {} if pad_token is None else {"pad_token": pad_token}
    try:
        backend = _import_clip_tokenizer().from_pretrained(
            str(folder), local_files_only=True, **padding
        )
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise ValueError(f"{folder}: {' or '.join(names)} is damaged: {error}") from error
    bpe = json.loads(backend.backend_tokenizer.to_str())
    _require_sound(folder / names[0], backend, bpe)
    added = [(token["content"], token["id"]) for token in bpe["added_tokens"]]
    content = [bpe["model"]["vocab"], bpe["model"]["merges"], added, backend.special_tokens_map]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    return Tokenizer(max_length=length, fingerprint=digest.hexdigest(), backend=backend)


def _require_files(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a tokenizer folder is needed")
    names = ("tokenizer.json",) if (folder / "tokenizer.json").exists() else ()
    names = names or ("vocab.json", "merges.txt")
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} is missing; needed: vocab.json and merges.txt, or tokenizer.json"
            )
    for name in (*names, "special_tokens_map.json", "added_tokens.json"):
        if name.endswith(".json"):
            _read_object(folder / name)
    model = _read_object(folder / "tokenizer.json").get("model", {"type": "BPE"})
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise ValueError(f"{folder / 'tokenizer.json'} holds no byte-pair encoding, as CLIP's is")
    vocab = model.get("vocab") if "tokenizer.json" in names else _read_object(folder / names[0])
    _require_small_ids(folder / names[0], vocab)
    return names


def _require_small_ids(path: Path, vocab: Any) -> None:
    """The tokenizers library lists all ids that are free below the largest one."""
    ids = vocab.values() if isinstance(vocab, dict) else ()
    if wrong := [id for id in ids if isinstance(id, int) and id >= _MAX_ID]:
        raise ValueError(f"{path} is damaged: an entry has the id {wrong[0]}, not below {_MAX_ID}")


def _read_length(folder: Path, max_length: int | None) -> int:
    path = folder / "tokenizer_config.json"
    settings = _read_object(path)
    kind = settings.get("tokenizer_class") or "CLIPTokenizer"
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ValueError(f"{path}: {kind} is not CLIPTokenizer")
    length = settings.get("model_max_length", NO_LIMIT) if max_length is None else max_length
    if not isinstance(length, int) or length <= 2:
        raise ValueError(f"{folder}: the length of a prompt must be above 2 tokens, got {length!r}")
    return CLIP_LENGTH if length >= NO_LIMIT else length


def _read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file, or an empty one where there is no such file."""
    return read_json(path) if path.exists() else {}


def _import_clip_tokenizer() -> Any:
    """Imports transformers late, for it is slow, and without its advice to install PyTorch."""
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        from transformers import CLIPTokenizer
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before
    return CLIPTokenizer


def _require_sound(path: Path, backend: Any, bpe: Mapping[str, Any]) -> None:
    """Checks what transformers takes in silence: absent special tokens and merges cut short."""
    vocab = backend.backend_tokenizer.get_vocab(with_added_tokens=False)
    for token in (backend.bos_token, backend.eos_token, backend.unk_token, backend.pad_token):
        if token not in vocab:
            raise ValueError(f"{path} has no entry for the special token {token!r}")
    if len(set(vocab.values())) < len(vocab):
        raise ValueError(f"{path} is damaged: two entries have the same id")
    if backend.padding_side != "right":
        raise ValueError(f"{path.parent}: padding_side must be 'right', got 'left'")
    # A vocabulary of all 256 bytes was trained, and every longer entry comes from a merge; smaller
    # ones are put together by hand and may hold entries that nothing produces.
    longer = [token for token in vocab if len(token.removesuffix("</w>")) > 1]
    special = {token["content"] for token in bpe["added_tokens"]}
    unmade = set(longer) - {a + b for a, b in bpe["model"]["merges"]} - special
    if len(vocab) - len(longer) >= 512 and unmade:
        raise ValueError(
            f"{path.parent}: no merge makes {min(unmade)!r} and {len(unmade) - 1} other entries of "
            "the vocabulary; the merges are cut short, fetch the file again"
        )
