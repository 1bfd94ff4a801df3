"""The pages of docs: commands, flags, links, names and numbers are those of the repository."""

import functools
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from seediff_jax import convert
from seediff_jax.demo import main as demo
from seediff_jax.driver import cli, subcommands
from seediff_jax.driver.config import HostSettings
from seediff_jax.main import define_flags
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.prompts.settings import ImageSource
from seediff_jax.sampling.segment_config import SegmentConfig
from seediff_jax.segment import define_flags as define_segment_flags
from seediff_jax.settings import settings_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_flags_and_their_defaults_are_those_of_the_driver():
    rows = re.findall(r"^\| `--(\w+)` \| (?:`(.*?)`)? ?\|", TEXTS["flags.md"], re.MULTILINE)
    flags = define_flags()
    defaults = {n: "" if flags[n].default is None else flags[n].default_as_str for n in flags}
    assert dict(rows) == {name: default.strip("'") for name, default in defaults.items()}


PROGRAMS = {
    "seediff": define_flags,
    "seediff-demo": demo.define_flags,
    "-m seediff_jax.convert": convert.define_flags,
}
SUBPROGRAMS = {
    f"seediff {name}": functools.partial(subcommands.define_flags, name)
    for name in subcommands.SUBCOMMANDS
} | {"seediff segment": define_segment_flags}
# A program and its flags, whose values may be quoted within a line.
COMMAND = re.compile(
    rf"(?:\A|[\s/`])({'|'.join(map(re.escape, PROGRAMS))}|-m seediff_jax\.main)"
    r"(?: +\"[^\"]*\")?((?: +--\w+(?:=(?:'[^'\n]*'|[^\s'`;)]+)+)?)+)"
)
SUBCOMMAND = re.compile(r"(seediff \w+)(?: +[\w./]+)?((?: +--\w+(?:=[^\s'`;)]+)?)*)")


def commands_of(text):
    """Program and arguments of every command line of a page."""
    code = re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    code += [f"`{inline}`" for inline in re.findall(r"`(seediff --[^`]+)`", text)]
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(code))
    for program, arguments in SUBCOMMAND.findall(text):
        if program in SUBPROGRAMS:
            yield program, shlex.split(arguments)
    for program, arguments in COMMAND.findall(text):
        yield program.replace("-m seediff_jax.main", "seediff"), shlex.split(arguments)


