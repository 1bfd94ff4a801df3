"""MaskConfig: the settings of masks; the mask methods with their published values; fixed labels.

Quick to import: it loads neither JAX nor NumPy.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from seediff_jax.errors import UserError
from seediff_jax.masks.own_methods import method_name, parse_methods, require_methods
from seediff_jax.settings import check_settings, setting

BACKGROUND = 0
"""Label of pixels that belong to no class; class k of the image has label k + 1."""

IGNORE_INDEX = 255
"""Label of pixels that are left out of training and evaluation."""

AFFINITIES = ("cosine", "transition", "sinkhorn")
"""Names of the affinities: similarity of attention rows, or attention as a random walk, with rows
or with rows and columns that sum to 1."""

REFINED_THRESHOLD = 0.8
"""Published threshold of a mask after refinement (method section 6)."""


LEAST_EVIDENCE = 0.2
"""Default of the smallest presence where it is found by denoising, see docs/masks.md."""


class Published(NamedTuple):
    """Published values of a method; MaskConfig uses them for settings that are None."""

    power: int
    threshold: float
    uncertain: float | None


class Method(NamedTuple):
    """A mask method: makes a soft mask from attention.

    Attributes:
        function: `module:function`, as for a user's own method, see `masks.own_methods`.
        published: its published values.
        needs_self_attention: whether it reads self-attention.
    """

    function: str
    published: Published
    needs_self_attention: bool = True


METHODS = {
    "seediff": Method("seediff_jax.masks.methods:soft_mask", Published(1, 0.5, None)),
    "cross_attention": Method(
        "seediff_jax.masks.methods:cross_attention_mask",
        Published(1, 0.5, None),
        needs_self_attention=False,
    ),
    "exponentiation": Method(
        "seediff_jax.masks.methods:exponentiation_mask", Published(4, 0.6, 0.5)
    ),
}
"""The methods that have a name of their own (method sections 5 and 8)."""


def method_of(method: str | Callable[..., Any]) -> Method:
    """Looks a method up; a user's own method has the published values of seediff."""
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]
    return Method(method, METHODS["seediff"].published, needs_self_attention=False)


_SEEDIFF = (
    "mask_method=seediff",
    lambda masks: any(each not in ("cross_attention", "exponentiation") for each in masks.methods),
)
_POWER = (
    "mask_method=seediff or mask_method=exponentiation",
    lambda masks: any(each != "cross_attention" for each in masks.methods),
)
_REFINEMENT = ("refine_iterations=NUMBER above 0", lambda masks: masks.refine_iterations > 0)


