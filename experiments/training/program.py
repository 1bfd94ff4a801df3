"""Runs programs of experiments; a UserError is shown as one line, not as a traceback."""

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from absl import app, logging

from seediff_jax.driver import cli
from seediff_jax.errors import UserError, shown

Settings = TypeVar("Settings")


def run(main: Callable[[Any], None]) -> None:
    """Parses the flags and runs `main`; a UserError ends the process with its message."""
    try:
        app.run(main)
    except UserError as error:
        print(f"{sys.argv[0]}: {shown(str(error))}", file=sys.stderr)
        sys.exit(cli.USER_ERROR)


def make_main(
    module: str, text: str, kind: type[Settings], work: Callable[[Settings], None]
) -> Callable[[Sequence[str]], int]:
    """Makes the main function of a program: command line -> exit status.

    Args:
        module: that is run.
        text: its docstring.
        kind: dataclass whose fields are the flags.
        work: does what the settings ask for.
    """

    def main(argv: Sequence[str]) -> int:
        def begin(values: Any) -> None:
            logging.set_verbosity(logging.INFO)
            work(cli.read_settings(values, kind))

        return cli.run_command(module, text, {"Settings": kind}, argv, begin)

    return main
