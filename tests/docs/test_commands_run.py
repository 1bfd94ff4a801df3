"""Every command of README.md and docs runs with the embedded model, or the text says what it needs.

A run is planned up to the point where weights would be read; a command on a dataset needs an
earlier command of the page that writes it.
"""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from seediff_jax.driver import cli
from seediff_jax.driver.make_dataset import configured_model, require_fit, require_prompts_fit
from seediff_jax.driver.subcommands import SUBCOMMANDS
from seediff_jax.errors import UserError
from seediff_jax.main import define_flags, make_config, read_command_line
from seediff_jax.prompts.embedded_models import EMBEDDED_MODELS
from seediff_jax.segment import define_flags as define_segment_flags

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}

BLOCK = re.compile(
    r"(?P<before>(?:[^\n]+\n)*)\n```bash\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands_of(text):
    """The text before, and the words, of each command of `seediff` on a page, in order."""
    for block in BLOCK.finditer(text):
        for line in block["code"].replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:\S*/)?(seediff(?: .*)?)$", line.split("&&")[-1].strip()):
                yield block["before"], shlex.split(match[1], comments=True)


# The launchers of large_runs.md have a test of their own.
COMMANDS = {
    name: list(commands_of(text)) for name, text in TEXTS.items() if name != "large_runs.md"
}


def test_commands_are_found():
    count = {name: len(found) for name, found in COMMANDS.items()}
    assert count["README.md"] >= 3 and count["quickstart.md"] >= 8 and count["prompts.md"] >= 10
    assert sum(count.values()) >= 30


@pytest.mark.parametrize("page", [name for name, found in COMMANDS.items() if found])
def test_a_command_runs_with_the_embedded_model_or_says_what_it_needs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILE.findall(TEXTS[page]):
        (tmp_path / name).write_text(content, encoding="utf-8")
    written = {"outputs/stickers"}
    for before, words in COMMANDS[page]:
        if words[1:] and words[1] in SUBCOMMANDS:
            reason = None if words[2] in written else f"nothing before it writes {words[2]}"
            written |= {word.removeprefix("--output=") for word in words if "--output=" in word}
        elif words[1:2] == ["segment"]:
            values = define_segment_flags()
            values(words[1:])
            reason = f"it reads {values['images'].value}"
        else:
            reason = reason_not_to_run(words, written)
        model = next((word for word in words if word.startswith("--model=")), None)
        start = TEXTS[page].split("\n## ")[0]
        says = re.search(r"\bneeds?\b", before) or (
            model and re.search(f"{model}` needs?\\b", start)
        )
        assert reason is None or says, f"{shlex.join(words)}: {reason}"


def reason_not_to_run(words, written):
    """Why a run of the command would end in an error here; None if it would not."""
    values = define_flags()
    bare = values(words)[1:]
    values([words[0], *(f"--prompt={text}" for text in bare)])
    written.add(read_command_line(values).run.output)
    if values["model"].value not in EMBEDDED_MODELS:
        return f"it names the model {values['model'].value}"
    try:
        config = make_config(read_command_line(values))
        model = configured_model(config)
        require_fit(model, config)
        require_prompts_fit(model, config)
    except (UserError, OSError) as error:
        return str(error)
    return None


def modules_of(text):
    """Module and arguments of each `python -m` command of a page but the driver's own."""
    code = "".join(block["code"] for block in BLOCK.finditer(text)).replace("\\\n", " ")
    found = re.findall(r"python -m ((?:experiments|seediff_jax)\.[\w.]+)(.*)", code)
    return [(name, shlex.split(words)) for name, words in found if name != "seediff_jax.main"]


MODULES = [(name, *command) for name, text in TEXTS.items() for command in modules_of(text)]


def test_commands_of_modules_are_found():
    count = {page: [name for name, *_ in MODULES].count(page) for page in TEXTS}
    assert count["research.md"] >= 15 and count["embedded_model.md"] >= 4
    assert count["models.md"] == 2


@pytest.mark.parametrize(("page", "name", "arguments"), MODULES)
def test_a_command_of_a_module_has_flags_and_values_that_it_takes(
    page, name, arguments, monkeypatch
):
    def parse(program, doc, groups, argv, work, positional=()):
        values = cli.define_flags(groups)
        assert values(argv) == argv[:1]
        for group in groups.values():
            cli.read_settings(values, group)
        return 0

    module = importlib.import_module(name)
    source = Path(module.__file__).read_text(encoding="utf-8")
    if defined := re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source):
        assert {word.lstrip("-").partition("=")[0] for word in arguments} <= {*defined}
        return
    monkeypatch.setattr(cli, "run_command", parse)
    assert module.main([name, *arguments]) == 0
