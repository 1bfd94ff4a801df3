"""Which attention layers are recorded: a static choice, checked against the UNet's config.

Layers carry diffusers' names, for example `up_blocks.1.attentions.0.transformer_blocks.0.attn1`;
attn1 is self-attention, attn2 cross-attention.
"""

import dataclasses
import math

from seediff_jax.errors import UserError
from seediff_jax.models.config import UNetConfig, block_plans


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureConfig:
    """Names of the recorded layers, and when they are recorded.

    Attributes:
        cross_layers: layers of the seed level, or of coarser sides, whose records are resized to
            it; their order is the layer axis of the record.
        self_layers: layers of one side each.
        calls: the part of a sampling run's UNet calls that is averaged, from and to; (0, 0.5) is
            the first half, where images are noisiest.
        kept_layers: layers of any side whose attention is kept for every UNet call and head, for
            runs of a few images (`AttentionMaps.kept`).

    Raises:
        UserError: `calls` is not a rising pair within 0..1.
    """

    cross_layers: tuple[str, ...] = ()
    self_layers: tuple[str, ...] = ()
    calls: tuple[float, float] = (0.0, 1.0)
    kept_layers: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 <= self.calls[0] < self.calls[1] <= 1:
            raise UserError(f"capture: calls={list(self.calls)} must rise, within 0..1")

    def recorded_calls(self, num_calls: int) -> tuple[bool, ...]:
        """Which of `num_calls` UNet calls are averaged: those whose middle lies in `calls`.

        Raises:
            UserError: there is none.
        """
        first, last = (share * num_calls for share in self.calls)
        recorded = tuple(first <= call + 0.5 < last for call in range(num_calls))
        if not any(recorded):
            raise UserError(
                f"capture: none of {num_calls} UNet calls lies in calls={list(self.calls)}; use "
                "more steps, or a longer part"
            )
        return recorded

    def records(self, layer: str) -> bool:
        """Whether the layer of this name is recorded."""
        return layer in (*self.cross_layers, *self.self_layers, *self.kept_layers)


NO_CAPTURE = CaptureConfig()


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """A transformer block of a UNet: its name and the side (the height) of its image grid."""

    name: str
    side: int


