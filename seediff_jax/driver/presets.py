"""Named sets of defaults for flags, as in --preset=fast."""

import dataclasses

from absl import flags

from seediff_jax.driver.cli import read_settings
from seediff_jax.settings import check_settings, setting

PRESETS = {
    "fast": {"num_steps": 15, "scheduler": "dpmsolver_multistep", "capture": "later_half"},
}
"""Name -> flags with their values; docs/benchmarks.md says what they cost and save."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """Which set of defaults to use."""

    preset: str | None = setting(
        None,
        "Defaults of other flags, which win if they are given. fast: a third of the published "
        "FLOPs (--num_steps=15 --scheduler=dpmsolver_multistep --capture=later_half); not for "
        "models that were distilled to a few steps.",
        choices=tuple(PRESETS),
        stored=False,
    )

    def __post_init__(self):
        check_settings(self)


def apply_preset(values: flags.FlagValues) -> None:
    """Sets the flags of the chosen preset that were not given.

    Raises:
        UserError: there is no such preset.
    """
    name = read_settings(values, Preset).preset
    for flag, value in PRESETS.get(name or "", {}).items():
        if not values[flag].present:
            values[flag].value = value
