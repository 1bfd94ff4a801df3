"""Paths as people write them on a command line or into a config: `~`, `$NAME`, and URLs."""

import os
import re

from seediff_jax.errors import UserError, listed, shown

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([^}]+)\})", re.ASCII)


def url_scheme(text: str) -> str | None:
    """Returns the scheme of a URL, as in `gs` of `gs://bucket/folder`; None for a path."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def expand_path(text: str | os.PathLike[str]) -> str:
    """Replaces `~`, `~user`, `$NAME` and `${NAME}` in a path; in a URL, the variables only.

    Every flag that takes a path or a URL goes through this function.

    Raises:
        UserError: a variable is not set or a user is not known, and no file has the name as
            written; or the text cannot be a path.
    """
    text = os.fspath(text)
    if "\0" in text:
        raise UserError(f"{shown(text)} contains a null character; a path cannot")
    names = [match[1] or match[2] for match in _VARIABLE.finditer(text)]
    if missing := [name for name in names if name not in os.environ]:
        if os.path.lexists(text):
            return text
        raise UserError(
            f"{shown(text)}: the environment variable {listed(missing)} is not set; set it, or "
            "write out the path"
        )
    path = _VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], text)
    if text and not path:
        raise UserError(f"{shown(text)} is empty once its variables are replaced; a path is needed")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.lexists(path):
        user = path.partition("/")[0]
        raise UserError(
            f"{shown(path)}: the home folder of {shown(user)} is not known; write "
            f"./{shown(path)} for a file of that name"
        )
    return expanded
