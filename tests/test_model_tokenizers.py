"""Other tokenizers in place of a model's own: both of Stable Diffusion XL, from two or from one."""

import json
import shutil

import pytest
from random_models import PADDING_2, small_config, small_xl_config, write_small_tokenizer

from seediff_jax.model_config import write_model_config
from seediff_jax.sources import read_source_config
from seediff_jax.tokenizer import load_tokenizer


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
    monkeypatch.setattr("seediff_jax.sources.fetch", lambda name, **unused: other)
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


def test_two_that_do_not_belong_together_are_refused(xl, other):
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
