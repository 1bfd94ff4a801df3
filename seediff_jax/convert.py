"""Writes a model that can be loaded as a folder of its own, with LoRAs merged.

python -m seediff_jax.convert --model=v1-5.safetensors --lora=style.safetensors:0.8 --output=styled
python -m seediff_jax.convert --model=shapes --format=orbax --output=models/shapes
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from seediff_jax.checkpoints import require_free
from seediff_jax.commands import (
    define_debug_flag,
    define_source_flags,
    kinds,
    run_command,
    run_program,
    source_options,
)
from seediff_jax.model import load_model, save_model, save_orbax

FORMATS = ("diffusers", "orbax")


def define_flags() -> flags.FlagValues:
    """Defines the flags; importing this module registers none."""
    values = flags.FlagValues()
    define_source_flags(values)
    text, enum = kinds(values, "string", "enum")
    text("output", None, "Folder to write; it must not exist, or be empty.")
    enum("format", "diffusers", [*FORMATS], "Kind of folder; orbax is the one of JAX.")
    dtypes = ["float32", "bfloat16", "float16"]
    enum("dtype", "float32", dtypes, "Of the written weights; in orbax vectors stay float32.")
    capture = "Attention layers to record, which capture.json keeps: published, coarse (without "
    capture += "the finest level) or a JSON file with lists of layers; by default the model's own."
    text("capture", None, capture)
    define_debug_flag(values)
    return values


def main(argv: Sequence[str]) -> int:
    """Converts as a command line says and returns the exit status; errors are one line each."""
    return run_command("seediff_jax.convert", __doc__, define_flags(), argv, _work)


def _work(values: flags.FlagValues) -> None:
    if not values.output:
        raise ValueError("--output is needed: the folder to write")
    output = Path(values.output).expanduser()
    require_free(output)
    model = load_model(
        values.model,
        dtype=values.dtype,
        capture=values.capture,
        **source_options(values),
    )
    if values.format == "orbax":
        save_orbax(model, output)
    else:
        save_model(model, output, dtype=values.dtype)
    print(f"{values.model} is in {output} as a folder of {values.format}")


if __name__ == "__main__":
    run_program(main)
