"""What all command-line programs share: flags made from settings, --help, one-line errors."""

import dataclasses
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from seediff_jax.driver.signals import AGAIN, INTERRUPTED, STOPPED, Stopped
from seediff_jax.errors import UserError, listed, nearest, shown
from seediff_jax.files.paths import expand_path, url_scheme
from seediff_jax.settings import (
    Setting,
    is_tuple,
    require_effective,
    setting,
    setting_type,
    settings_of,
)

USER_ERROR = 2
"""Exit status after an error in one line."""

SOME_FAILED = 3
"""Exit status of a complete run with failed samples."""

CACHE = "~/.cache/seediff_jax/xla"
"""Where compiled programs are kept unless a flag or the environment names another place."""

Config = TypeVar("Config")
Groups = Mapping[str, type]
"""Title -> dataclass of settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """How errors are shown."""

    debug: bool = setting(False, "Also print the traceback of an error.", stored=False)


def define_flags(groups: Groups) -> flags.FlagValues:
    """Defines a flag for each setting, in a set of flags of its own."""
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may follow other arguments
    for config_type in groups.values():
        for name, made in settings_of(config_type).items():
            if made.flag:
                _define_flag(values, config_type, name, made)
    return values


def _define_flag(values: flags.FlagValues, config_type: type, name: str, made: Setting) -> None:
    kind, default = _kind(config_type, name, made), _default(config_type, name, made)
    help = made.help
    if made.choices and kind != "bool":
        number = "Any" if kind == "list" else "One"
        help += f" {number} of: {', '.join(made.choices)}."
    # Ranges and choices are checked where the config is made, for Python and flags alike.
    getattr(flags, f"DEFINE_{kind}")(made.flag, default, help, flag_values=values)
    values[made.flag].help = help  # absl appends a line to that of repeated flags


def _kind(config_type: type, name: str, made: Setting) -> str:
    """Which of absl's DEFINE functions makes the flag."""
    if is_tuple(config_type, name):
        return "multi_string" if made.repeated else "list"
    if made.parse is not None:
        return "string"
    kind, _ = setting_type(config_type, name)
    return {bool: "bool", int: "integer", float: "float"}.get(kind, "string")


def _default(config_type: type, name: str, made: Setting) -> Any:
    if made.parse is not None:
        return made.text
    default = getattr(config_type, name)
    if isinstance(default, tuple):
        return [str(element) for element in default] or None
    return default


def read_settings(
    values: flags.FlagValues, config_type: Callable[..., Config], **more: Any
) -> Config:
    """Makes a dataclass of settings from parsed flags, and from values of its other fields.

    Raises:
        UserError: a value is out of range or has no effect, or settings contradict each other.
    """
    options = {}
    for name, made in settings_of(config_type).items():
        if made.flag and values[made.flag].value is not None:
            options[name] = _parse(values[made.flag].value, config_type, name, made)
    config = config_type(**options, **more)
    require_effective(config)
    return config


def _parse(value: Any, config_type: Any, name: str, made: Setting) -> Any:
    if made.path:
        value = [_expand(text) for text in value] if isinstance(value, list) else expand_path(value)
    if made.parse is not None:
        return made.parse(value)
    if not isinstance(value, list):
        return value
    kind, _ = setting_type(config_type, name)
    try:
        return tuple(kind(text) for text in value)
    except ValueError:
        numbers = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name}={shown(','.join(value), 200)} must be {numbers}") from None


def _expand(text: str) -> str:
    is_file = text.startswith("~") or text.lower().endswith(".txt") or ".safetensors" in text
    return expand_path(text) if is_file else text


