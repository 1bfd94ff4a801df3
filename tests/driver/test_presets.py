"""--preset=NAME stands for flags, which win where they are given."""

import pytest

from seediff_jax.driver.presets import PRESETS
from seediff_jax.errors import UserError
from seediff_jax.main import define_flags, make_config, read_command_line


def line_of(*arguments):
    values = define_flags()
    values(["seediff", "--output=unused", *arguments])
    return read_command_line(values)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_same_command_as_its_flags(name):
    flags = [f"--{flag}={value}" for flag, value in PRESETS[name].items()]
    assert line_of(f"--preset={name}") == line_of(*flags)
    assert line_of(f"--preset={name}") != line_of()


def test_flags_that_are_given_win_whatever_their_order():
    for arguments in (["--num_steps=50", "--preset=fast"], ["--preset=fast", "--num_steps=50"]):
        line = line_of(*arguments)
        assert line.sampling.num_steps == 50
        assert line.source.scheduler == PRESETS["fast"]["scheduler"]


def test_settings_hold_what_a_preset_stands_for_and_not_its_name():
    assert "preset" not in make_config(line_of("--preset=fast")).settings()


def test_an_unknown_preset_is_refused_with_those_that_exist():
    with pytest.raises(UserError, match="preset=quick is not one of fast"):
        line_of("--preset=quick")
