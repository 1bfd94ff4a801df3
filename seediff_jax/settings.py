"""Settings: fields of frozen dataclasses that carry their help, range and choices.

    num_steps: int = setting(50, "Number of denoising steps.", least=1)

Its flag, its line in --help, its range check, its entry in settings.json and its row in
docs/flags.md are all derived from the field. Otherwise only the code that uses the setting names
it. This module loads no other library, so that --help is quick.
"""

import dataclasses
import math
import numbers
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from seediff_jax.errors import UserError, hint, listed, shown

_KEY = "setting"
Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True)
class Setting:
    """The metadata of a field that is a setting.

    Attributes:
        help: a sentence or two for --help and docs/flags.md.
        least: the smallest allowed number.
        most: the largest allowed number.
        choices: the allowed values; for a tuple, the allowed elements, each at most once.
        flag: name of the flag and of the entry in settings.json. None means the name of the field;
            "" means that only Python code can give the setting.
        traced: whether compiled programs take the value as an argument. Another value of a setting
            that is not traced compiles another program.
        stored: whether settings.json has the value, because samples depend on it.
        repeated: whether a tuple is given by repeating its flag, not with commas.
        path: whether the value is the path of a file or folder, or a URL. In a tuple, only elements
            that begin with "~" or name a .txt or .safetensors file are paths.
        parse: turns the text of the flag into the value.
        may_be_empty: whether "" or () is a value of its own if None is the default.
        needs: what else must be set for the value to have an effect: a text such as "shuffle=true",
            and a function that checks a config for it.
        text: the text of the flag for the default value, if `parse` is given.
    """

    help: str
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    flag: str | None = None
    traced: bool = False
    stored: bool = True
    repeated: bool = False
    path: bool = False
    may_be_empty: bool = False
    needs: tuple[str, Callable[[Any], bool]] | None = None
    parse: Callable[[str], Any] | None = None
    text: str | None = None


def setting(default: Any, help: str, **facts: Any) -> Any:
    """Makes a dataclass field that is a setting.

    Args:
        default: the default value, or a type that makes it, such as dict.
        help: as in Setting, as are the `facts`.
    """
    metadata = {_KEY: Setting(help, **facts)}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(config: Any) -> dict[str, Setting]:
    """Lists the settings of a dataclass, or of an instance, by the names of their fields."""
    found = {
        field.name: field.metadata[_KEY]
        for field in dataclasses.fields(config)
        if _KEY in field.metadata
    }
    return {
        name: dataclasses.replace(made, flag=name) if made.flag is None else made
        for name, made in found.items()
    }


def setting_type(config: Any, name: str) -> tuple[type, bool]:
    """Returns the type of a field, and whether the field may be None too.

    The type of a tuple is the type of its elements; see `is_tuple`.
    """
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    kinds = [kind for kind in typing.get_args(field.type) if kind is not type(None)]
    is_union = type(None) in typing.get_args(field.type)
    kind = kinds[0] if is_union else field.type
    return (typing.get_args(kind)[0] if is_tuple(config, name) else kind), is_union


def is_tuple(config: Any, name: str) -> bool:
    """Whether a field is a tuple of any length."""
    (field,) = (field for field in dataclasses.fields(config) if field.name == name)
    kinds = [field.type, *typing.get_args(field.type)]
    return any(typing.get_origin(kind) is tuple and ... in typing.get_args(kind) for kind in kinds)


def check_settings(config: Any) -> None:
    """Checks every setting of a dataclass instance; call it from `__post_init__`.

    Sequences become tuples, and whole numbers in sequences of float become float.

    Raises:
        UserError: a value has the wrong type, is out of range or is not one of the choices.
    """
    for name, made in settings_of(config).items():
        value = getattr(config, name)
        kind, may_be_none = setting_type(config, name)
        if value is None and may_be_none:
            continue
        is_empty = isinstance(value, (str, tuple, list)) and not value
        if may_be_none and not made.may_be_empty and is_empty:
            raise UserError(f"{name}= is empty; give a value, or leave it out")
        if is_tuple(config, name):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise UserError(f"{name}={_shown(value)} must be a list")
            _check_elements(name, tuple(value), kind, made)
            value = map(float, value) if kind is float else value
            object.__setattr__(config, name, tuple(value))
        else:
            _check_value(name, value, kind, made)


