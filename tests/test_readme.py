"""README.md: its commands, flags and names are those of the code."""

import ast
import json
import re
from pathlib import Path

import seediff_jax
from seediff_jax import convert
from seediff_jax.main import define_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_job_and_tests_are_one_line_each_from_a_fresh_environment():
    job, tests, *_ = COMMANDS
    start = r"python3 -m venv \.venv && \.venv/bin/pip install -q .* && \.venv/bin/python -m "
    assert re.fullmatch(start + r"seediff_jax\.main\n", job)
    assert re.fullmatch(start + r"pytest( -n 2 --dist=worksteal)?\n", tests)


def test_flags_and_their_defaults_are_those_of_the_driver():
    rows = re.findall(r"^\| `--(\w+)` \| (?:`(.*?)`)? ?\|", README, re.MULTILINE)
    flags = define_flags()
    defaults = {n: "" if flags[n].default is None else flags[n].default_as_str for n in flags}
    assert dict(rows) == {name: default.strip("'") for name, default in defaults.items()}


def test_commands_use_flags_that_exist():
    lines = re.findall(r"bin/seediff (.*)", "".join(COMMANDS))
    used = {name for line in lines for name in re.findall(r"--(\w+)", line)}
    assert used and used <= set(define_flags())


def test_commands_of_the_converter_use_flags_that_exist():
    lines = re.findall(r"bin/python -m seediff_jax\.convert (.*)", "".join(COMMANDS))
    used = {name for line in lines for name in re.findall(r"--(\w+)", line)}
    assert used and used <= set(convert.define_flags())


def test_links_inside_the_repository_lead_to_files():
    links = re.findall(r"(?<!!)\[[^\]]+\]\(([^)]+)\)", README)
    inside = [link for link in links if "://" not in link]
    assert inside and all((ROOT / link).exists() for link in inside)


def test_parity_in_full_size_is_that_of_the_published_results():
    results = json.loads((ROOT / "docs" / "full_size_parity.json").read_text(encoding="utf-8"))
    # As the README calls them, and as the tests do, the UNet with the side of its latents.
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
        assert f"| {name}, full size | {' | '.join(cells)} |" in README


def test_example_uses_public_names():
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    used = {
        node.attr
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "seediff_jax"
    }
    assert used and used <= set(seediff_jax.__all__)


def test_star_import_finds_every_public_name():
    names = {}
    exec("from seediff_jax import *", names)
    assert set(seediff_jax.__all__) <= set(names)
    assert len(set(seediff_jax.__all__)) == len(seediff_jax.__all__)


def test_changelog_has_an_entry_of_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{seediff_jax.__version__}]" in changelog
