"""Makes masks of existing images from the attention of a few UNet calls on their noised latents.

Without --output it writes to outputs/NAME, with the name of the folder of images. If the output
folder holds a run with the same settings, that run continues. With --truth it prints the mean IoU.

  seediff segment --images=photos --classes=cat,boat
  seediff segment --images=photos --image_classes=classes.txt --timesteps=50,100,200 --mirror
  seediff segment --images=JPEGImages --image_names=val.txt --classes=voc --truth=SegmentationClass
"""

if __name__ == "__main__":  # before all other imports, which a signal may interrupt
    from seediff_jax.driver import signals

    signals.end_at_signals()

import dataclasses
from collections.abc import Sequence

from absl import flags

from seediff_jax.driver import cli
from seediff_jax.driver.config import (
    HostSettings,
    ModelSource,
    OutputSettings,
    RunSettings,
    default_output,
)
from seediff_jax.driver.stdio import never_wait, run_program
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.settings import ImageSource
from seediff_jax.sampling.segment_config import SegmentConfig

GROUPS = {
    "Model": ModelSource,
    "Images": ImageSource,
    "UNet calls": SegmentConfig,
    "Masks": MaskConfig,
    "Seed and output": OutputSettings,
    "Devices and hosts": HostSettings,
}
"""The settings that are flags of this program."""


def define_flags() -> flags.FlagValues:
    """Defines the flags; importing this module registers none."""
    return cli.define_flags({**GROUPS, "Errors": cli.Diagnostics})


def main(argv: Sequence[str]) -> int:
    """Segments as a command line says and returns the exit status; errors are one line each."""
    return cli.run_command("seediff segment", __doc__, GROUPS, argv, _work)


def _work(values: flags.FlagValues) -> int:
    source, run = (cli.read_settings(values, kind) for kind in (ModelSource, RunSettings))
    images = cli.read_settings(values, ImageSource)
    sampling, masks = (cli.read_settings(values, kind) for kind in (SegmentConfig, MaskConfig))
    if run.output is None:
        run = dataclasses.replace(run, output=default_output(images.images))
    from seediff_jax.driver.arithmetic import avoid_ynnpack, precision_settings
    from seediff_jax.driver.hosts import is_first, joined, widen_compiler_stack
    from seediff_jax.driver.make_dataset import make_dataset, require_files
    from seediff_jax.driver.segment_run import check_images, describe_metrics, make_config

    widen_compiler_stack()
    avoid_ynnpack()
    cli.keep_signals()
    with joined(run, lambda error: cli.explain(error, GROUPS)) as group:
        cli.require_devices()
        require_files(source)
        config = make_config(source, images, sampling, masks, run)
        group.agree_on_run(config, precision_settings())
        cli.use_compilation_cache(run.compilation_cache)
        never_wait()
        check_images(config)
        failed = make_dataset(config, group)
        if failed is not None and config.images.truth is not None and is_first():
            print(describe_metrics(config))
    return cli.exit_status(failed)


if __name__ == "__main__":
    run_program(main)
