"""Reading tokenizer folders: sound ones, damaged ones, and those of other models."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from seediff_jax.checkpoints.diffusers_folder import write_model_config
from seediff_jax.checkpoints.sources import read_source_config
from seediff_jax.errors import UserError
from seediff_jax.prompts.tokenizer import load_tokenizer
from tests.helpers.random_models import (
    PADDING_2,
    small_config,
    small_xl_config,
    write_small_tokenizer,
)
from tests.helpers.tokenizer_folders import (
    END,
    SD1,
    SD2_MAP,
    START,
    VOCABULARIES,
    write_json,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizers") / "small")


@pytest.fixture(scope="module")
def small(folder):
    return load_tokenizer(folder)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_padding_is_the_token_that_the_files_name(tmp_path, vocabulary):
    sd1 = load_tokenizer(write_tokenizer(tmp_path / "sd1", vocabulary))
    sd2 = load_tokenizer(write_tokenizer(tmp_path / "sd2", vocabulary, SD1, SD2_MAP))
    bare = load_tokenizer(write_tokenizer(tmp_path / "bare", vocabulary, None))
    vocab = json.loads((tmp_path / "sd1" / "vocab.json").read_text(encoding="utf-8"))
    for tokenizer, padding in [(sd1, END), (sd2, "!"), (bare, END)]:
        [ids] = tokenizer.encode(["a dog"])
        assert ids[-1] == vocab[padding]
        assert vocab[END] in ids
        # Where "!" is the padding token, one in the text is that token too.
        assert (tokenizer.encode(["dog!"])[0, 1:] == vocab["!"]).any() == (padding == "!")


def test_length_is_what_the_config_says_or_what_is_passed(tmp_path):
    folder = write_tokenizer(tmp_path / "short", config=SD1 | {"model_max_length": 16})
    assert load_tokenizer(folder).encode(["a dog"]).shape == (1, 16)
    assert load_tokenizer(folder, max_length=8).encode(["a dog"]).shape == (1, 8)
    no_limit = write_tokenizer(tmp_path / "no_limit", config={"model_max_length": int(1e30)})
    assert load_tokenizer(no_limit).max_length == 77
    for bad in (2, "77"):
        write_json(folder / "tokenizer_config.json", SD1 | {"model_max_length": bad})
        with pytest.raises(ValueError, match=f"above 2 tokens, got {bad!r}"):
            load_tokenizer(folder)


def test_tokenizers_are_equal_by_content(tmp_path, small, folder):
    again = load_tokenizer(folder)
    assert again == small
    assert hash(again) == hash(small)
    assert load_tokenizer(folder, max_length=16) != small
    other_padding = write_tokenizer(tmp_path / "sd2", "small", SD1, SD2_MAP)
    assert load_tokenizer(other_padding) != small
    other_merges = write_tokenizer(tmp_path / "other", "small")
    lines = (other_merges / "merges.txt").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (other_merges / "merges.txt").write_text("\n".join(lines) + "\n")
    assert load_tokenizer(other_merges) != small


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tokenizer_json_alone_gives_the_same_tokenizer(tmp_path, vocabulary):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "own", vocabulary))
    tokenizer.backend.save_pretrained(tmp_path / "saved")
    for name in ("vocab.json", "merges.txt"):  # transformers 4 saves them, too
        (tmp_path / "saved" / name).unlink(missing_ok=True)
    again = load_tokenizer(tmp_path / "saved")
    assert again == tokenizer
    prompts = ["a photo of an aeroplane!", ""]
    np.testing.assert_array_equal(again.encode(prompts), tokenizer.encode(prompts))


def test_truncation_saved_in_tokenizer_json_is_ignored(tmp_path, small):
    small.backend.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    saved["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst"}
    saved["truncation"]["stride"] = 0
    write_json(tmp_path / "tokenizer.json", saved)
    prompts = ["a photo of a dog"]
    tokenizer = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode(prompts), small.encode(prompts))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def without_entry(path, *tokens):
    vocab = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {token: i for token, i in vocab.items() if token not in tokens})


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_tokenizer(tmp_path / "tokenizer")
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing; expected vocab.json and"):
        load_tokenizer(folder)
    with pytest.raises(UserError, match="absent: no such folder"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "vocab.json", 3000), "vocab.json is damaged, it is not JSON"),
        (lambda f: (f / "vocab.json").write_text("[]"), "vocab.json is damaged: .* JSON object"),
        (
            lambda f: (f / "vocab.json").write_text('{"a": "b"}'),
            "vocab.json or merges.txt is damag",
        ),
        (lambda f: cut(f / "merges.txt", 15), "merges.txt is damaged: "),
        (lambda f: cut(f / "merges.txt", 18), "no merge makes .* cut short"),
        (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqq q\n"), "`qq` out of vocab"),
        (lambda f: cut(f / "tokenizer_config.json", 20), "tokenizer_config.json is damaged"),
        (lambda f: (f / "special_tokens_map.json").write_text("{"), "tokens_map.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text('{"model"'), "tokenizer.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
        (
            lambda f: write_json(f / "tokenizer.json", {"model": {"type": "WordLevel"}}),
            "tokenizer.json is not a byte-pair encoding",
        ),
        (
            lambda f: write_json(f / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}),
            "tokenizer_config.json: 'T5Tokenizer' is not CLIPTokenizer",
        ),
        (
            lambda f: write_json(f / "tokenizer_config.json", {"padding_side": "left"}),
            "padding_side must be 'right', got 'left'",
        ),
        (lambda f: without_entry(f / "vocab.json", START), r"vocab.json has no entry for .*start"),
        (
            lambda f: write_json(f / "special_tokens_map.json", {"pad_token": "<pad>"}),
            "vocab.json has no entry for the special token '<pad>'",
        ),
        (
            lambda f: (f / "vocab.json").write_text(
                (f / "vocab.json").read_text(encoding="utf-8").replace(": 5,", ": 6,"),
                encoding="utf-8",
            ),
            "two entries have the same id",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage, message):
    folder = write_tokenizer(tmp_path / "tokenizer")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def test_loading_needs_no_torch_and_prints_nothing(folder):
    # A process of its own, with PyTorch hidden: transformers is imported once a process.
    script = f"""
