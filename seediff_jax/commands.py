"""What the command-line programs share: flags that name a model, --help, and errors of one line."""

import functools
import json
import math
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from seediff_jax.families import PREDICTION_TYPES
from seediff_jax.scheduler_configs import CLASS_NAMES
from seediff_jax.sources import DEFAULT_TOKENIZER

USER_ERROR, INTERRUPTED = 2, 130


def run_command(
    program: str,
    doc: str,
    values: flags.FlagValues,
    argv: Sequence[str],
    work: Callable[[flags.FlagValues], int | None],
) -> int:
    """Parses a command line, does the work and returns the exit status; errors are one line each.

    Args:
        program: its name in errors.
        doc: what --help says before the flags.
        values: the flags that exist, among them that of `define_debug_flag`.
        argv: the command line.
        work: what to do with the parsed flags; it may return an exit status.
    """
    if {"--help", "-help", "-h", "--helpfull"} & set(argv[1:]):
        print(help_text(values, doc))
        return 0
    try:
        unknown = values(list(argv))[1:]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no flag; every argument is --name=value")
        return work(values) or 0
    except KeyboardInterrupt:
        print("\nstopped; the same command can be given again", file=sys.stderr)
        return INTERRUPTED
    except (flags.Error, OSError, ValueError, ArithmeticError, jax.errors.JaxRuntimeError) as error:
        if values["debug"].value:
            traceback.print_exc()
        print(f"{program}: {_message(error)}", file=sys.stderr)
        return USER_ERROR


def _message(error: Exception) -> str:
    """What users read of an error."""
    match error:
        case flags.Error():
            return f"{error} (--help lists the flags)"
        case OSError():
            place = f"{error.filename}: " if error.filename and error.strerror else ""
            return f"{place}{error.strerror or error}"
        case jax.errors.JaxRuntimeError():
            if "RESOURCE_EXHAUSTED" in str(error):
                return "the device's memory is too small; try a smaller --batch_size or bfloat16"
            first = str(error).strip().partition("\n")[0]
            return (
                f"JAX failed: {first}; the same command can be given again, and --debug tells where"
            )
    return str(error)


def run_program(main: Callable[[Sequence[str]], int]) -> None:
    """Runs `main` on the command line of the process and ends the process with its status."""
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads the output, as `head` does, has seen enough; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    sys.exit(status)


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`; a folder that cannot be written costs only time."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"no compilation cache, {path} cannot be made: {error.strerror}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def define_source_flags(values: flags.FlagValues) -> None:
    """Defines the flags that name the weights to load."""
    text, enum, many = kinds(values, "string", "enum", "multi_string")
    model = '"shapes" (embedded), a folder, a .safetensors file or a Hugging Face hub id.'
    text("model", "shapes", model)
    text("revision", None, "Branch, tag or commit of a hub id.")
    tokenizer = "Folder or hub id to take the tokenizer from; by default the model's own, and for "
    tokenizer += f"a .safetensors file that of {DEFAULT_TOKENIZER}. Of Stable Diffusion XL it "
    text("tokenizer", None, tokenizer + "replaces both, one taking both places if it is alone.")
    prediction = "What the UNet predicts; by default what the model says, which a .safetensors "
    prediction += "file of Stable Diffusion 2.x does not."
    enum("scheduler", None, [*CLASS_NAMES], "Sampler; by default the model's own.")
    options = "Options of the sampler to change, in diffusers' words, separated by commas, as in "
    text("scheduler_options", None, options + "use_karras_sigmas=true,timestep_spacing=trailing.")
    enum("prediction_type", None, [*PREDICTION_TYPES], prediction)
    lora = "LoRA file to merge and its weight, as in style.safetensors:0.8; can be repeated."
    many("lora", None, lora)


def define_debug_flag(values: flags.FlagValues) -> None:
    """Defines --debug."""
    (switch,) = kinds(values, "bool")
    switch("debug", False, "Print where in the program an error came from, too.")


def kinds(values: flags.FlagValues, *kinds: str) -> list[Callable[..., Any]]:
    """absl's DEFINE functions of these kinds, for flags of `values` alone."""
    return [
        functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=values) for kind in kinds
    ]


def help_text(values: flags.FlagValues, doc: str) -> str:
    """A program's description and a paragraph a flag."""
    paragraphs = []
    for flag in (values[name] for name in values):
        name = f"[no]{flag.name}" if flag.boolean else flag.name
        default = "" if flag.default is None else "=" + flag.default_as_str.strip("'")
        text = textwrap.fill(flag.help, 92)
        paragraphs.append(f"  --{name}{default}\n{textwrap.indent(text, ' ' * 6)}")
    return f"{doc}\nFlags, with their defaults:\n\n" + "\n".join(paragraphs)


def source_options(values: flags.FlagValues) -> dict[str, Any]:
    """Arguments of `load_model` by the flags of `define_source_flags`, but for the model itself.

    Raises:
        ValueError: a LoRA or an option of the sampler is not written as it should be.
    """
    names = ("revision", "tokenizer", "prediction_type", "scheduler")
    return {name: values[name].value for name in names} | {
        "scheduler_options": parse_scheduler_options(values.scheduler_options),
        "loras": parse_loras(values.lora),
    }


def parse_scheduler_options(text: str | None) -> dict[str, Any]:
    """Splits `name=value,name=value`; a value is JSON's, or else a word.

    Raises:
        ValueError: a part is no pair.
    """
    options: dict[str, Any] = {}
    for pair in filter(None, (text or "").split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value) or name in options:
            raise ValueError(f"scheduler_options={text!r}: {pair!r} must be name=value, each once")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def parse_loras(texts: Sequence[str] | None) -> tuple[tuple[str, float], ...]:
    """Splits `path:weight`; without a weight it is 1.

    Raises:
        ValueError: a weight is no finite number.
    """
    pairs = []
    for text in texts or ():
        path, colon, weight = text.rpartition(":")
        if not colon or weight.endswith(".safetensors"):
            path, weight = text, "1"
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"lora={text!r}: {weight!r} is no number; needed is path:weight")
        pairs.append((path, number))
    return tuple(pairs)
