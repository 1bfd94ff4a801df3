"""Writes any model that can be loaded, with its LoRAs merged, as a folder of diffusers or orbax.

python -m seediff_jax.convert --model=v1-5.safetensors --lora=style.safetensors:0.8 --output=styled
python -m seediff_jax.convert --model=shapes --format=orbax --output=models/shapes
"""

if __name__ == "__main__":  # before all other imports, which a signal may interrupt
    from seediff_jax.driver import signals

    signals.end_at_signals()

import dataclasses
from collections.abc import Sequence

from absl import flags

from seediff_jax.driver import cli
from seediff_jax.driver.config import ModelSource
from seediff_jax.driver.signals import listening
from seediff_jax.driver.stdio import run_program
from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting

FORMATS = ("diffusers", "orbax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """What to write."""

    output: str | None = setting(None, "Folder to write; it must be new or empty.", path=True)
    format: str = setting("diffusers", "Kind of folder; orbax is a format of JAX.", choices=FORMATS)

    def __post_init__(self):
        check_settings(self)
        if not self.output:
            raise UserError("output= is missing; give the folder to write")


GROUPS = {"Model": ModelSource, "Output": ConvertSettings}
"""The settings that are flags of this program."""


def define_flags() -> flags.FlagValues:
    """Defines the flags; importing this module registers none."""
    return cli.define_flags({**GROUPS, "Errors": cli.Diagnostics})


def main(argv: Sequence[str]) -> int:
    """Converts as a command line says and returns the exit status; errors are one line each."""
    return cli.run_command("seediff_jax.convert", __doc__, GROUPS, argv, _work)


def _work(values: flags.FlagValues) -> None:
    source = cli.read_settings(values, ModelSource)
    settings = cli.read_settings(values, ConvertSettings)
    from seediff_jax.checkpoints.diffusers_folder import require_free, save_model
    from seediff_jax.checkpoints.load import load_model
    from seediff_jax.checkpoints.orbax_folder import save_orbax

    with listening():
        output = require_free(settings.output)
        cli.require_devices()
        model = load_model(source.model, **source.load_options)
        if settings.format == "orbax":
            save_orbax(model, output)
        else:
            save_model(model, output, dtype=source.dtype)
    print(f"wrote {source.model} to {output} as a folder of {settings.format}")


if __name__ == "__main__":
    run_program(main)
