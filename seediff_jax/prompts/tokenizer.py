"""The tokenizers of a checkpoint: prompts to token ids, and class names to their tokens.

Host only. transformers' CLIPTokenizer does the byte-pair encoding; this module checks its folder,
refuses prompts that would be cut off, and finds the token positions of each class. Stable Diffusion
XL has two tokenizers, which differ in their padding; a single one can serve as both.
"""

import bisect
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

from seediff_jax.array_typing import Bool, Int, typechecked
from seediff_jax.errors import UserError, quoted, shown
from seediff_jax.files.strict_json import read_json
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import require_text

CLIP_LENGTH = 77
_KEPT_WORDS = 2**20
NO_LIMIT = int(1e30)  # what transformers writes as the length of a tokenizer that has none


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A CLIP tokenizer; hashable, and equal to another one with the same content.

    Attributes:
        max_length: number of tokens of an encoded prompt, with the start and end tokens.
        fingerprint: SHA-256 of vocabulary, merges and special tokens.
        backend: transformers' CLIPTokenizer; not compared.
    """

    max_length: int
    fingerprint: str
    backend: Any = dataclasses.field(compare=False, repr=False)
    _counts: dict[str, int] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @typechecked
    def encode(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Turns prompts into int32 `[b, max_length]`: start token, text, end token, padding.

        Raises:
            UserError: for no prompt, a prompt that is too long, or a word that cannot be written
                with the vocabulary.
        """
        rows = []
        most = self.max_length - 2
        for text, tokens in zip(*self.tokenize(prompts), strict=True):
            if len(tokens) > self.max_length:
                lost = _word_at(text, tokens[most + 1][1])
                raise UserError(
                    f"the prompt {quoted(text)} takes {len(tokens) - 2} tokens, only {most} fit; "
                    f"the first word that is lost is {quoted(lost)}: shorten the prompt"
                )
            rows.append([token_id for token_id, _, _ in tokens])
        return np.array(rows, np.int32)

    def tokenize(
        self, prompts: Sequence[str]
    ) -> tuple[list[str], list[list[tuple[int, int, int]]]]:
        """Splits prompts into tokens `(id, start, end)`, padded to `max_length` or longer.

        Returns:
            The prompts in Unicode's form NFC, in which a token is the characters [start, end), and
            the tokens of each; start = end = 0 for tokens without text.
        """
        if isinstance(prompts, str) or not prompts:
            raise UserError(f"prompts must be a list of at least one text, got {quoted(prompts)}")
        for prompt in prompts:
            require_text(prompt, "prompt")
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

    def surely_fit(self, prompts: Sequence[str]) -> list[bool]:
        """Returns for each prompt whether it surely fits; False means that `encode` must check it.

        The tokens of each word are counted once, so that a million prompts take seconds.
        """
        texts = [unicodedata.normalize("NFC", prompt).split(" ") for prompt in prompts]
        if len(self._counts) > _KEPT_WORDS:
            self._counts.clear()
        counts = self._counts
        if new := [*dict.fromkeys(w for words in texts for w in words if w not in counts)]:
            for word in new:
                require_text(word, "prompt")
            unknown = self.backend.unk_token_id
            rows = self.backend(new, add_special_tokens=False, verbose=False)["input_ids"]
            # The unknown token marks text that cannot be encoded, or spells its own name.
            lengths = (self.max_length if unknown in row else len(row) for row in rows)
            counts |= zip(new, lengths, strict=True)
        most = self.max_length - 2
        return [sum(map(counts.__getitem__, words)) <= most for words in texts]

    def _require_known(self, text: str, tokens: Sequence[tuple[int, int, int]]) -> None:
        # CLIP's unknown token is its end token: the text encoder would stop reading there.
        unknown_id, unknown_token = self.backend.unk_token_id, self.backend.unk_token
        for token_id, start, end in tokens:
            unknown = token_id == unknown_id and end > start
            if unknown and text[start:end] != unknown_token:
                raise UserError(
                    "the vocabulary of this tokenizer cannot encode "
                    f"{quoted(_word_at(text, start))} in the prompt {quoted(text)}; use the words "
                    "that the model was trained on"
                )


