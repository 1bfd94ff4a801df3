"""SegmentConfig: the settings of the noised UNet calls that read the attention of given images.

Quick to import: it loads neither JAX nor NumPy.
"""

import dataclasses
from typing import ClassVar

from seediff_jax.models.attention_choice import ATTENTION
from seediff_jax.prompts.settings import LIST_TEMPLATE
from seediff_jax.prompts.templates import require_list_template
from seediff_jax.sampling.config import DRAWS_HELP, IMAGE_SIZE, PRESENCE_DRAWS, SizeCondition
from seediff_jax.settings import check_settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """How the attention of given images is read; hashable, a static argument of `jax.jit`.

    See the help of each field, `seediff segment --help` or docs/segment.md.

    Attributes:
        guidance_scale: 1, because the UNet is called without guidance. This and the other class
            variables replace the fields of SamplingConfig that shared code reads.

    Raises:
        UserError: a value is out of range.
    """

    timesteps: tuple[int, ...] = setting(
        (100,),
        "Noise levels of the UNet calls, 0 to 999 for most models. With several, as in 50,100,200, "
        "the UNet is called for each and the attention is averaged.",
        least=0,
        most=10**6,
        traced=True,
    )
    mirror: bool = setting(
        False, "Also call the UNet for the mirrored image, and average the attention of both."
    )
    template: str = setting(
        LIST_TEMPLATE,
        'Prompt of an image, in which {classes} becomes, for example, "a cat and an aeroplane".',
        traced=True,
    )
    presence_draws: int | None = setting(
        None,
        f"{DRAWS_HELP} By default {PRESENCE_DRAWS} with one list of classes for all images, and 0 "
        "with a list for each.",
        least=0,
        most=1000,
    )
    height: int | None = setting(
        None,
        "Height in pixels to which images are resized for the networks; by default the one the "
        "model was trained for.",
        least=1,
        most=16384,
    )
    width: int | None = setting(
        None,
        "Width in pixels to which images are resized for the networks; by default the one the "
        "model was trained for.",
        least=1,
        most=16384,
    )
    tile_side: int | None = setting(
        None,
        "Side in pixels of square tiles. An image with a longer edge is also cut into tiles, which "
        "are segmented in addition to the whole image; by default no image is cut.",
        least=8,
        most=16384,
        traced=True,
    )
    tile_overlap: float = setting(
        0.25,
        "Smallest overlap of neighbouring tiles, as a fraction of the side.",
        least=0,
        most=0.9,
        traced=True,
        needs=("tile_side=PIXELS", lambda config: config.tile_side is not None),
    )
    attention: str = setting(
        "auto", "How attention is computed, as for seediff.", choices=ATTENTION
    )

    guidance_scale: ClassVar[float] = 1.0
    guidance_rescale: ClassVar[float] = 0.0
    size_condition: ClassVar[SizeCondition] = IMAGE_SIZE
    negative_prompt: ClassVar[str] = ""

    def __post_init__(self):
        check_settings(self)
        require_list_template(self.template)
