"""UserError, and functions that make long or strange text fit into a message."""

import difflib
import importlib.util
from collections.abc import Iterable, Sequence

_LONGEST_NAME = 300
LONGEST_MESSAGE = 2000
"""Characters of a message that are shown; a damaged file can put megabytes into one."""


class UserError(ValueError):
    """What the user gave cannot be used; the message says what was given and what is needed.

    The command line prints the message on one line. Any other exception is a fault of the program
    and keeps its traceback.
    """


def require_installed(what: str, packages: Sequence[str]) -> None:
    """Checks that optional libraries are installed.

    Args:
        what: the thing that needs them, as the message begins.
        packages: names by which they are imported and installed.

    Raises:
        UserError: one is missing; the message has the command that installs it.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"{what} needs {' and '.join(missing)}; run: pip install {' '.join(missing)}"
        )


def listed(names: Iterable[object], most: int = 10, separator: str = ", ") -> str:
    """Joins the first `most` names, and says how many more there are."""
    names = list(names)
    rest = len(names) - most
    texts = [shown(str(name), _LONGEST_NAME) for name in names[:most]]
    return separator.join(texts) + (f" and {rest} more" if rest > 0 else "")


def nearest(text: str, names: Iterable[str], likeness: float = 0.5) -> str | None:
    """Finds the name that someone who wrote `text` may have meant, whatever its capitals.

    Args:
        text: what was written.
        names: those that exist.
        likeness: least similarity of text and name, from 0 to 1, see `difflib`.
    """
    by_key = {name.lower(): name for name in names}
    found = difflib.get_close_matches(text.lower(), by_key, 1, likeness)
    return by_key[found[0]] if found else None


def hint(text: str, names: Iterable[str], likeness: float = 0.5) -> str:
    """The end of a message, which names what `nearest` finds; empty if it finds nothing."""
    near = nearest(text, names, likeness)
    return f"; did you mean {near}?" if near else ""


def shown(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Text from a file or the command line as a terminal can show it: one line of bounded length.

    Control characters, line breaks and lone surrogates are escaped.
    """
    cut = text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in cut
    )


def quoted(value: object, most: int = 300) -> str:
    """A value as Python writes it, cut to `most` characters; a terminal can show it."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]!r}... ({len(value)} characters)"
    text = repr(value)
    return text if isinstance(value, str) else shown(text, most)