def _word_at(text: str, i: int) -> str:
    """The word around character i, or the text from there on."""
    return next((word[0] for word in re.finditer(r"\S+", text) if word.end() > i), text[i:])


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
        classes: the class names of each prompt; c is the length of the longest list, shorter ones
            are padded with rows that are all False.
        synonyms: words that name a class, see `MentionFinder`.

    Returns:
        `[b, c, max_length]`; position 0 is the start token and never True.

    Raises:
        UserError: naming class and prompt, if a prompt does not name a class or names it beyond
            the last token; for empty or unequal lists and duplicate classes.
    """
    if isinstance(classes, str) or any(isinstance(names, str) for names in classes):
        raise UserError(f"classes must be a list of names for each prompt, got {quoted(classes)}")
    texts, tokens = tokenizer.tokenize(prompts)
    if len(classes) != len(texts):
        raise UserError(
            f"got {len(texts)} prompts but {len(classes)} lists of classes; one list per prompt"
        )
    finder = mention_finder(synonyms)
    mask = np.zeros((len(texts), max(map(len, classes)), tokenizer.max_length), bool)
    for i, (text, row) in enumerate(zip(texts, tokens, strict=True)):
        for k, (name, mentions) in enumerate(finder.require(text, classes[i]).items()):
            positions = overlapping_tokens(row, mentions)
            if positions[-1] > tokenizer.max_length - 2:
                raise UserError(
                    f"class {quoted(name)} lies beyond the last of the "
                    f"{tokenizer.max_length - 2} tokens that fit, in the prompt {quoted(text)}; "
                    "name it earlier"
                )
            mask[i, k, positions] = True
    return mask


def overlapping_tokens(
    tokens: Sequence[tuple[int, int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Positions of the tokens that share a character with a span; both are in order of the text."""
    stops = [stop for _, stop in spans]
    found = []
    for position, (_, start, end) in enumerate(tokens):
        k = bisect.bisect_right(stops, start)
        if k < len(spans) and end > spans[k][0]:
            found.append(position)
    return found


_MAX_ID = 2**24
"""Far above any vocabulary."""


def load_tokenizer(
    folder: str | os.PathLike[str], max_length: int | None = None, pad_token: str | None = None
) -> Tokenizer:
    """Reads the `tokenizer/` folder of a diffusers checkpoint.

    Needed: `tokenizer.json`, or `vocab.json` and `merges.txt`; `tokenizer_config.json` and
    `special_tokens_map.json` are read if they exist. The padding token is the one that they
    name, else the end token.

    Args:
        folder: the folder.
        max_length: tokens of a prompt; by default that of `tokenizer_config.json`, else 77.
        pad_token: another padding token.

    Raises:
        UserError: a needed file is missing or damaged, or the tokenizer is not CLIP's.
    """
    folder = Path(folder)
    names = _require_files(folder)
    length = _read_length(folder, max_length)
    padding = {} if pad_token is None else {"pad_token": pad_token}
    kind = _import_clip_tokenizer()
    try:
        backend = kind.from_pretrained(str(folder), local_files_only=True, **padding)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise UserError(
            f"{folder}: {' or '.join(names)} is damaged: {shown(str(error), 500)}"
        ) from error
    bpe = json.loads(backend.backend_tokenizer.to_str())
    _require_sound(folder / names[0], backend, bpe)
    added = [(token["content"], token["id"]) for token in bpe["added_tokens"]]
    content = [bpe["model"]["vocab"], bpe["model"]["merges"], added, backend.special_tokens_map]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    return Tokenizer(max_length=length, fingerprint=digest.hexdigest(), backend=backend)


def _require_files(folder: Path) -> tuple[str, ...]:
    """Checks the files of a tokenizer, and returns the names of those with its vocabulary."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a tokenizer folder is needed")
    names = vocabulary_files(folder)
    for name in names:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing; expected vocab.json and merges.txt, or tokenizer.json"
            )
    content = read_json(folder / names[0])
    for name in ("special_tokens_map.json", "added_tokens.json"):
        _read_object(folder / name)  # transformers would not name a damaged one
    model = {"type": "BPE", "vocab": content}
    if names[0] == "tokenizer.json":
        model = content.get("model", {"type": "BPE"})
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise UserError(f"{folder / names[0]} is not a byte-pair encoding like that of CLIP")
    vocab = model.get("vocab")
    # The tokenizers library lists all free ids below the largest one.
    ids = vocab.values() if isinstance(vocab, dict) else ()
    if wrong := [id for id in ids if isinstance(id, int) and id >= _MAX_ID]:
        raise UserError(
            f"{folder / names[0]} is damaged: an entry has the id {quoted(wrong[0], 20)}, "
            f"not below {_MAX_ID}"
        )
    return names


def _read_length(folder: Path, max_length: int | None) -> int:
    path = folder / "tokenizer_config.json"
    settings = _read_object(path)
    kind = settings.get("tokenizer_class") or "CLIPTokenizer"
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise UserError(f"{path}: {quoted(kind)} is not CLIPTokenizer")
    length = settings.get("model_max_length", NO_LIMIT) if max_length is None else max_length
    if not isinstance(length, int) or length <= 2:
        raise UserError(
            f"{folder}: the length of a prompt must be above 2 tokens, got {quoted(length)}"
        )
    return CLIP_LENGTH if length >= NO_LIMIT else length


def _read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty if there is no file."""
    return read_json(path) if path.exists() else {}


