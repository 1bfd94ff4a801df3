"""The demo's command line: flags and errors."""

import sys

import pytest

from seediff_jax.demo.main import define_flags, main


def test_a_missing_gradio_is_refused_with_the_command_that_installs_it(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    assert main(["seediff-demo"]) == 2
    assert capsys.readouterr().err == (
        "seediff-demo: the demo needs gradio; run: pip install gradio\n"
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--port=70000", "--port=70000 must be a whole number in 0..65535"),
        ("--prot=1", "unknown flag --prot; did you mean --port?"),
        ("--model=", "--model"),
    ],
)
def test_a_bad_flag_is_one_line(capsys, flag, message):
    assert main(["seediff-demo", flag]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_for_this_machine_alone_by_default():
    assert define_flags()["host"].default == "127.0.0.1"
