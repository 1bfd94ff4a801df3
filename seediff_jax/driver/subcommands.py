"""Commands on an existing dataset: `seediff filter DIR`, `seediff verify DIR` and others.

Quick to import, so that --help is quick; what a command needs is imported when it works.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from absl import flags

from seediff_jax.driver import cli
from seediff_jax.driver.config import HostSettings, Task
from seediff_jax.driver.signals import listening
from seediff_jax.driver.stored_command import read_command
from seediff_jax.errors import UserError
from seediff_jax.files.folder import Folder, open_folder
from seediff_jax.masks.config import MaskConfig
from seediff_jax.pipeline.settings import LAST_INDEX
from seediff_jax.review.settings import Criteria, FilterOutput, RemaskOutput, ReportSettings
from seediff_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetPlace:
    """Where the dataset is."""

    dataset: str | None = setting(
        None, "Folder or URL of a dataset; also accepted as the first argument.", path=True
    )

    def __post_init__(self):
        check_settings(self)
        if self.dataset is None:
            raise UserError("the folder of the dataset is missing; give it as the first argument")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Assumptions of a plan."""

    rate: float | None = setting(
        None, "Images per second on each device; by default it is measured.", least=1e-9, most=1e9
    )

    def __post_init__(self):
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleIndex:
    """Which sample."""

    index: int | None = setting(
        None, "Index of the sample; also accepted as the second argument.", least=0, most=LAST_INDEX
    )

    def __post_init__(self):
        check_settings(self)
        if self.index is None:
            raise UserError("the index of the sample is missing; give it as the second argument")


CarryOut = Callable[..., int]
"""Runs the fields of a `main.CommandLine`, given by name, and returns the exit status."""


class Subcommand(NamedTuple):
    """A command.

    Attributes:
        help: what it does, for --help.
        groups: its settings, as of `cli.run_command`.
        work: does it on the folder, and returns the exit status.
        positional: flags that arguments without a name set, in order.
    """

    help: str
    groups: cli.Groups
    work: Callable[[Folder, flags.FlagValues, CarryOut], int]
    positional: Sequence[str] = ("dataset",)


def define_flags(name: str) -> flags.FlagValues:
    """Defines the flags of a command."""
    return cli.define_flags(_groups(name))


def commands_page() -> str:
    """The content of docs/commands.md, which follows from the commands and their settings:

    python -c "from seediff_jax.driver.subcommands import commands_page as p; print(p(), end='')"
    """
    parts = [
        "# Commands\n\nThe commands of `seediff` for an existing dataset. Each takes the folder or "
        "the URL of the\ndataset as its first argument. This page is generated from the code.\n"
    ]
    for name, command in SUBCOMMANDS.items():
        text, _, examples = command.help.partition("\n\n")
        lines = "\n".join(line.strip() for line in examples.splitlines())
        parts.append(f"\n## seediff {name}\n\n{text}\n\n```bash\n{lines}\n```\n")
        parts += [cli.flags_table(g) for g in command.groups.values() if g is not HostSettings]
        if HostSettings in command.groups.values():
            parts.append(
                "\nIt also takes the flags of a run that change no sample, such as "
                "`--batch_size`\nand `--mesh` ([flags.md](flags.md#devices-and-hosts)). Folders "
                "that [`seediff segment`](segment.md) wrote,\nand copies by `filter` and `remask`, "
                "are refused.\n"
            )
    return "".join(parts)


def _groups(name: str) -> cli.Groups:
    return {"Dataset": DatasetPlace, **SUBCOMMANDS[name].groups}


def run_subcommand(argv: Sequence[str], carry_out: CarryOut) -> int:
    """Runs the command that `argv[1]` names and returns the exit status."""
    name = argv[1]
    command = SUBCOMMANDS[name]

    def work(values: flags.FlagValues) -> int:
        place = cli.read_settings(values, DatasetPlace)
        return command.work(open_folder(place.dataset), values, carry_out)

    arguments = [argv[0], *argv[2:]]
    return cli.run_command(
        f"seediff {name}", command.help, _groups(name), arguments, work, command.positional
    )


def _filter(folder: Folder, values: flags.FlagValues, carry_out: CarryOut) -> int:
    criteria = cli.read_settings(values, Criteria)
    output = cli.read_settings(values, FilterOutput)
    from seediff_jax.review.filter import filter_dataset

    with listening():
        for line in filter_dataset(folder, criteria, output):
            print(line)
    return 0