def _import_clip_tokenizer() -> Any:
    """Imports transformers late, because it is slow, and without its advice to install PyTorch."""
    variable = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        from transformers import CLIPTokenizerFast
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before
    return CLIPTokenizerFast


def _require_sound(path: Path, backend: Any, bpe: Mapping[str, Any]) -> None:
    """Checks what transformers does not: absent special tokens and truncated merges."""
    vocab = backend.backend_tokenizer.get_vocab(with_added_tokens=False)
    for token in (backend.bos_token, backend.eos_token, backend.unk_token, backend.pad_token):
        if token not in vocab:
            raise UserError(f"{path} has no entry for the special token {quoted(token)}")
    if len(set(vocab.values())) < len(vocab):
        raise UserError(f"{path} is damaged: two entries have the same id")
    if backend.padding_side != "right":
        raise UserError(f"{path.parent}: padding_side must be 'right', got 'left'")
    # A vocabulary of all 256 bytes was trained, and every longer entry comes from a merge; smaller
    # ones are made by hand and may have entries that no merge produces.
    longer = [token for token in vocab if len(token.removesuffix("</w>")) > 1]
    special = {token["content"] for token in bpe["added_tokens"]}
    unmade = set(longer) - {a + b for a, b in bpe["model"]["merges"]} - special
    if len(vocab) - len(longer) >= 512 and unmade:
        raise UserError(
            f"{path.parent}: no merge makes {quoted(min(unmade))} and {len(unmade) - 1} more "
            "entries of the vocabulary; the merges are cut short, fetch the file again"
        )


TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")


def vocabulary_files(folder: Path) -> tuple[str, ...]:
    """Names of the files with the vocabulary in a tokenizer's folder, which may lack them."""
    has_one = (folder / "tokenizer.json").exists()
    return ("tokenizer.json",) if has_one else ("vocab.json", "merges.txt")


def tokenizer_folders(path: Path) -> dict[str, Path]:
    """Finds "tokenizer", and perhaps "tokenizer_2", in the folder of a model or tokenizer."""
    if not (path / "tokenizer").is_dir():
        return {"tokenizer": path}
    return {name: path / name for name in TOKENIZER_FOLDERS if (path / name).is_dir()}


def read_tokenizers(
    folders: Mapping[str, Path], pad_tokens: Mapping[str, str | None]
) -> dict[str, Tokenizer]:
    """Reads the tokenizers of a model.

    Args:
        folders: from `tokenizer_folders`; the first also replaces a missing second one.
        pad_tokens: for every tokenizer of the model, its padding token; None is its own.
    """
    return {
        name: load_tokenizer(folders.get(name, folders["tokenizer"]), pad_token=pad_token)
        for name, pad_token in pad_tokens.items()
    }


def require_same_tokens(first: Tokenizer, second: Tokenizer, source: str) -> None:
    """Raises a UserError unless two tokenizers differ only in their padding."""
    one, other = (_compared_parts(tokenizer) for tokenizer in (first, second))
    if different := [name for name in one if one[name] != other[name]]:
        raise UserError(
            f"{source}: tokenizer and tokenizer_2 differ in {different[0]}, so a class would have "
            "different tokens in the two text encoders"
        )


def _compared_parts(tokenizer: Tokenizer) -> dict[str, Any]:
    model = json.loads(tokenizer.backend.backend_tokenizer.to_str())["model"]
    parts = {"vocab": model["vocab"], "merges": model["merges"], "max_length": tokenizer.max_length}
    special = ("bos_token", "eos_token", "unk_token")
    return parts | {name: getattr(tokenizer.backend, name) for name in special}