def require_effective(config: Any) -> None:
    """Checks that every setting of a dataclass instance that is not the default has an effect.

    Raises:
        UserError: another setting makes one pointless; the message says what it needs.
    """
    for field in dataclasses.fields(config):
        made = settings_of(config).get(field.name)
        if made is None or made.needs is None or made.needs[1](config):
            continue
        value = getattr(config, field.name)
        if value != field.default:
            text = _shown(_flag_text(value))
            raise UserError(f"{field.name}={text} needs {made.needs[0]}, or it has no effect")


def _flag_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_flag_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_elements(name: str, values: tuple[Any, ...], kind: type, made: Setting) -> None:
    if made.choices and (
        not values or len({*values}) < len(values) or not {*values} <= {*made.choices}
    ):
        hint = "".join(_hint(value, made) for value in values if value not in made.choices)
        raise UserError(
            f"{name}={listed(values)} must be of {', '.join(made.choices)}, each at most once, and "
            f"at least one{hint}"
        )
    if kind in (int, float):
        if not values:
            raise UserError(f"{name}= is empty; give at least one number")
        for value in values:
            _check_value(name, value, kind, made)
    elif kind is str and not all(isinstance(value, str) for value in values):
        raise UserError(f"{name}={listed(map(repr, values))} must be a list of texts")


def _check_value(name: str, value: Any, kind: type, made: Setting) -> None:
    if made.choices and value not in made.choices:
        raise UserError(
            f"{name}={_shown(value)} is not one of {', '.join(made.choices)}{_hint(value, made)}"
        )
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{name}={_shown(value)} must be true or false")
    if kind is str and not isinstance(value, str):
        raise UserError(f"{name}={_shown(value)} must be a text")
    if kind in (int, float):
        abstract = numbers.Integral if kind is int else numbers.Real
        fits = isinstance(value, abstract) and not isinstance(value, bool) and _is_finite(value)
        low = -math.inf if made.least is None else made.least
        high = math.inf if made.most is None else made.most
        if not fits or not low <= value <= high:
            number = "a whole number" if kind is int else "a finite number"
            raise UserError(f"{name}={_shown(value)} must be {number}{_range(made)}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def _hint(value: Any, made: Setting) -> str:
    return hint(value, made.choices) if isinstance(value, str) else ""


def _range(made: Setting) -> str:
    if made.least is not None and made.most is not None:
        return f" in {made.least:.12g}..{made.most:.12g}"
    if made.least is not None:
        return f" of at least {made.least:.12g}"
    return "" if made.most is None else f" of at most {made.most:.12g}"


def _shown(value: Any) -> str:
    return shown(value if isinstance(value, str) else repr(value), 200)


def static_part(config: Config) -> Config:
    """Returns the config with the defaults of all traced settings; equal results share programs."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    traced = [name for name, made in settings_of(config).items() if made.traced]
    return dataclasses.replace(config, **{name: defaults[name] for name in traced})


def stored_settings(config: Any) -> dict[str, Any]:
    """Returns the entries of settings.json, as JSON values by the names of their flags."""
    return {
        made.flag: _json_value(getattr(config, name))
        for name, made in settings_of(config).items()
        if made.stored and made.flag
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_json_value(element) for element in value]
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, int)):
        return float(value)
    if callable(value):
        return function_name(value)
    return dict(value) if isinstance(value, typing.Mapping) else value


def function_name(function: Callable[..., Any]) -> str:
    """Names a function as `module:function`."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}:{name}"
