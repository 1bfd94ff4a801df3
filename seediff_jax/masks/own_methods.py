"""Mask methods that users write: functions, or names like `package.module:function`.

Does not load JAX.
"""

import hashlib
import importlib
import inspect
import operator
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from seediff_jax.errors import UserError, hint, quoted, shown
from seediff_jax.settings import function_name

_NAME = re.compile(r"[^\W\d]\w*(\.\w+)*:[^\W\d]\w*(\.\w+)*")

MethodLike = str | Callable[..., Any]
"""A function, or the name of one."""


def parse_methods(text: str) -> MethodLike | tuple[MethodLike, ...]:
    """Splits names at commas; one name stays a text."""
    names = tuple(name.strip() for name in text.split(","))
    return names if len(names) > 1 else names[0]


def require_methods(methods: Sequence[MethodLike], known: Collection[str]) -> None:
    """Raises a UserError unless each is a function or a valid name, and none is given twice."""
    for method in methods:
        _require_name(method, known)
    names = [method_name(method) for method in methods]
    if not names or len({*names}) < len(names):
        raise UserError(f"method={','.join(names)} must be at least one method, each once")


def _require_name(method: MethodLike, known: Collection[str]) -> None:
    if callable(method) or isinstance(method, str) and (method in known or _NAME.fullmatch(method)):
        return
    near = hint(method, known) if isinstance(method, str) else ""
    text = shown(method, 200) if isinstance(method, str) else quoted(method)
    raise UserError(
        f"method={text} is not one of {', '.join(known)}, nor package.module:function{near}"
    )


def method_name(method: MethodLike) -> str:
    """The name of a method."""
    return method if isinstance(method, str) else function_name(method)


def load_method(method: MethodLike) -> Callable[..., Any]:
    """Imports a function by its name; the working directory is searched, too.

    Raises:
        UserError: there is no such function, or its module cannot be imported.
    """
    if not isinstance(method, str):
        return method
    module_name, _, name = method.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # a console script has its own directory there
    try:
        function = operator.attrgetter(name)(importlib.import_module(module_name))
    except Exception as error:  # whatever a module of the user raises
        reason = shown(f"{type(error).__name__}: {error}", 300)
        raise UserError(f"method={method} cannot be imported: {reason}") from error
    if not callable(function):
        raise UserError(f"method={method} is not a function: {quoted(function)}")
    return function


def own_method_sources(methods: Sequence[MethodLike]) -> dict[str, dict[str, str]]:
    """Returns what settings.json records of users' own methods in addition to their names.

    Returns:
        "mask_method_sha256": for each of them, the SHA-256 of the file with its function. Empty
        where all methods come with the package. Other files that a function uses are not recorded.

    Raises:
        UserError: there is no such function, or no file with it.
    """
    own = [method for method in methods if not isinstance(method, str) or ":" in method]
    hashes = {method_name(method): _source_hash(method) for method in own}
    return {"mask_method_sha256": hashes} if hashes else {}


def _source_hash(method: MethodLike) -> str:
    function = inspect.unwrap(load_method(method))
    try:
        content = Path(inspect.getsourcefile(function)).read_bytes()
    except (TypeError, OSError) as error:
        raise UserError(
            f"method={method_name(method)} has no source file, so the dataset cannot record how "
            "masks were made; define the function in a module"
        ) from error
    return hashlib.sha256(content).hexdigest()