import importlib.util, os, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
import seediff_jax.prompts.tokenizer
assert "transformers" not in sys.modules
seediff_jax.prompts.tokenizer.load_tokenizer({str(folder)!r}).encode(["a dog " * 20])
assert "torch" not in sys.modules
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_huge_token_id_is_refused(tmp_path, name):
    folder = write_tokenizer(tmp_path / "lying")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocab["a"] = 2**32 - 1
    content = vocab if name == "vocab.json" else {"model": {"type": "BPE", "vocab": vocab}}
    write_json(folder / name, content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: an entry has the id 4294967295"):
        load_tokenizer(folder)


# Other tokenizers in place of those of a model


def write_other_tokenizer(folder, **options):
    """The small tokenizer with the ids of two letters exchanged."""
    path = write_small_tokenizer(folder, **options) / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    return folder


def write_model(folder, config):
    (folder / "model").mkdir()
    write_model_config(folder / "model", config)
    return folder / "model"


@pytest.fixture
def xl(tmp_path):
    return write_model(tmp_path, small_xl_config(tmp_path / "made"))


@pytest.fixture
def other(tmp_path):
    """A folder with both tokenizers of another Stable Diffusion XL."""
    write_other_tokenizer(tmp_path / "other" / "tokenizer")
    write_other_tokenizer(tmp_path / "other" / "tokenizer_2", pad_token=PADDING_2)
    return tmp_path / "other"


def test_both_tokenizers_of_xl_are_replaced(xl, other):
    own, got = read_source_config(xl), read_source_config(xl, tokenizer=other)
    assert got.tokenizer == load_tokenizer(other / "tokenizer") != own.tokenizer
    assert got.tokenizer_2 == load_tokenizer(other / "tokenizer_2") != own.tokenizer_2


def test_both_are_taken_from_the_hub(xl, other, monkeypatch):
    monkeypatch.setattr("seediff_jax.checkpoints.sources.fetch", lambda name, parts: other)
    assert read_source_config(xl, tokenizer="a/b") == read_source_config(xl, tokenizer=other)


@pytest.mark.parametrize("inside", [True, False], ids=["model folder", "tokenizer folder"])
def test_a_single_tokenizer_replaces_both_and_the_second_keeps_its_padding(xl, other, inside):
    expected = read_source_config(xl, tokenizer=other)
    shutil.rmtree(other / "tokenizer_2")
    got = read_source_config(xl, tokenizer=other if inside else other / "tokenizer")
    assert got == expected
    (first,), (second,) = (t.encode(["ab"]) for t in (got.tokenizer, got.tokenizer_2))
    end, padding = got.tokenizer.backend.convert_tokens_to_ids(["<|endoftext|>", PADDING_2])
    assert set(first[4:]) == {end} and set(second[4:]) == {padding}
    assert first[:4].tolist() == second[:4].tolist()


def test_a_model_with_one_text_encoder_takes_the_first(tmp_path, other):
    model = write_model(tmp_path, small_config(tmp_path / "made"))
    got = read_source_config(model, tokenizer=other)
    assert got.tokenizer == load_tokenizer(other / "tokenizer") and got.tokenizer_2 is None


def test_tokenizers_that_differ_in_their_merges_are_refused(xl, other):
    shutil.rmtree(other / "tokenizer_2")
    write_small_tokenizer(other / "tokenizer_2", PADDING_2)
    with pytest.raises(ValueError, match="tokenizer and tokenizer_2 differ in vocab"):
        read_source_config(xl, tokenizer=other)


def test_a_second_folder_that_is_damaged_is_named(xl, other):
    (other / "tokenizer_2" / "merges.txt").unlink()
    with pytest.raises(ValueError, match="tokenizer_2/merges.txt is missing"):
        read_source_config(xl, tokenizer=other)


def test_a_vocabulary_without_the_padding_of_the_second_is_refused(xl, other):
    path = other / "tokenizer" / "vocab.json"
    vocabulary = json.loads(path.read_text(encoding="utf-8"))
    del vocabulary[PADDING_2]
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    with pytest.raises(ValueError, match="no entry for the special token '!'"):
        read_source_config(xl, tokenizer=other / "tokenizer")
