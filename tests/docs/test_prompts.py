"""docs/prompts.md: its files and commands give the prompts in its tables, and can be run."""

import re
import shlex
from pathlib import Path

import pytest

from seediff_jax.checkpoints.load import load_model
from seediff_jax.driver.make_dataset import require_prompts_fit
from seediff_jax.main import define_flags, make_config, read_command_line

TEXT = (Path(__file__).parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
TABLE = r"\| image \| prompt \| classes \|\n\|---\|---\|---\|\n((?:\|[^\n]*\n)+)"
EXAMPLES = re.findall(rf"^```bash\n(.*?)^```\n\n{TABLE}", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [(line, rows) for lines, rows in EXAMPLES for line in lines.splitlines()]


def test_every_command_has_a_table_and_every_file_a_command():
    assert len(EXAMPLES) == TEXT.count("```bash") == TEXT.count("| image |")
    assert all(any(name in line for line, _ in COMMANDS) for name in FILES)


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Reads a command line next to the files of the page; returns the configuration of its run."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_text(content, encoding="utf-8")

    def read_command(line):
        values = define_flags()
        assert values(shlex.split(line)) == ["seediff"]
        return make_config(read_command_line(values))

    return read_command


each_command = pytest.mark.parametrize(
    ("line", "rows"), COMMANDS, ids=[line for line, _ in COMMANDS]
)


@each_command
def test_a_command_shows_what_its_table_lists(read, line, rows):
    config = read(line)
    records = [config.record(index) for index in range(config.num_images)]
    assert [f"| {i} | {r.prompt} | {', '.join(r.classes)} |" for i, r in enumerate(records)] == (
        rows.splitlines()
    )


EMBEDDED = [line for line, _ in COMMANDS if "--model" not in line]


@pytest.fixture(scope="module")
def model():
    return load_model("stickers")


@pytest.mark.parametrize("line", EMBEDDED)
def test_a_command_without_a_model_suits_the_embedded_one(read, model, line):
    require_prompts_fit(model, read(line))


def test_commands_write_to_different_folders(read):
    outputs = [read(line).output for line, _ in COMMANDS]
    assert len(set(outputs)) == len(outputs)
    assert len(EMBEDDED) >= len(COMMANDS) / 2


def test_class_ids_are_those_that_the_page_states(read):
    (line,) = (line for line, _ in COMMANDS if "outputs/classes" in line)
    names = read(line).class_names
    ids = {name: names.index(name) + 1 for name in ("cat", "boat")}
    assert f"cat is {ids['cat']} and boat is {ids['boat']}" in TEXT


def test_flags_that_are_named_exist():
    assert set(re.findall(r"--(\w+)", TEXT)) <= set(define_flags())
