"""The Python code of README.md and docs runs with the embedded model; python -m pytest -m slow."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The code of datasets.md, segment.md and the rest of masks.md has tests of its own, which are not
# slow. That of models.md reads files that the page names.
PAGES = ("README.md", "docs/quickstart.md", "docs/demo.md", "docs/masks.md")


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [each for each in code if "load_model(" in each]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_code_that_loads_the_embedded_model_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    assert blocks(page)
    for code in blocks(page):
        exec(code, names)
    assert names["model"].model_id == "stickers"


def test_all_other_code_has_a_test():
    found = {page.name for page in (ROOT / "docs").glob("*.md") if blocks(page.relative_to(ROOT))}
    assert found == {Path(page).name for page in PAGES[1:]} | {"models.md", "segment.md"}