# The words of a command, the prompt and the folder among them.
WORDS = re.compile(r"(\bseediff|-m [\w.]+)((?: +(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"`;)&])+)+)")

COMMAND_LINES = [(name, *command) for name in TEXTS for command in commands_of(TEXTS[name])]


@pytest.mark.parametrize(("page", "program", "arguments"), COMMAND_LINES)
def test_commands_have_flags_and_values_that_exist(page, program, arguments):
    assert (PROGRAMS | SUBPROGRAMS)[program]()([program, *arguments]) == [program]


def test_no_two_commands_write_to_the_same_output_with_other_settings():
    """A reader who follows one page after the other would be refused."""
    same = {f"--{made.flag}" for made in settings_of(HostSettings).values()} | {"--plan"}
    written = {}
    for program, words in WORDS.findall(re.sub(r"\s*\\\n\s*", " ", "\n".join(TEXTS.values()))):
        words = [program, *shlex.split(words)]
        settings = [word for word in words if word.partition("=")[0] not in same]
        for output in (word for word in words if word.startswith("--output=")):
            assert written.setdefault(output, settings) == settings
    assert {"--output=outputs/cars", "--output=outputs/best", "--output=gs://bucket/voc"} <= {
        *written
    }


@each_page
def test_datasets_that_python_code_reads_are_written_by_a_command_of_the_page(page):
    text = TEXTS[page.name]
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    written = re.findall(r" --output=(outputs/\w+)", text)
    assert {*re.findall(r"outputs/\w+", code)} <= {*written}


def test_commands_of_every_launcher_and_prompt_file_are_found():
    count = {name: [page for page, *_ in COMMAND_LINES].count(name) for name in TEXTS}
    assert (count["large_runs.md"], count["prompts.md"]) == (8, 11)
    assert (count["quickstart.md"], count["models.md"], count["masks.md"]) == (9, 7, 7)
    assert count["datasets.md"] == 3
    assert {program for _, program, _ in COMMAND_LINES} == PROGRAMS.keys() | SUBPROGRAMS.keys()


def test_the_flags_of_the_page_of_given_images_follow_from_the_settings():
    for group in (ImageSource, SegmentConfig):
        assert cli.flags_table(group) in TEXTS["segment.md"]


def test_the_code_of_the_page_of_given_images_runs_with_the_embedded_model(tmp_path, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXTS["segment.md"], re.DOTALL | re.MULTILINE)
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    assert names["pair"].classes == ("dog", "car")
    assert (tmp_path / "segmented.png").exists()
    assert names["pair"].label_map.any() and names["pair"].label_map.max() <= 2


def test_the_page_of_commands_follows_from_the_commands():
    assert TEXTS["commands.md"] == subcommands.commands_page()


@each_page
def test_flags_that_are_named_exist(page):
    inline = re.findall(r"`(--(?!xla_)\w+)[=` ]", TEXTS[page.name])
    defined = [*PROGRAMS.values(), *SUBPROGRAMS.values()]
    known = {f"--{name}" for define in defined for name in define()}
    switches = {f"--no{flag.name}" for flag in define_flags()._flags().values() if flag.boolean}
    studies = (path.read_text(encoding="utf-8") for path in (ROOT / "experiments").rglob("*.py"))
    defined = r"^    (\w+): .* = setting\(|DEFINE_\w+\(\s*\"(\w+)\""
    settings = map("".join, re.findall(defined, "\n".join(studies), re.MULTILINE))
    known |= {f"--{name}" for name in settings}
    others = {"--help", "--signal", "--requeue"}  # the last two are Slurm's
    assert set(inline) <= known | switches | others


@each_page
def test_links_inside_the_repository_lead_to_files_and_headings(page):
    for link in re.findall(r"\[[^\]]*\]\(([^)]+)\)", TEXTS[page.name]):
        if "://" in link:
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if heading:
            assert heading in headings_of(target.read_text(encoding="utf-8")), link


def headings_of(text):
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@each_page
def test_each_row_of_a_table_is_one_line(page):
    rows = [line for line in TEXTS[page.name].splitlines() if line.startswith("|")]
    assert [row for row in rows if not row.endswith("|")] == []


@each_page
def test_source_files_and_modules_that_are_named_exist(page):
    text = TEXTS[page.name]
    for file in re.findall(r"`([\w/]+/\w+\.py)`", text):
        assert (ROOT / file).exists() or (ROOT / "seediff_jax" / file).exists(), file
    for name in re.findall(r"`?\b((?:seediff_jax|experiments)(?:\.\w+)+)", text):
        find_object(name.removesuffix(".NAME"))


def find_object(name):
    """Imports the module or the object that a dotted name says.

    Raises:
        AttributeError: there is none.
    """
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for k, part in enumerate(parts[1:], 2):
        try:
            found = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            found = getattr(found, part)


@each_page
def test_extras_of_pip_that_are_named_exist(page):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = re.findall(r"'(?:\.|/?seediff_jax)\[([\w,-]+)\]'", TEXTS[page.name])
    assert {extra for each in named for extra in each.split(",")} <= set(
        project["optional-dependencies"]
    )


def test_parity_in_full_size_is_that_of_the_published_results():
    results = json.loads((ROOT / "docs" / "full_size_parity.json").read_text(encoding="utf-8"))
    # As the page calls them, and as the tests do, the UNet with the side of its latents.
    for name, family, side in (
        ("Stable Diffusion 1.4", "1.4", 64),
        ("Stable Diffusion 2.1 at 768 x 768", "2.1", 96),
        ("Stable Diffusion XL base at 1024 x 1024", "XL", 128),
    ):
        text, unet, decode, encode = (
            {kind: f"{value:.1e}".replace("e-0", "e-") for kind, value in differences.items()}
            for differences in (
                results[f"test_{test}]"]["differences"]
                for test in (
                    f"text_encoders_equal_transformers[{family}",
                    f"unet_equals_diffusers[{family}-{side}x{side}",
                    f"decoded_images_equal_those_of_diffusers[{family}",
                    f"encoded_images_equal_those_of_diffusers[{family}",
                )
            )
        )
        maps = max((unet[kind] for kind in unet if "-attention of" in kind), key=float)
        pooled = f", pooled {text['pooled text']}" if "pooled text" in text else ""
        cells = (
            text["text embeddings"] + pooled,
            unet["predicted noise"],
            decode["images"],
            encode["latents"],
            maps,
        )
        assert f"| {name}, full size | {' | '.join(cells)} |" in TEXTS["benchmarks.md"]


def test_the_code_of_the_page_of_masks_runs_without_a_model():
    code = re.findall(r"^```python\n(.*?)^```", TEXTS["masks.md"], re.DOTALL | re.MULTILINE)
    code = [each for each in code if "load_model" not in each and "Image.open" not in each]
    names = {}
    exec("\n".join(code), names)
    maps = (names["cross_attention"], names["self_attention"])
    own = class_soft_mask(*maps, (128, 128), names["masks"])
    assert own.min() == 0 and own.max() > 0.999
    assert names["seeds"].shape == (256,) and names["expanded"].shape == (32, 32)
    assert names["soft_mask"].shape == names["label_map"].shape == (128, 128)
    assert set(names["label_map"].ravel().tolist()) <= {0, 1}
