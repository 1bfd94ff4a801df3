"""README.md: a front page whose commands, names and numbers are those of the code and the docs."""

import ast
import re
from pathlib import Path

import seediff_jax

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 160


def test_first_run_and_tests_are_one_line_each_from_a_fresh_environment():
    job, *others, tests = COMMANDS
    assert len(others) == 3  # from a clone to a filtered dataset in four commands
    start = r"python3 -m venv \.venv && \.venv/bin/pip install -q .* && \.venv/bin/python -m "
    assert re.fullmatch(start + r"seediff_jax\.main\n", job)
    assert re.fullmatch(start + r"pytest( -n 2 --dist=worksteal)?\n", tests)


def test_each_of_the_four_commands_has_a_picture_below():
    blocks = README.split("## Start")[1].split("```bash\n")[1:5]
    assert all(re.search(r"!\[[^\]]+\]\(docs/\w+\.png\)", block) for block in blocks)


def test_example_uses_public_names():
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "seediff_jax"
    }
    assert used and used <= set(seediff_jax.__all__)


def test_every_result_is_one_of_the_pages_of_results():
    results = README.split("## Results")[1].split("\n## ")[0]
    pages = [ROOT / "docs" / name for name in ("benchmarks.md", "embedded_model.md")]
    published = "".join(page.read_text(encoding="utf-8") for page in pages)
    numbers = set(re.findall(r"\b\d+\.\d+(?:e-\d+)?\b", results))
    assert len(numbers) > 10
    assert numbers <= set(re.findall(r"\b\d+\.\d+(?:e-\d+)?\b", published))


def test_every_page_is_linked_from_the_front_page_or_from_a_page_that_is():
    linked = set(re.findall(r"\(docs/(\w+\.md)", README))
    for name in sorted(linked):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        linked |= set(re.findall(r"\((\w+\.md)", text))
    assert linked == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_star_import_finds_every_public_name():
    names = {}
    exec("from seediff_jax import *", names)
    assert set(seediff_jax.__all__) <= set(names)
    assert len(set(seediff_jax.__all__)) == len(seediff_jax.__all__)


def test_changelog_has_an_entry_for_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{seediff_jax.__version__}]" in changelog
