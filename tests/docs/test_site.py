"""The site of docs/: navigation, a build without warnings, every public name, and the notebook.

pip install -e '.[test,docs]' and python -m pytest -m site build it and run the notebook.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import seediff_jax

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
GENERATED = {"index.md", "api.md", "changelog.md"}


class Loader(yaml.SafeLoader):
    """Reads tags of Python, which mkdocs understands, as text."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", lambda loader, name, node: name)


def test_every_page_has_one_place_in_the_navigation():
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    pages = [page for group in config["nav"] for (part,) in [group.values()] for page in part]
    places = [place for page in pages for place in page.values()]
    written = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")}
    assert sorted(places) == sorted(written | GENERATED)
    assert config["strict"] is True


def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_small_and_shows_one_picture():
    assert NOTEBOOK.stat().st_size < 150_000
    outputs = [output for cell in cells() for output in cell.get("outputs", ())]
    shown = [kind for output in outputs for kind in output.get("data", ())]
    pictures = [kind for kind in shown if kind == "image/png"]
    assert len(pictures) == 1 and not [o for o in outputs if o["output_type"] == "error"]


@pytest.mark.site
def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    text = json.dumps(notebook.cells)
    assert text.count("image/png") + text.count("data:image/png") >= 4
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    areas = [float(area) for area in re.findall(r"threshold 0\.\d: (\d+\.\d)%", printed)]
    assert len(areas) == 3 and areas == sorted(areas, reverse=True) and areas[0] > 0
    ious = [float(iou) for iou in re.findall(r": IoU (\d\.\d+) with the published", printed)]
    assert len(ious) == 3 and 0 < min(ious) and max(ious) < 1
    assert "calls, heads, locations, columns: (5, 2, 64, " in printed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert not re.search("^WARNING", built.stderr, re.MULTILINE), built.stderr
    return folder


@pytest.mark.site
def test_the_site_has_all_pages_and_their_pictures(site):
    for path in (ROOT / "docs").glob("*.md"):
        page = (site / path.stem / "index.html").read_text(encoding="utf-8")
        for picture in re.findall(r'<img[^>]* src="([^"]+)"', page):
            assert (site / path.stem / picture).resolve().exists(), picture
    assert "<img" in (site / "notebook" / "index.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_the_site_describes_every_public_name(site):
    page = (site / "api" / "index.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="(seediff_jax\.[\w.]+)"', page))
    assert {
        f"seediff_jax.{seediff_jax._MODULE_OF[name]}.{name}" for name in seediff_jax.__all__
    } <= anchors


@pytest.mark.site
def test_the_site_loads_nothing_from_other_servers(site):
    for page in site.glob("*/index.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)\b[^>]* (?:src|href)="(https?://[^"]+)"', text)
        assert loaded == [], page
        assert 'class="mermaid"' not in text, page  # the theme would load it from a server
