"""The model that comes with the package: its size, its words, and the README's example on it."""

import importlib.resources
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seediff_jax.model import load_model
from seediff_jax.prompts import SHAPES_CLASSES, make_prompts
from seediff_jax.tokenizer import class_token_mask

FOLDER = Path(str(importlib.resources.files("seediff_jax"))) / "assets" / "shapes"


@pytest.fixture(scope="module")
def model():
    return load_model("shapes")


def test_it_is_small_and_its_weights_are_half_precision():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for path in FOLDER.rglob("*.safetensors"):
        header = path.read_bytes()[8:].split(b"}}")[0]
        assert set(re.findall(rb'"dtype":"(\w+)"', header)) == {b"F16"}


def test_every_class_is_one_token_of_the_default_prompt(model):
    records = make_prompts(SHAPES_CLASSES)
    prompts, classes = zip(*((r.prompt, list(r.classes)) for r in records), strict=True)
    mask = class_token_mask(model.tokenizer, prompts, classes)
    # start, a, photo, of, a, CLASS
    assert [np.flatnonzero(row).tolist() for row in mask[:, 0]] == [[5]] * len(SHAPES_CLASSES)


def test_a_word_that_it_cannot_spell_is_an_error_that_names_the_word(model):
    with pytest.raises(ValueError, match="zebra"):
        model.tokenizer.encode(["a photo of a zebra"])


def test_the_example_of_the_readme_writes_its_pictures(tmp_path, monkeypatch):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    # Fewer steps than a user would take: it is the example that is tested here, not its beauty.
    example = example.replace('["star", "ring"]])', '["star", "ring"]], num_steps=2)')
    assert "num_steps=2" in example
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    for name in ("image.png", "overlay.png"):
        with Image.open(name) as picture:
            assert picture.size == (128, 128)
