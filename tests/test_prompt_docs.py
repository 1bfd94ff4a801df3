"""docs/prompts.md: its files and commands give the prompts that its tables list."""

import re
import shlex
from pathlib import Path

import pytest

from seediff_jax.main import define_flags, make_config

TEXT = (Path(__file__).parents[1] / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
TABLE = r"\| image \| prompt \| classes \|\n\|---\|---\|---\|\n((?:\|[^\n]*\n)+)"
EXAMPLES = re.findall(rf"^```bash\n(.*?)^```\n\n{TABLE}", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [(line, rows) for lines, rows in EXAMPLES for line in lines.splitlines()]


def test_every_command_has_a_table_and_every_file_a_command():
    assert len(EXAMPLES) == TEXT.count("```bash") == TEXT.count("| image |")
    assert all(any(name in line for line, _ in COMMANDS) for name in FILES)


@pytest.mark.parametrize(("line", "rows"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_a_command_shows_what_its_table_lists(tmp_path, monkeypatch, line, rows):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_text(content, encoding="utf-8")
    values = define_flags()
    assert values(shlex.split(line)) == ["seediff"]
    config = make_config(values)
    records = [config.record(index) for index in range(config.num_images)]
    assert [f"| {i} | {r.prompt} | {', '.join(r.classes)} |" for i, r in enumerate(records)] == (
        rows.splitlines()
    )


def test_flags_that_are_named_exist():
    assert set(re.findall(r"--(\w+)", TEXT)) <= set(define_flags())