class Thresholds(NamedTuple):
    """Thresholds of label maps, which compiled programs take as arguments.

    Attributes:
        threshold: a pixel belongs to a class if its soft mask is above it.
        uncertain: pixels from this value up to the final threshold are ignored; equal values ignore
            none.
        refined: replaces `threshold` after refinement.
        presence: classes whose presence is below it have no pixels; NaN is the default, which is
            LEAST_EVIDENCE where there is evidence, else none.
    """

    threshold: float
    uncertain: float
    refined: float
    presence: float = math.nan


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How masks are made from attention; hashable, a static argument of `jax.jit`.

    See the help of each field, `seediff --help` or docs/flags.md.

    Raises:
        UserError: a value is out of range.
    """

    method: Any = setting(
        "seediff",
        f"Method that turns attention into a mask: {', '.join(METHODS)}, or your own, as "
        "package.module:function, see docs/masks.md. Of several, separated by commas, the first "
        "makes the masks of the dataset, and those of the others are kept beside it.",
        flag="mask_method",
        parse=parse_methods,
        text="seediff",
    )
    affinity: str = setting(
        "cosine",
        "Similarity that spreads the seeds of seediff.",
        choices=AFFINITIES,
        needs=_SEEDIFF,
    )
    power: int | None = setting(
        None,
        "Number of applications of the affinity (seediff), or exponent (exponentiation); by "
        "default the published value of the method.",
        least=1,
        most=10_000,
        needs=_POWER,
    )
    background: bool = setting(
        True,
        "At the finer levels, remove from seediff masks what resembles the background.",
        needs=_SEEDIFF,
    )
    threshold: float | None = setting(
        None,
        "A pixel belongs to a class if its soft mask is above this value; by default the published "
        "value of the method.",
        least=0,
        most=1,
        traced=True,
    )
    uncertain: float | None = setting(
        None,
        "Pixels from this value up to the threshold become 255, which means ignore. By default "
        "there are none, except with exponentiation at its published threshold.",
        least=0,
        most=1,
        traced=True,
    )
    min_presence: float | None = setting(
        None,
        "Classes whose presence is below this value have no pixels, because the image may not show "
        f"them; 0 keeps all. By default {LEAST_EVIDENCE:g} where presence_draws is above 0, else "
        "0. docs/masks.md has measured values.",
        least=0,
        most=1,
        traced=True,
    )
    refine_iterations: int = setting(
        0,
        "Number of steps of pixel-adaptive refinement, which moves the edges of masks to edges in "
        "the image.",
        least=0,
        most=2**31 - 1,
    )
    refined_threshold: float = setting(
        REFINED_THRESHOLD,
        "Threshold after refinement, in place of --threshold.",
        least=0,
        most=1,
        traced=True,
        needs=_REFINEMENT,
    )
    dilations: tuple[int, ...] = setting(
        (1,),
        "Distances in pixels to the neighbours that refinement compares, as in 1,2,4.",
        least=1,
        most=16384,
        needs=_REFINEMENT,
    )

    def __post_init__(self):
        check_settings(self)
        if isinstance(self.method, Sequence) and not isinstance(self.method, str):
            methods = tuple(self.method)
            object.__setattr__(self, "method", methods[0] if len(methods) == 1 else methods)
        require_methods(self.methods, METHODS)
        if len(self.methods) > 1:
            self.each()  # checks the others
            return
        last = self.refined_threshold if self.refine_iterations else self.resolved.threshold
        uncertain = self.resolved.uncertain
        if uncertain is not None and uncertain > last:
            name = "refined threshold" if self.refine_iterations else "threshold"
            raise UserError(f"uncertain={uncertain} must lie in 0..{last}, the {name}")

    @property
    def methods(self) -> tuple[str | Callable[..., Any], ...]:
        """The method, or all of several, as names or functions."""
        return self.method if isinstance(self.method, tuple) else (self.method,)

    @property
    def only_method(self) -> str | Callable[..., Any]:
        """The method; raises a UserError if there are several."""
        if len(self.methods) > 1:
            raise UserError(
                f"method={','.join(map(method_name, self.methods))}: only one is possible here"
            )
        return self.method

    def each(self) -> tuple["MaskConfig", ...]:
        """One config per method, with the same settings."""
        return tuple(dataclasses.replace(self, method=method) for method in self.methods)

    @property
    def resolved(self) -> Published:
        """`power`, `threshold` and `uncertain`, with published values in place of None.

        For several methods, the published values are those of the first.
        """
        published = method_of(self.methods[0]).published
        power = published.power if self.power is None else self.power
        if self.threshold is not None:
            return Published(power, self.threshold, self.uncertain)
        uncertain = published.uncertain if self.uncertain is None else self.uncertain
        return Published(power, published.threshold, uncertain)

    def recorded(self, presence_draws: int) -> dict[str, Any]:
        """Values that settings.json records in place of None: the published ones of one method.

        Several methods have different ones, so None is recorded for them.
        """
        least = LEAST_EVIDENCE if presence_draws else 0.0
        values = {"min_presence": least if self.min_presence is None else self.min_presence}
        return values | (self.resolved._asdict() if len(self.methods) == 1 else {})

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds as `make_masks` takes them."""
        _, threshold, uncertain = self.resolved
        last = self.refined_threshold if self.refine_iterations else threshold
        uncertain = last if uncertain is None else uncertain
        presence = math.nan if self.min_presence is None else self.min_presence
        return Thresholds(threshold, uncertain, self.refined_threshold, presence)


def require_presence(masks: MaskConfig, presence_draws: int) -> None:
    """Refuses `min_presence` for masks by cross-attention alone, whose own presence is always 1.

    Raises:
        UserError: it has no effect, because there are no draws either.
    """
    if presence_draws or not masks.min_presence or {*masks.methods} != {"cross_attention"}:
        return
    raise UserError(
        f"min_presence={masks.min_presence:g} needs presence_draws=NUMBER above 0 or a mask_method "
        "besides cross_attention, or it has no effect"
    )