def run_command(
    program: str,
    doc: str,
    groups: Groups,
    argv: Sequence[str],
    work: Callable[[flags.FlagValues], int | None],
    positional: Sequence[str] = (),
) -> int:
    """Parses a command line, does the work and returns the exit status.

    UserError, OSError and exhausted memory are one line on stderr; any other exception is a bug
    and is raised.

    Args:
        program: its name in errors.
        doc: what --help says before the flags.
        groups: the settings that are flags.
        argv: the command line.
        work: what to do with the parsed flags; it may return an exit status.
        positional: flags that arguments without a name set, in order.
    """
    groups = {**groups, "Errors": Diagnostics}
    values = define_flags(groups)
    if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
        print(help_text(values, doc, groups))
        return 0
    try:
        _require_utf8(argv)
        _require_values(argv, values)
        _parse_arguments(values, argv, positional)
        return work(values) or 0
    except BaseException as error:
        if (found := explain(error, groups)) is None:
            raise
        if values.is_parsed() and values["debug"].value:
            traceback.print_exc()
        _complain(f"{program}: {found[1]}")
        return found[0]


def explain(error: BaseException, groups: Groups) -> tuple[int, str] | None:
    """Returns the exit status and the line of an error; None for a bug of the program."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED, f"interrupted; {AGAIN} to resume"
        case Stopped():
            return STOPPED, f"stopped; {AGAIN}"
    message = _message(error)
    return None if message is None else (USER_ERROR, shown(_with_flags(message, groups)))


def exit_status(failed: int | None) -> int:
    """The exit status of a run with this number of failed samples; None for a stopped run."""
    if failed is None:
        return STOPPED
    return SOME_FAILED if failed else 0


def _parse_arguments(
    values: flags.FlagValues, argv: Sequence[str], positional: Sequence[str]
) -> None:
    """Parses a command line into flags.

    Raises:
        UserError: a flag does not exist or has a value of another type, or an argument has no name.
        flags.Error: anything else is wrong.
    """
    try:
        bare = values(list(argv))[1:]
        if len(bare) > len(positional):
            raise UserError(f"unknown argument {bare[len(positional)]!r}; use --name=value")
        named = (f"--{name}={text}" for name, text in zip(positional, bare, strict=False))
        values([argv[0], *named])
    except flags.UnrecognizedFlagError as error:
        near = nearest(error.flagname, values, 0.7)
        what = f"did you mean --{near}?" if near else "--help lists the flags"
        raise UserError(f"unknown flag --{shown(error.flagname, 200)}; {what}") from None
    except flags.IllegalFlagValueError as error:
        match = re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL)
        if not match or (kind := _TYPES.get(values[match[1]].flag_type())) is None:
            raise
        raise UserError(f"{match[1]}={shown(match[2], 200)} must be {kind}") from None


_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def _require_utf8(argv: Sequence[str]) -> None:
    for text in argv[1:]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{shown(text, 200)} is not UTF-8; every argument must be") from None


def _require_values(argv: Sequence[str], values: flags.FlagValues) -> None:
    """Refuses `--output --seed=1`, which absl reads as the output "--seed=1"."""
    for text, following in zip(argv[1:], argv[2:], strict=False):
        name = text.lstrip("-")
        if text.startswith("-") and name in values and not values[name].boolean:
            if following.startswith("--"):
                raise UserError(f"{text} has no value; write {text}=value")


def _message(error: BaseException) -> str | None:
    """The message of an error for users; None for a bug of the program."""
    match error:
        case flags.Error():
            return f"{error} (--help lists the flags)"
        case OSError():
            place = f"{error.filename}: " if error.filename and error.strerror else ""
            return f"{place}{error.strerror or error}"
        case MemoryError():
            return (
                "the machine's memory is too small; ask for fewer images or a smaller --batch_size"
            )
        case UserError() | FloatingPointError():
            return str(error)
    if "jax" in sys.modules and isinstance(error, sys.modules["jax"].errors.JaxRuntimeError):
        if "RESOURCE_EXHAUSTED" in str(error):
            return "the device's memory is too small; try a smaller --batch_size or bfloat16"
        first = str(error).strip().partition("\n")[0]
        return f"JAX failed: {first}; run the same command again, or add --debug for a traceback"
    return None


def _with_flags(message: str, groups: Groups) -> str:
    """Writes `name=value` of settings as the flags that a command line gives."""
    found = [item for kind in groups.values() for item in settings_of(kind).items()]
    names = {name: made.flag for name, made in found if made.flag}
    names |= {flag: flag for flag in names.values()}
    pattern = rf"(?<![^\s(])({'|'.join(names)})(?==)"
    return re.sub(pattern, lambda match: f"--{names[match[1]]}", message)


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def use_compilation_cache(folder: str | None) -> None:
    """Keeps compiled programs in a folder or bucket; a failure to do so only costs time.

    Args:
        folder: path or URL; "" keeps none. None means JAX_COMPILATION_CACHE_DIR, or CACHE if that
            is not set.
    """
    import jax

    if folder is None:
        if jax.config.jax_compilation_cache_dir:
            return
        folder = CACHE
    if not folder:
        jax.config.update("jax_compilation_cache_dir", None)
        return
    path = os.path.expanduser(folder)
    if not url_scheme(folder):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _complain(f"no compilation cache: {path} cannot be made: {error.strerror}")
            return
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def keep_signals() -> None:
    """Keeps JAX from handling SIGTERM, because the hosts agree on their own when to stop."""
    import jax

    jax.config.update("jax_enable_preemption_service", False)


def require_devices() -> None:
    """Checks that JAX finds the devices it is asked for; call it within `hosts.joined`.

    Raises:
        UserError: JAX_PLATFORMS names a platform that this machine lacks.
    """
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for CUDA where there is no GPU
        asked = jax.config.jax_platforms
        if not asked:
            raise
        jax.config.update("jax_platforms", "")
        found = sorted({f"{device.platform} ({device.device_kind})" for device in jax.devices()})
        reason = shown(str(error).strip().partition("\n")[0], 200)
        raise UserError(
            f"JAX_PLATFORMS={asked} asks for devices that JAX does not find here"
            f"{reason and f' ({reason})'}; without it there is {listed(found)}"
        ) from error


def help_text(values: flags.FlagValues, doc: str, groups: Groups) -> str:
    """A program's description, then one paragraph per flag, in groups."""
    parts = [f"{doc.rstrip()}\n\nFlags, with their defaults."]
    for title, config_type in groups.items():
        paragraphs = []
        for made in settings_of(config_type).values():
            if made.flag:
                flag = values[made.flag]
                name = f"--{flag.name}{_default_text(flag)}"
                if flag.boolean:
                    default = "on" if flag.default else "off"
                    name = f"--{flag.name} / --no{flag.name} (default: {default})"
                text = textwrap.indent(textwrap.fill(flag.help, 92), " " * 6)
                paragraphs.append(f"  {name}\n{text}")
        if paragraphs:
            parts.append(f"{title}:\n\n" + "\n".join(paragraphs))
    return "\n\n".join(parts)


def _default_text(flag: flags.Flag) -> str:
    return "" if flag.default is None else "=" + flag.default_as_str.strip("'")


def flags_page(title: str, doc: str, groups: Groups) -> str:
    """The page of the docs that lists all flags, with one table per group."""
    parts = [f"# {title}\n\n{doc}\n"]
    for heading, config_type in {**groups, "Errors": Diagnostics}.items():
        parts.append(f"\n## {heading}\n{flags_table(config_type)}")
    return "".join(parts)


def flags_table(config_type: type) -> str:
    """A table of the flags of one group for a page of the docs, after a blank line."""
    values = define_flags({"": config_type})
    rows = ["\n| flag | default | meaning |\n|---|---|---|\n"]
    for made in settings_of(config_type).values():
        if made.flag:
            flag = values[made.flag]
            default = _default_text(flag).removeprefix("=")
            default = f"`{default}` " if default else ""
            text = flag.help.replace("|", r"\|")
            rows.append(f"| `--{flag.name}` | {default}| {text} |\n")
    return "".join(rows)
