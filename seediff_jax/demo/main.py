"""Serves a page for the browser that generates images with their masks, on this machine.

Another threshold, method or refinement changes the mask at once: the attention is kept, so nothing
is sampled again. The page shows the command line that makes the same image and mask.

  seediff-demo
  seediff-demo --model=/models/stable-diffusion-v1-4 --dtype=bfloat16 --port=7861
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from absl import flags

from seediff_jax.driver import cli
from seediff_jax.driver.config import ModelSource
from seediff_jax.errors import UserError, require_installed
from seediff_jax.prompts.embedded_models import EMBEDDED_MODELS
from seediff_jax.settings import check_settings, setting

LOOPBACK = "127.0.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How the page is served and what it opens with."""

    port: int = setting(7860, "Port of the page on this machine.", least=0, most=65535)
    host: str = setting(
        LOOPBACK,
        "Address to listen on. The page has no password, so any address but 127.0.0.1 opens it to "
        "everyone who can reach this machine.",
    )
    num_steps: int = setting(50, "Initial number of denoising steps.", least=1, most=100)

    def __post_init__(self):
        check_settings(self)


GROUPS = {"Model": ModelSource, "Page": DemoSettings}
"""The settings that are flags of this program."""


def define_flags() -> flags.FlagValues:
    """Defines the flags; importing this module registers none."""
    return cli.define_flags({**GROUPS, "Errors": cli.Diagnostics})


def main(argv: Sequence[str]) -> int:
    """Serves the page until it is interrupted; errors are one line each."""
    return cli.run_command("seediff-demo", __doc__, GROUPS, argv, _work)


def _work(values: flags.FlagValues) -> None:
    source, settings = (
        cli.read_settings(values, ModelSource),
        cli.read_settings(values, DemoSettings),
    )
    require_installed("the demo", ["gradio"])
    from seediff_jax.driver.arithmetic import avoid_ynnpack

    avoid_ynnpack()
    cli.require_devices()
    cli.use_compilation_cache(None)
    from seediff_jax.demo.studio import Studio

    studio = Studio(source)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # the page uses no network
    from seediff_jax.demo.page import CSS, THEME, make_page

    embedded = EMBEDDED_MODELS.get(source.model)
    thing = embedded.default_classes[0] if embedded else "cat"
    page = make_page(studio, f"a photo of a {thing}", settings.num_steps)
    try:
        _, address, _ = page.launch(
            server_name=settings.host,
            server_port=settings.port or None,
            share=False,
            theme=THEME,
            css=CSS,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:  # Gradio names no flag
        text = f"port={settings.port} of {settings.host} is not free ({error}); give another one"
        raise UserError(text) from error
    print(f"the page is at {address}; Ctrl-C ends it", flush=True)
    page.block_thread()


def run() -> None:
    """Console entry."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
