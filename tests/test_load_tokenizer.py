"""Reading tokenizer folders: what their files say, and folders that are damaged or foreign."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizer_folders import END, SD1, SD2_MAP, START, VOCABULARIES, write_json, write_tokenizer

from seediff_jax.tokenizer import load_tokenizer


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
    assert not (tmp_path / "saved" / "vocab.json").exists()
    again = load_tokenizer(tmp_path / "saved")
    assert again == tokenizer
    prompts = ["a photo of an aeroplane!", ""]
    np.testing.assert_array_equal(again.encode(prompts), tokenizer.encode(prompts))


def test_truncation_saved_in_tokenizer_json_cuts_nothing(tmp_path, small):
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
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; needed: vocab.json and"):
        load_tokenizer(folder)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
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
        (lambda f: cut(f / "merges.txt", 15), "merges.txt is damaged: .* line 1"),
        (lambda f: cut(f / "merges.txt", 18), "no merge makes .* cut short"),
        (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqq q\n"), "`qq` out of vocab"),
        (lambda f: cut(f / "tokenizer_config.json", 20), "tokenizer_config.json is damaged"),
        (lambda f: (f / "special_tokens_map.json").write_text("{"), "tokens_map.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text('{"model"'), "tokenizer.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
        (
            lambda f: write_json(f / "tokenizer.json", {"model": {"type": "WordLevel"}}),
            "tokenizer.json holds no byte-pair encoding",
        ),
        (
            lambda f: write_json(f / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}),
            "tokenizer_config.json: T5Tokenizer is not CLIPTokenizer",
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
import seediff_jax.tokenizer
assert "transformers" not in sys.modules
seediff_jax.tokenizer.load_tokenizer({str(folder)!r}).encode(["a dog " * 20])
assert "torch" not in sys.modules
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_an_id_that_would_make_the_library_list_billions_is_refused(tmp_path, name):
    folder = write_tokenizer(tmp_path / "lying")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocab["a"] = 2**32 - 1
    content = vocab if name == "vocab.json" else {"model": {"type": "BPE", "vocab": vocab}}
    write_json(folder / name, content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: an entry has the id 4294967295"):
        load_tokenizer(folder)
