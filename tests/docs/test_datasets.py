"""docs/datasets.md: its code reads what the formats write, and its table equals the code."""

import gc
import io
import re
import shlex
from pathlib import Path

import datasets
import grain
import numpy as np
import pytest
import webdataset
from PIL import Image

from seediff_jax.dataset.encoding import encode
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.main import define_flags
from tests.helpers.format_runs import SAMPLES, write_run

TEXT = (Path(__file__).parents[2] / "docs/datasets.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^## (\w+)$", TEXT, re.MULTILINE)
BODIES = re.split(r"^## \w+$", TEXT, flags=re.MULTILINE)[1:]
CODE = [
    (name, code)
    for name, section in zip(SECTIONS, BODIES, strict=True)
    for code in re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
]

# The first command of the page, which writes what the code reads.
COMMAND = define_flags()
COMMAND(shlex.split(re.search(r"^seediff --.*$", TEXT, re.MULTILINE)[0]))

READERS = {
    "webdataset": [webdataset, datasets],
    "array_record": [grain],
    "imagefolder": [datasets],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doc")
    kept = {"soft": COMMAND["soft_masks"].value, "seeds": COMMAND["seed_maps"].value}
    for name in COMMAND["format"].value:
        write_run(name, folder / COMMAND["output"].value, **kept)
    return folder


# Warnings of the libraries: unclosed files, and NumPy 1's way to copy.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "code"), CODE, ids=[name for name, _ in CODE])
def test_code_reads_the_first_sample(folder, monkeypatch, name, code):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    names = {}
    exec(code, names)
    image = SAMPLES[0].image
    if name != "files":
        jpeg = encode(SAMPLES[0], ["image.jpg"]).files["image.jpg"]
        image = np.asarray(Image.open(io.BytesIO(jpeg)))
    np.testing.assert_array_equal(names["image"], image)
    np.testing.assert_array_equal(names["mask"], SAMPLES[0].mask)
    if "soft_masks" in names:
        np.testing.assert_array_equal(names["soft_masks"], SAMPLES[0].soft_masks)
    if "record" in names:
        assert names["record"] == SAMPLES[0].record
    names.clear()
    gc.collect()


@pytest.mark.parametrize("name", READERS)
def test_code_uses_the_libraries_made_for_the_format(name):
    codes = [code for section, code in CODE if section == name]
    for code, reader in zip(codes, READERS[name], strict=True):
        assert f"\nimport {reader.__name__}\n" in code


def test_every_format_has_a_section_with_code_and_a_row_with_its_libraries():
    assert SECTIONS == list(FORMATS) == list(dict.fromkeys(name for name, _ in CODE))
    rows = re.findall(r"^\| \[`(\w+)`\].* \| (?:`([\w ]+)`)? ?\|$", TEXT, re.MULTILINE)
    assert {name: libraries.split() for name, libraries in rows} == {
        name: list(form.libraries) for name, form in FORMATS.items()
    }