def _report(folder: Folder, values: flags.FlagValues, carry_out: CarryOut) -> int:
    settings = cli.read_settings(values, ReportSettings)
    from seediff_jax.review.report import write_report

    print(f"open {write_report(folder, settings)} in a browser")
    return 0


def _remask(folder: Folder, values: flags.FlagValues, carry_out: CarryOut) -> int:
    masks = cli.read_settings(values, MaskConfig)
    output = cli.read_settings(values, RemaskOutput)
    from seediff_jax.driver.arithmetic import avoid_ynnpack

    avoid_ynnpack()
    cli.require_devices()
    cli.use_compilation_cache(None)
    from seediff_jax.driver.remask import remask_dataset

    with listening():
        print(remask_dataset(folder, masks, output))
    return 0


def _check(folder: Folder, repairs: bool) -> int:
    from seediff_jax.driver.verify import verify_folder

    return verify_folder(folder, repairs)


def _plan(folder: Folder, values: flags.FlagValues, carry_out: CarryOut) -> int:
    rate = cli.read_settings(values, PlanSettings).rate
    return _run_again(folder, values, carry_out, Task(plan=True, rate=rate))


def _regenerate(folder: Folder, values: flags.FlagValues, carry_out: CarryOut) -> int:
    index = cli.read_settings(values, SampleIndex).index
    return _run_again(folder, values, carry_out, Task(regenerate=index))


def _run_again(folder: Folder, values: flags.FlagValues, carry_out: CarryOut, task: Task) -> int:
    work = cli.read_settings(values, HostSettings)
    return carry_out(**read_command(folder, work), task=task)


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "resume": Subcommand(
        "Resumes a run: makes the samples that are missing, with the settings in its folder."
        "\n\n  seediff resume outputs/stickers\n",
        {"Devices and hosts": HostSettings},
        lambda folder, values, carry_out: _run_again(folder, values, carry_out, Task()),
    ),
    "plan": Subcommand(
        "Prints how many samples a run has still to make, how long that takes and what it needs; "
        "writes nothing."
        "\n\n  seediff plan outputs/stickers\n",
        {"Plan": PlanSettings, "Devices and hosts": HostSettings},
        _plan,
    ),
    "regenerate": Subcommand(
        "Makes one sample again, with the settings in the folder, and compares it with the stored "
        "one.\n\n  seediff regenerate outputs/stickers 7\n",
        {"Sample": SampleIndex, "Devices and hosts": HostSettings},
        _regenerate,
        ("dataset", "index"),
    ),
    "verify": Subcommand(
        "Reads all files of a dataset and lists what is missing, damaged or changed.\n\n"
        "  seediff verify outputs/stickers\n",
        {},
        lambda folder, values, carry_out: _check(folder, repairs=False),
    ),
    "repair": Subcommand(
        "Reads all files as verify does, restores damaged settings and removes other damaged "
        "files. Run the original command afterwards to make the removed samples again.\n\n"
        "  seediff repair outputs/stickers\n",
        {},
        lambda folder, values, carry_out: _check(folder, repairs=True),
    ),
    "filter": Subcommand(
        "Keeps the good samples of a finished dataset: writes them to a new folder, or lists or\n"
        "counts them. The dataset itself is only read.\n\n"
        "  seediff filter outputs/stickers --min_score=0.8 --drop_empty\n"
        "  seediff filter outputs/stickers --quantile=0.75 --per_class --output=outputs/per_class\n"
        "  seediff filter outputs/stickers --min_area=0.01 --output=outputs/coco --format=coco\n",
        {"Criteria": Criteria, "Output": FilterOutput},
        _filter,
    ),
    "remask": Subcommand(
        "Writes a dataset with other masks of the same images, by another method or with other "
        "thresholds. The run must have stored attention (--keep_attention); it is not sampled "
        "again, and its folder is only read. Mask flags that you leave out have their defaults, "
        "not the values of the run.\n\n"
        "  seediff remask outputs/stickers --mask_method=exponentiation --output=outputs/other\n",
        {"Masks": MaskConfig, "Output": RemaskOutput},
        _remask,
    ),
    "report": Subcommand(
        "Writes an HTML page that shows a finished dataset, samples with the lowest scores first."
        "\n\n"
        "  seediff report outputs/stickers\n"
        "  seediff report outputs/stickers --worst=1000 --output=worst.html\n",
        {"Report": ReportSettings},
        _report,
    ),
}
"""The commands by name."""
