"""A setting is one field: its flag, help, check and entry in settings.json follow from it."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from seediff_jax import convert
from seediff_jax import main as program
from seediff_jax.driver import cli
from seediff_jax.driver.config import RunConfig, RunSettings
from seediff_jax.errors import UserError
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.settings import check_settings, setting, settings_of, static_part, stored_settings

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongerMaskConfig(MaskConfig):
    """The settings of masks with one field more, and nothing else."""

    smoothing: int = setting(2, "Radius of a blur of the seeds, in pixels.", least=0, most=9)


GROUPS = program.GROUPS | {"Masks": LongerMaskConfig}


def test_a_new_field_is_a_flag_with_its_help(capsys):
    assert cli.run_command("seediff", "doc", GROUPS, ["seediff", "--help"], None) == 0
    text = capsys.readouterr().out
    assert "--smoothing=2\n      Radius of a blur of the seeds, in pixels.\n" in text
    row = "| `--smoothing` | `2` | Radius of a blur of the seeds, in pixels. |"
    assert row in cli.flags_page("Flags", "doc", GROUPS).splitlines()


def run(*arguments):
    made = []
    status = cli.run_command(
        "seediff",
        "doc",
        GROUPS,
        ["seediff", *arguments],
        lambda values: made.append(cli.read_settings(values, LongerMaskConfig)),
    )
    return status, made


def test_a_new_field_is_read_from_its_flag_and_refused_out_of_range(capsys):
    status, (masks,) = run("--smoothing=7", "--mask_method=exponentiation")
    assert status == 0
    assert (masks.smoothing, masks.method) == (7, "exponentiation")
    assert run("--smoothing=10") == (2, [])
    line = "seediff: --smoothing=10 must be a whole number in 0..9\n"
    assert capsys.readouterr().err == line
    with pytest.raises(UserError, match=r"^smoothing=10 must be a whole number in 0\.\.9$"):
        LongerMaskConfig(smoothing=10)


def test_a_new_field_is_in_settings_json_and_makes_another_program():
    plan = PromptPlan(records=(PromptRecord("a dog", ("dog",)),))
    masks = LongerMaskConfig(smoothing=7)
    config = RunConfig(plan=plan, class_names=("dog",), output="out", num_images=1, masks=masks)
    assert json.loads(json.dumps(config.settings()))["smoothing"] == 7
    assert static_part(masks) == LongerMaskConfig(smoothing=7) != LongerMaskConfig()


def test_traced_settings_make_no_other_program():
    values = {"guidance_scale": 3.0, "guidance_rescale": 0.5, "negative_prompt": "rain"}
    assert static_part(SamplingConfig(**values)) == SamplingConfig()
    masks = MaskConfig(threshold=0.7, uncertain=0.2, refined_threshold=0.9)
    assert static_part(masks) == MaskConfig()


# For each group: the code that must read its fields.
READERS = {
    SamplingConfig: ("sampling", "pipeline", "driver"),
    MaskConfig: ("masks", "pipeline"),
    program.OutputSettings: ("driver", "main.py"),
    program.HostSettings: ("driver", "main.py"),
    program.ModelSource: ("driver", "checkpoints"),
    program.PromptSource: ("prompts", "main.py"),
    program.Task: ("main.py",),
    program.Preset: ("driver",),
    convert.ConvertSettings: ("convert.py",),
}


def _names_read(places):
    """Names of all attributes that are read in some folders or files, outside of a class's body
    that defines settings, and of all strings that could name an attribute."""
    found = set()
    for place in places:
        path = ROOT / "seediff_jax" / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    # The checks of the settings themselves are not the code that they are for.
                    node.body = [
                        item
                        for item in node.body
                        if not (isinstance(item, ast.FunctionDef) and item.name == "__post_init__")
                    ]
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute):
                    found.add(node.attr)
            # `load_options` lists the arguments of `load_model` by name.
            found |= {
                node.value
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef) and function.name.endswith("_options")
                for node in ast.walk(function)
                if isinstance(node, ast.Constant)
            }
    return found


@pytest.mark.parametrize("config_type", READERS, ids=lambda kind: kind.__name__)
def test_every_setting_is_read_by_the_code_that_it_is_for(config_type):
    read = _names_read(READERS[config_type])
    assert [name for name in settings_of(config_type) if name not in read] == []


def test_the_readers_of_all_groups_are_checked_and_an_unread_setting_is_found():
    assert {*program.GROUPS.values(), *convert.GROUPS.values()} == {*READERS}
    assert "smoothing" not in _names_read(READERS[MaskConfig])


def test_no_two_settings_of_a_program_have_the_same_flag():
    for groups in (program.GROUPS, convert.GROUPS):
        flags = [made.flag for kind in groups.values() for made in settings_of(kind).values()]
        flags = [flag for flag in flags if flag]
        assert len(flags) == len({*flags})


def test_settings_json_has_no_setting_that_changes_no_sample():
    left_out = {"output", "batch_size", "mesh", "partition", "log_dir", "profile", "process_id"}
    assert not left_out & stored_settings(RunSettings()).keys()


def test_the_page_of_flags_is_generated():
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == program.flags_page(), "generate docs/flags.md again, see main.flags_page"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Every:
    """A setting of each kind."""

    count: int | None = setting(None, "A count.", least=1)
    share: float = setting(0.5, "A share.", least=0, most=1)
    open: float = setting(1.0, "Any number.")
    name: str = setting("a", "A name.", choices=("a", "b"))
    names: tuple[str, ...] = setting(("a",), "Names.", choices=("a", "b"))
    sizes: tuple[int, ...] = setting((1,), "Sizes.", least=1)
    on: bool = setting(False, "A switch.")

    def __post_init__(self):
        check_settings(self)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count=0 must be a whole number of at least 1"),
        ({"count": True}, "count=True must be a whole number"),
        ({"count": 1.0}, "count=1.0 must be a whole number"),
        ({"count": 10**400}, "must be a whole number of at least 1"),
        ({"open": 10**400}, "must be a finite number"),
        ({"share": float("nan")}, "share=nan must be a finite number in 0..1"),
        ({"share": "half"}, "share=half must be a finite number"),
        ({"open": float("inf")}, "open=inf must be a finite number"),
        ({"open": float("-inf")}, "open=-inf must be a finite number"),
        ({"name": "c"}, "name=c is not one of a, b"),
        ({"name": "\x1b[31m" + "c" * 5000}, r"name=\\x1b\[31mc+\.\.\. \(5005 characters\) is"),
        ({"names": ["a", "a"]}, "names=a, a must be of a, b, each at most once"),
        ({"names": []}, "names= must be of a, b"),
        ({"names": "ab"}, "names=ab must be a list"),
        ({"sizes": [1, 0]}, "sizes=0 must be a whole number of at least 1"),
        ({"sizes": []}, "sizes= is empty"),
        ({"on": 1}, "on=1 must be true or false"),
        ({"on": "yes"}, "on=yes must be true or false"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Every(**options)


def test_whole_numbers_in_a_list_of_floats_become_floats():
    interval = SamplingConfig(guidance_interval=[0, 1]).guidance_interval
    assert interval == (0.0, 1.0) and all(type(part) is float for part in interval)


def test_lists_become_tuples_and_numbers_of_any_library_are_taken():
    import numpy as np

    made = Every(names=["b", "a"], sizes=[1, 2], share=np.float32(0.25), count=np.int64(3))
    assert (made.names, made.sizes) == (("b", "a"), (1, 2))
    stored = stored_settings(made)
    assert json.loads(json.dumps(stored)) == stored
    assert stored["share"] == 0.25 and stored["count"] == 3 and stored["names"] == ["b", "a"]


def test_messages_name_flags_on_a_command_line_and_no_part_of_a_path(capsys):
    def work(values):
        raise UserError("rng_seed=1 and formats=x need mesh=y; see /data/mesh=z and loras")

    assert cli.run_command("seediff", "doc", program.GROUPS, ["seediff"], work) == 2
    told = capsys.readouterr().err
    assert told == "seediff: --seed=1 and --format=x need --mesh=y; see /data/mesh=z and loras\n"


def test_no_module_lists_the_flags_besides_the_settings():
    source = "".join(path.read_text() for path in (ROOT / "seediff_jax").rglob("*.py"))
    assert re.findall(r"DEFINE_\w*", source) == ["DEFINE_"]
