"""Writes a dataset of images with pixel masks, generated from text prompts by SeeDiff.

Without flags it writes one image of each class of the embedded model. If the output folder holds a
run with the same settings, that run continues; --num_images, --batch_size and --compilation_cache
may differ, because they change images at most by rounding.

  seediff
  seediff "a photo of a dog and a car"
  seediff --prompt="a cat on a sofa" --classes=cat,sofa --model=/models/stable-diffusion-v1-4
  seediff --model=/models/stable-diffusion-v1-4 --classes=voc --num_images=2000 --output=outputs/voc
  seediff --model=/models/stable-diffusion-v1-4 --prompts=prompts.jsonl --dtype=bfloat16

Masks of existing images:

  seediff segment --images=FOLDER --classes=cat,dog

Commands on an existing dataset, each with a --help of its own:

  seediff resume|plan|regenerate|verify|repair|filter|remask|report DIR
"""

if __name__ == "__main__":  # before all other imports, which a signal may interrupt
    from seediff_jax.driver import signals

    signals.end_at_signals()

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

import seediff_jax
from seediff_jax.driver import cli
from seediff_jax.driver.config import (
    HostSettings,
    ModelSource,
    OutputSettings,
    RunConfig,
    RunSettings,
    Task,
    default_output,
)
from seediff_jax.driver.presets import Preset, apply_preset
from seediff_jax.driver.stdio import never_wait, run_program
from seediff_jax.driver.subcommands import SUBCOMMANDS, run_subcommand
from seediff_jax.errors import UserError, nearest
from seediff_jax.files.folder import open_folder
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.settings import PromptSource
from seediff_jax.sampling.config import SamplingConfig

GROUPS = {
    "Model": ModelSource,
    "Prompts and classes": PromptSource,
    "Sampling": SamplingConfig,
    "Presets": Preset,
    "Masks": MaskConfig,
    "Seed and output": OutputSettings,
    "Devices and hosts": HostSettings,
    "Task": Task,
}
"""The settings that are flags of this program."""


def define_flags() -> flags.FlagValues:
    """Defines the flags; importing this module registers none."""
    return cli.define_flags({**GROUPS, "Errors": cli.Diagnostics})


def flags_page() -> str:
    """The content of docs/flags.md, which follows from the settings:

    python -c "from seediff_jax.main import flags_page; print(flags_page(), end='')" > docs/flags.md
    """
    doc = "All flags of `seediff`, with their defaults. This page is generated from the settings."
    return cli.flags_page("Flags", doc, GROUPS)


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """All settings of a command line; each group is checked."""

    source: ModelSource
    prompts: PromptSource
    sampling: SamplingConfig
    masks: MaskConfig
    run: RunSettings
    task: Task


def read_command_line(values: flags.FlagValues) -> CommandLine:
    """Reads parsed flags, without loading other libraries.

    Raises:
        UserError: a value is out of range, or settings contradict each other.
    """
    apply_preset(values)
    source = cli.read_settings(values, ModelSource)
    run = cli.read_settings(values, RunSettings)
    if run.output is None:
        run = dataclasses.replace(run, output=default_output(source.model))
    prompts = cli.read_settings(values, PromptSource, model=source.model)
    if prompts.shuffle and prompts.shuffle_seed is None:
        prompts = dataclasses.replace(prompts, shuffle_seed=run.rng_seed)
    return CommandLine(
        source=source,
        prompts=prompts,
        sampling=cli.read_settings(values, SamplingConfig),
        masks=cli.read_settings(values, MaskConfig),
        run=run,
        task=cli.read_settings(values, Task),
    )


def make_config(line: CommandLine) -> RunConfig:
    """Reads the prompts of a command line.

    Raises:
        UserError: the prompts cannot be read, or contradict the settings.
        FileNotFoundError: there is no such prompt file.
    """
    from seediff_jax.prompts.prompt_source import count_images, make_plan

    plan, class_names = make_plan(line.prompts)
    return RunConfig(
        **vars(line.source),
        **vars(line.run),
        plan=plan,
        class_names=class_names,
        num_images=count_images(plan, line.prompts),
        sampling=line.sampling,
        masks=line.masks,
        prompts=line.prompts,
    )


def main(argv: Sequence[str]) -> int:
    """Runs the driver on a command line and returns the exit status; errors are one line each."""
    if "--version" in argv[1:]:
        print(f"seediff {seediff_jax.__version__}")
        return 0
    if argv[1:2] == ["segment"]:
        from seediff_jax.segment import main as segment_images

        return segment_images(argv[1:])
    if len(argv) > 1 and argv[1] in SUBCOMMANDS:
        return run_subcommand(argv, lambda **settings: _carry_out(CommandLine(**settings)))
    if len(argv) > 2 and not argv[2].startswith("-"):
        if near := nearest(argv[1], [*SUBCOMMANDS, "segment"], 0.7):
            text = f"there is no command {argv[1]!r}; did you mean {near}?"
            print(f"seediff: {text}", file=sys.stderr)
            return cli.USER_ERROR
    return cli.run_command("seediff", __doc__, GROUPS, argv, _work, ["prompt"])


def _work(values: flags.FlagValues) -> int:
    line = read_command_line(values)
    if line.task.verify or line.task.repair:
        _require_only_folder(values)
    return _carry_out(line)


def _require_only_folder(values: flags.FlagValues) -> None:
    """Raises a UserError if flags are given that do not say which folder to read."""
    # Without --output, the name of the model determines the folder.
    allowed = {"verify", "repair", "debug", "output" if values["output"].present else "model"}
    given = (name for name in values if values[name].present and name not in allowed)
    if changed := [f"--{name}" for name in given if values[name].value != values[name].default]:
        task = "repair" if values["repair"].value else "verify"
        raise UserError(
            f"--{task} reads the folder alone: {', '.join(changed)} would have no effect; leave "
            "it out"
        )


def _carry_out(line: CommandLine) -> int:
    folder, task = open_folder(line.run.output), line.task
    if task.verify or task.repair:
        from seediff_jax.driver.verify import verify_folder

        return verify_folder(folder, task.repair)
    from seediff_jax.driver.arithmetic import avoid_ynnpack, precision_settings
    from seediff_jax.driver.estimate import print_plan
    from seediff_jax.driver.hosts import joined, widen_compiler_stack
    from seediff_jax.driver.make_dataset import make_dataset, require_files
    from seediff_jax.driver.regenerate import regenerate_sample
    from seediff_jax.prompts.prompt_source import classes_left_out

    widen_compiler_stack()
    avoid_ynnpack()
    cli.keep_signals()
    with joined(line.run, lambda error: cli.explain(error, GROUPS)) as group:
        cli.require_devices()
        require_files(line.source)
        config = make_config(line)
        if left_out := classes_left_out(line.prompts):
            names = ", ".join(left_out)
            print(f"note: {config.model} does not draw {names}; no prompt names it")
        group.agree_on_run(config, dataclasses.asdict(task) | precision_settings())
        cli.use_compilation_cache(line.run.compilation_cache)
        if task.regenerate is not None:
            return regenerate_sample(config, task.regenerate)
        if task.plan:
            return print_plan(config, task.rate)
        never_wait()
        failed = make_dataset(config, group)
    return cli.exit_status(failed)


if __name__ == "__main__":
    run_program(main)
