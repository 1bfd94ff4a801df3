"""The models that come with the package: size, words, licences, and the examples of the docs."""

import functools
import importlib
import importlib.resources
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import seediff_jax
from experiments.shapes.recipe import STUDY as SHAPES
from experiments.stickers.recipe import STUDY
from seediff_jax.checkpoints.load import load_model
from seediff_jax.prompts.embedded_models import EMBEDDED_MODELS
from seediff_jax.prompts.templates import make_prompts
from seediff_jax.prompts.tokenizer import class_token_mask

ASSETS = Path(str(importlib.resources.files("seediff_jax"))) / "assets"
RENDERERS = {"stickers": "scenes", "shapes": "render"}
each_model = pytest.mark.parametrize("name", EMBEDDED_MODELS)


@pytest.mark.parametrize(("name", "most"), [("stickers", 24_000_000), ("shapes", 12_000_000)])
def test_it_is_small_and_its_weights_are_half_precision(name, most):
    files = [path for path in (ASSETS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= most
    for path in (ASSETS / name).rglob("*.safetensors"):
        header = path.read_bytes()[8:].split(b"}}")[0]
        assert set(re.findall(rb'"dtype":"(\w+)"', header)) == {b"F16"}


def test_the_licences_of_the_drawings_are_beside_the_weights():
    text = (ASSETS / "stickers" / "NOTICE").read_text()
    assert text == STUDY.notice
    assert "Apache License 2.0" in text and "The above copyright notice and this permission" in text
    assert "Version 2.0, January 2004" in (ASSETS / "stickers" / "LICENSE").read_text()


@each_model
def test_every_class_is_one_token_of_the_default_prompt(name):
    classes = EMBEDDED_MODELS[name].classes
    records = make_prompts(classes)
    prompts, names = zip(*((r.prompt, list(r.classes)) for r in records), strict=True)
    mask = class_token_mask(load_model(name).tokenizer, prompts, names)
    # start, a, photo, of, a, CLASS
    assert [np.flatnonzero(row).tolist() for row in mask[:, 0]] == [[5]] * len(classes)


def test_a_class_of_two_words_has_two_tokens():
    tokenizer = load_model("stickers").tokenizer
    mask = class_token_mask(tokenizer, ["a photo of a potted plant and a tv"], [["pottedplant"]])
    assert np.flatnonzero(mask[0, 0]).tolist() == [5, 6]


@pytest.mark.parametrize(("word", "meant"), STUDY.synonyms.items())
def test_a_synonym_is_read_as_the_word_that_it_means(word, meant):
    assert word in EMBEDDED_MODELS["stickers"].other_names
    model = load_model("stickers")
    tokens = model.tokenizer.encode([f"a photo of a {word}", f"a photo of a {meant}"])
    found, expected = np.asarray(seediff_jax.encode_text(model, tokens))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("name", "study"), [("stickers", STUDY), ("shapes", SHAPES)])
def test_the_words_that_it_knows_are_those_of_its_training(name, study):
    # "photographic" is in the vocabulary, but no caption has it.
    trained = {*study.words, *study.synonyms} - {"photographic"}
    assert EMBEDDED_MODELS[name].words == trained
    renderer = importlib.import_module(f"experiments.{name}.{RENDERERS[name]}")
    words = {*" ".join((*study.classes, *renderer.LEADS, *renderer.BACKGROUNDS)).split()}
    words |= {"an", "and", "on", "background"}
    assert words <= trained and trained - words <= {*EMBEDDED_MODELS[name].other_names} | {
        "pottedplant",
        "tvmonitor",
    }


def test_a_word_that_was_not_in_its_captions_is_refused_in_python_too():
    model = load_model("stickers")
    known = "a photo of a car"
    for prompt, negative, message in (
        ("a red car", "", "does not know 'red' in the prompt 'a red car'; it draws aeroplane"),
        (known, "rain", "does not know 'rain' in the negative prompt 'rain'; it draws"),
    ):
        sampling = seediff_jax.SamplingConfig(num_steps=1, negative_prompt=negative)
        with pytest.raises(ValueError, match=message):
            seediff_jax.generate(model, [prompt], [["car"]], sampling=sampling)


@each_model
def test_a_word_that_it_cannot_spell_is_an_error_that_names_the_word(name):
    with pytest.raises(ValueError, match="zebra"):
        load_model(name).tokenizer.encode(["a photo of a zebra"])


DOCS = Path(__file__).parents[2]


def run_example(page, monkeypatch):
    """Runs the Python example of a page with fewer steps than a user would take."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    sampling = seediff_jax.SamplingConfig(num_steps=2)
    short = functools.partial(seediff_jax.generate, sampling=sampling)
    monkeypatch.setattr(seediff_jax, "generate", short)
    names = {}
    exec(example, names)
    return names


def test_the_example_of_the_readme_writes_its_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example("README.md", monkeypatch)
    with Image.open("overlay.png") as picture:
        assert picture.size == (128, 128)


def test_the_example_of_the_quickstart_returns_what_its_comments_say(monkeypatch):
    names = run_example("docs/quickstart.md", monkeypatch)
    text = (DOCS / "docs/quickstart.md").read_text(encoding="utf-8")
    for name in ("images", "label_maps", "soft_masks"):
        array = names[name]
        assert f"(pairs.{name})  # {array.dtype} {list(array.shape)}" in text
    assert not names["soft_masks"][1, 1].any()  # the padding of the second image
