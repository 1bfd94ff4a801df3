"""Prompt files and prompts of sizes that nobody expects."""

from pathlib import Path

import numpy as np
import pytest

import seediff_jax
from seediff_jax.errors import UserError
from seediff_jax.prompts.prompt_files import iterate_prompts
from seediff_jax.prompts.tokenizer import load_tokenizer, overlapping_tokens
from tests.helpers.tokenizer_folders import END, VOCABULARIES, write_tokenizer


def test_a_cell_beyond_the_limit_of_csv_is_said_to_be_too_long_not_damaged(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(f'prompt,classes\na dog,dog\n"{"dog " * 50_000}",dog\n')
    with pytest.raises(UserError, match=r"prompts.csv:3: a cell has more than \d+ characters"):
        list(iterate_prompts(path))


@pytest.mark.parametrize("seed", range(20))
def test_tokens_of_mentions_are_those_that_share_a_character_with_one(seed):
    random = np.random.default_rng(seed)
    borders = np.sort(random.choice(200, 80, replace=False)).tolist()
    tokens = [(0, 0, 0)]  # the start token stands for no text
    tokens += [(1, *pair) for pair in zip(borders[::2], borders[1::2], strict=True)]
    edges = np.sort(random.choice(200, 12, replace=False)).tolist()
    spans = list(zip(edges[::2], edges[1::2], strict=True))
    expected = [
        k for k, (_, a, b) in enumerate(tokens) if any({*range(a, b)} & {*range(*s)} for s in spans)
    ]
    assert overlapping_tokens(tokens, spans) == expected


def test_tokens_of_a_hundred_thousand_mentions_are_found_in_linear_time():
    tokens = [(1, k, k + 1) for k in range(400_000)]
    spans = [(k, k + 2) for k in range(0, 400_000, 4)]
    assert len(overlapping_tokens(tokens, spans)) == 200_000


PARTS = [
    "photo",
    "of",
    "a",
    "dog",
    "aeroplane's",
    "it's",
    "x-ray,",
    "!",
    "ü",
    "u\u0308",
    "猫猫",
    "🐱",
]
PARTS += ["don't", "3d", "100%", "\tlane", "(dog)", "DOG", "", "\u00a0dog", END, f"a{END}b", "\x1c"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_prompts_that_surely_fit_are_those_that_are_encoded(vocabulary, tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "tokenizer", vocabulary))
    random = np.random.default_rng(0)
    prompts = [" ".join(random.choice(PARTS, random.integers(1, 60))) for _ in range(400)]
    fits = tokenizer.surely_fit(prompts)
    assert 50 < sum(fits) < 350
    for prompt, is_sure in zip(prompts, fits, strict=True):
        try:
            tokenizer.encode([prompt])
            is_encoded = True
        except UserError:
            is_encoded = False
        # The name of the unknown token is looked at by `encode` alone.
        assert is_encoded == is_sure or (END in prompt and not is_sure)
    assert tokenizer.surely_fit(prompts) == fits


def test_words_that_the_vocabulary_lacks_do_not_surely_fit():
    tokenizer = load_tokenizer(Path(seediff_jax.__file__).parent / "assets/shapes/tokenizer")
    prompts = ["a photo of a star", "a photo of a bicycle", "star " * 20]
    assert tokenizer.surely_fit(prompts) == [True, False, False]
