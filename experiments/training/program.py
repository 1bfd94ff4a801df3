"""Runs a program of absl flags; what a user can mend is one line, not a traceback."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app

from seediff_jax.driver.cli import USER_ERROR
from seediff_jax.errors import UserError, shown


def run(main: Callable[[Any], None]) -> None:
    """Parses the flags and runs `main`; a UserError ends the process with its message."""
    try:
        app.run(main)
    except UserError as error:
        print(f"{sys.argv[0]}: {shown(str(error))}", file=sys.stderr)
        sys.exit(USER_ERROR)
