"""The UNet's blocks in the order in which they run, as its config describes them."""

import dataclasses

from seediff_jax.models.config import UNetConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """A block of the UNet.

    Attributes:
        name: diffusers' name, for example `up_blocks.1`.
        level: how often the image was halved before the block; 0 is the side of the latents.
        channels: width of the block's outputs.
        num_resnets: number of ResNet blocks.
        num_transformers: the first ResNet blocks are each followed by a transformer.
        depth: transformer blocks of a transformer.
        num_heads: attention heads.
        resize: "down" or "up" at the end of the block, or None.
    """

    name: str
    level: int
    channels: int
    num_resnets: int
    num_transformers: int
    depth: int
    num_heads: int
    resize: str | None = None


def block_plans(config: UNetConfig) -> tuple[BlockPlan, ...]:
    """The down blocks, fine to coarse, the mid block, and the up blocks, coarse to fine."""
    last = len(config.block_out_channels) - 1

    def plan(name, level, num_resnets, num_transformers, resize=None):
        return BlockPlan(
            name=name,
            level=level,
            channels=config.block_out_channels[level],
            num_resnets=num_resnets,
            num_transformers=num_transformers,
            depth=config.transformer_layers_per_block[level],
            num_heads=config.num_attention_heads[level],
            resize=resize,
        )

    plans = []
    for i, kind in enumerate(config.down_block_types):
        count = config.layers_per_block
        attending = count if kind == "CrossAttnDownBlock2D" else 0
        plans.append(plan(f"down_blocks.{i}", i, count, attending, "down" if i < last else None))
    # The last ResNet block of the mid block has no transformer after it.
    plans.append(plan("mid_block", last, 2, 1))
    for i, kind in enumerate(config.up_block_types):
        count = config.layers_per_block + 1
        attending = count if kind == "CrossAttnUpBlock2D" else 0
        plans.append(plan(f"up_blocks.{i}", last - i, count, attending, "up" if i < last else None))
    return tuple(plans)
