"""SamplingConfig: the settings of sampling.

Quick to import: it loads neither JAX nor NumPy.
"""

import dataclasses
from typing import ClassVar, NamedTuple, TypeVar

from seediff_jax.errors import UserError
from seediff_jax.models.attention_choice import ATTENTION
from seediff_jax.prompts.settings import LIST_TEMPLATE
from seediff_jax.settings import check_settings, setting

_GUIDANCE = (
    "a guidance_scale above 1, up to which there is no guidance",
    lambda config: config.guidance_scale > 1,
)


Config = TypeVar("Config")

PRESENCE_DRAWS = 4
"""Default number of draws where an image may lack classes that are looked for."""

DRAWS_HELP = (
    "Number of noised copies of an image on which the UNet tests whether the image shows its "
    "classes. Each copy costs one UNet call, and one more per class. 0 judges the presence of a "
    "class by attention, at no cost."
)


class SizeCondition(NamedTuple):
    """The sizes in pixels that Stable Diffusion XL takes as input; other models ignore them.

    It was trained on the sizes of its images before scaling and cropping, and draws images that
    look as if they had been of these sizes (arXiv 2307.01952, section 2.2).

    Attributes:
        original: height and width before scaling; None is the size of the image.
        crop: pixels cut off at the top and at the left.
        target: height and width after cropping; None is the size of the image.
    """

    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)
    target: tuple[int, int] | None = None

    def require_valid(self) -> None:
        """Raises a UserError unless these are pairs of whole numbers from 0 on."""
        for name in ("original", "crop", "target"):
            pair = getattr(self, name) or (0, 0)
            is_pair = isinstance(pair, tuple) and len(pair) == 2
            if not is_pair or not all(isinstance(n, int) and n >= 0 for n in pair):
                raise UserError(f"size_condition.{name}={pair!r} must be two numbers from 0 on")

    def numbers(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers for an image of this size, in the order that the UNet reads."""
        return (*(self.original or (height, width)), *self.crop, *(self.target or (height, width)))


IMAGE_SIZE = SizeCondition()
"""An image of its own size, not cropped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How images are sampled; hashable, a static argument of `jax.jit`.

    See the help of each field, `seediff --help` or docs/flags.md. Guidance scale and rescale are
    traced, but turning guidance off, or rescaling on, compiles another program.

    Attributes:
        template: of the texts that name each class alone, see `sampling.evidence`. SegmentConfig
            has a setting of this name.

    Raises:
        UserError: a value is out of range.
    """

    num_steps: int = setting(
        50, "Number of denoising steps; PNDM makes one more UNet call.", least=1, most=10_000
    )
    guidance_scale: float = setting(
        7.5,
        "Weight of the prompt against the negative prompt. At 1 or below there is no guidance, "
        "which halves the cost of a step.",
        least=0,
        traced=True,
    )
    guidance_rescale: float = setting(
        0.0,
        "Guidance rescale factor (arXiv 2305.08891, section 3.4); 0.7 suits models that predict "
        "velocity.",
        least=0,
        most=1,
        traced=True,
        needs=_GUIDANCE,
    )
    guidance_interval: tuple[float, ...] = setting(
        (0.0, 1.0),
        "Part of the run that has guidance (arXiv 2404.07724), as its start and end in 0..1; the "
        "other steps cost half. 0.2,0.8 leaves out the first and the last fifth of the UNet calls.",
        least=0,
        most=1,
        needs=_GUIDANCE,
    )
    negative_prompt: str = setting("", "Prompt to guide away from.", traced=True, needs=_GUIDANCE)
    presence_draws: int | None = setting(
        None,
        f"{DRAWS_HELP} By default {PRESENCE_DRAWS} in a run that looks for classes which its "
        "prompts do not name, else 0.",
        least=0,
        most=1000,
    )
    height: int | None = setting(
        None,
        "Height of the images in pixels; by default the one the model was trained for.",
        least=1,
        most=16384,
    )
    width: int | None = setting(
        None,
        "Width of the images in pixels; by default the one the model was trained for.",
        least=1,
        most=16384,
    )
    size_condition: SizeCondition = setting(
        IMAGE_SIZE, "Sizes that Stable Diffusion XL takes as input.", flag="", traced=True
    )
    attention: str = setting(
        "auto",
        "How attention is computed: by XLA, by flash attention on a TPU, or by cuDNN on an NVIDIA "
        "GPU. auto chooses for each layer. The results differ only by rounding.",
        choices=ATTENTION,
    )
    dry_run: bool = setting(False, "Do everything except the UNet calls; images are decoded noise.")

    template: ClassVar[str] = LIST_TEMPLATE

    def __post_init__(self):
        check_settings(self)
        self.size_condition.require_valid()
        interval = self.guidance_interval
        if len(interval) != 2 or interval[0] >= interval[1]:
            raise UserError(
                f"guidance_interval={','.join(f'{part:g}' for part in interval)} must be two "
                "numbers that rise, as in 0.2,0.8"
            )


def with_draws(config: Config, may_lack: bool) -> Config:
    """Returns a SamplingConfig or SegmentConfig with its `presence_draws` in place of None.

    Args:
        config: the settings.
        may_lack: whether classes are looked for that no prompt or list ascribes to the image.
    """
    if config.presence_draws is not None:
        return config
    return dataclasses.replace(config, presence_draws=PRESENCE_DRAWS if may_lack else 0)