def attention_layers(
    config: UNetConfig, latent_side: int | None = None
) -> tuple[AttentionLayer, ...]:
    """All transformer blocks in the order in which the UNet runs them.

    Args:
        config: the UNet's config.
        latent_side: side (height) of the latents; the config's `sample_size` if None.
    """
    sides = [config.sample_size if latent_side is None else latent_side]
    while len(sides) < len(config.block_out_channels):
        sides.append((sides[-1] + 1) // 2)  # the strided convolution rounds up
    return tuple(
        AttentionLayer(f"{plan.name}.attentions.{i}.transformer_blocks.{j}", sides[plan.level])
        for plan in block_plans(config)
        for i in range(plan.num_transformers)
        for j in range(plan.depth)
    )


def layer_sizes(config: UNetConfig, latent_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Height and width of the image grid of every attention layer, by name."""
    rows, columns = (attention_layers(config, side) for side in latent_size)
    return {
        f"{row.name}.{kind}": (row.side, column.side)
        for row, column in zip(rows, columns, strict=True)
        for kind in ("attn1", "attn2")
    }


def kept_bytes(
    capture: CaptureConfig, config: UNetConfig, latent_size: tuple[int, int], columns: int
) -> int:
    """Bytes that `kept_layers` take per image and UNet call.

    Args:
        capture: names the layers.
        config: the UNet's config.
        latent_size: height and width of the latents.
        columns: of the cross-attention.
    """
    sizes = layer_sizes(config, latent_size)
    heads = {plan.name: plan.num_heads for plan in block_plans(config)}
    numbers = 0
    for name in capture.kept_layers:
        locations = math.prod(sizes[name])
        keys = locations if name.endswith("attn1") else columns
        numbers += heads[name.partition(".attentions")[0]] * locations * keys
    return 4 * numbers


def published_capture(config: UNetConfig) -> CaptureConfig:
    """The published choice (SeeDiff, arXiv 2507.19808, and its release).

    Cross-attention: every layer of the down and up blocks at the seed level, which is the coarsest
    side that has attention in an up block. Self-attention: the first transformer block of every
    level's first up block.
    """
    layers = [layer for layer in attention_layers(config) if not layer.name.startswith("mid_block")]
    first_of_level: dict[int, str] = {}
    for layer in layers:
        if layer.name.startswith("up_blocks"):
            first_of_level.setdefault(layer.side, layer.name)
    seed_side = min(first_of_level)
    return CaptureConfig(
        cross_layers=tuple(f"{layer.name}.attn2" for layer in layers if layer.side == seed_side),
        self_layers=tuple(f"{first_of_level[side]}.attn1" for side in sorted(first_of_level)),
    )


def coarse_capture(config: UNetConfig) -> CaptureConfig:
    """The published choice without its finest level, whose record is by far the largest.

    Of latents of side 96 (Stable Diffusion 2 at 768 x 768) the finest level takes 324 MiB per
    image, all others together 21 MiB. A UNet with one level keeps it.
    """
    published = published_capture(config)
    coarser = published.self_layers[:-1] or published.self_layers
    return dataclasses.replace(published, self_layers=coarser)


def two_levels_capture(config: UNetConfig) -> CaptureConfig:
    """The published layers, and for the seeds those of the next coarser side (Text-to-Seed, 2026).

    Raises:
        UserError: there is no coarser side with attention.
    """
    published = published_capture(config)
    layers = attention_layers(config)
    seed = {f"{layer.name}.attn1": layer.side for layer in layers}[published.self_layers[0]]
    coarser = max((layer.side for layer in layers if layer.side < seed), default=0)
    if not coarser:
        raise UserError(f"capture=two_levels: this UNet has no attention coarser than side {seed}")
    wanted = (f"{layer.name}.attn2" for layer in layers if layer.side == coarser)
    return dataclasses.replace(published, cross_layers=(*published.cross_layers, *wanted))


PRESETS = {
    "published": published_capture,
    "coarse": coarse_capture,
    "two_levels": two_levels_capture,
}
"""Names of choices that suit every UNet."""

LATER_HALF = "later_half"
"""Name of the model's own choice, averaged over HALF of the UNet calls (Text-to-Seed, 2026)."""
HALF = (0.5, 1.0)


def check_capture(
    capture: CaptureConfig, config: UNetConfig, latent_side: int | None = None
) -> None:
    """Checks that every recorded layer exists and that the sides agree.

    Args:
        capture: the layers to record.
        config: the UNet's config.
        latent_side: side (height) of the latents; the config's `sample_size` if None.

    Raises:
        UserError: a layer does not exist (the message lists those that do), two self layers share
            a side, a cross or kept layer is listed twice, or one is finer than the seed level.
    """
    sides = {layer.name: layer.side for layer in attention_layers(config, latent_side)}
    cross, own = ([f"{name}.{kind}" for name in sides] for kind in ("attn2", "attn1"))
    for names, existing in (
        (capture.self_layers, own),
        (capture.cross_layers, cross),
        (capture.kept_layers, (*own, *cross)),
    ):
        for name in names:
            if name not in existing:
                known = "\n  ".join(existing)
                raise UserError(f"capture: no layer {name!r}; this UNet has\n  {known}")
    for names in (capture.cross_layers, capture.kept_layers):
        if len(set(names)) < len(names):
            raise UserError(f"capture: a layer stands twice in {list(names)}")
    self_sides = [sides[name.rpartition(".")[0]] for name in capture.self_layers]
    if len(set(self_sides)) != len(self_sides):
        raise UserError(f"capture: self layers need one side each, got sides {self_sides}")
    cross_sides = {sides[name.rpartition(".")[0]] for name in capture.cross_layers}
    if not self_sides and len(cross_sides) > 1:
        raise UserError(f"capture: cross layers need one side, got sides {sorted(cross_sides)}")
    if self_sides and not {min(self_sides)} <= cross_sides <= {*range(min(self_sides) + 1)}:
        raise UserError(
            f"capture: cross layers have sides {sorted(cross_sides)}; expected the seed level's "
            f"side {min(self_sides)}, the coarsest of the self layers, and perhaps coarser ones"
        )
