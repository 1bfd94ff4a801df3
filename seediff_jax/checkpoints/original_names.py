"""Translates names of diffusers into those of the original layout of Stable Diffusion.

The files of CompVis and Stability AI number the layers of the UNet consecutively, count the levels
of the VAE's decoder from fine to coarse, write its attention as 1 x 1 convolutions, and fuse the
projections of OpenCLIP. Names here have no prefix for their component; names of modules (a tensor's
name without ".weight") are translated as well.
"""

import dataclasses
import re

from seediff_jax.checkpoints.parameters import rename
from seediff_jax.models.config import UNetConfig, VaeConfig


@dataclasses.dataclass(frozen=True)
class Origin:
    """The tensor of the original layout that a tensor of diffusers is made of.

    Attributes:
        name: its name.
        qkv_index: which third of the rows of a fused projection to take: 0 is the query, 1 the key,
            2 the value. None takes all rows.
        transposed: whether its two axes are exchanged.
        squeeze_1x1: whether it may be stored as a 1 x 1 convolution, whose last two axes are
            dropped.
    """

    name: str
    qkv_index: int | None = None
    transposed: bool = False
    squeeze_1x1: bool = False


_UNET = (
    (r"^conv_in\b", "input_blocks.0.0"),
    (r"^time_embedding\.linear_1\b", "time_embed.0"),
    (r"^time_embedding\.linear_2\b", "time_embed.2"),
    (r"^add_embedding\.linear_1\b", "label_emb.0.0"),
    (r"^add_embedding\.linear_2\b", "label_emb.0.2"),
    (r"^mid_block\.resnets\.0\b", "middle_block.0"),
    (r"^mid_block\.attentions\.0\b", "middle_block.1"),
    (r"^mid_block\.resnets\.1\b", "middle_block.2"),
    (r"^conv_norm_out\b", "out.0"),
    (r"^conv_out\b", "out.2"),
)
_UNET_RESNET = (
    (r"\.norm1\b", ".in_layers.0"),
    (r"\.conv1\b", ".in_layers.2"),
    (r"\.time_emb_proj\b", ".emb_layers.1"),
    (r"\.norm2\b", ".out_layers.0"),
    (r"\.conv2\b", ".out_layers.3"),
    (r"\.conv_shortcut\b", ".skip_connection"),
)
_UNET_LAYER = re.compile(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)")
_VAE = (
    (r"\b(down|up)\.(\d+)\.resnets\.(\d+)\b", r"\1.\2.block.\3"),
    (r"\b(down|up)samplers\.0\b", r"\1sample"),
    (r"\bmid_block\.resnets\.0\b", "mid.block_1"),
    (r"\bmid_block\.resnets\.1\b", "mid.block_2"),
    (r"\bmid_block\.attentions\.0\b", "mid.attn_1"),
    (r"\bgroup_norm\b", "norm"),
    (r"\bto_([qkv])\b", r"\1"),
    (r"\bto_out\.0\b", "proj_out"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\bconv_norm_out\b", "norm_out"),
)
_OPEN_CLIP = (
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.embeddings\.token_embedding\b", "token_embedding"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\b", "ln_final"),
    (r"\blayer_norm([12])\b", r"ln_\1"),
    (r"\bself_attn\b", "attn"),
    (r"\bmlp\.fc1\b", "mlp.c_fc"),
    (r"\bmlp\.fc2\b", "mlp.c_proj"),
)
_PROJECTION = re.compile(r"(.+\.self_attn)\.([qkv])_proj\.(weight|bias)")


def original_unet_name(name: str, config: UNetConfig) -> str:
    """Translates the diffusers name of a tensor or module of the UNet.

    The config says how many layers a block has, and which blocks have attention.
    """
    if ".resnets." in name:
        name = rename(_UNET_RESNET, name)
    hit = _UNET_LAYER.fullmatch(name)
    if hit is None:
        return rename(_UNET, name)
    side, kind, rest = hit[1], hit[3], hit[5]
    block, layer = int(hit[2]), int(hit[4])
    length = config.layers_per_block + 1
    first = block * length
    place = {"resnets": 0, "attentions": 1}.get(kind)
    if side == "down":
        # Number 0 is conv_in; the last layer of a block is its downsampler.
        if place is None:
            return f"input_blocks.{first + length}.0.{re.sub('^conv', 'op', rest)}"
        return f"input_blocks.{1 + first + layer}.{place}.{rest}"
    if place is None:
        # It shares its number with the last layer, after the attention where there is one.
        place = 2 if config.up_block_types[block] == "CrossAttnUpBlock2D" else 1
        return f"output_blocks.{first + length - 1}.{place}.{rest}"
    return f"output_blocks.{first + layer}.{place}.{rest}"


def original_vae_tensor(name: str, config: VaeConfig) -> Origin:
    """The origin of a tensor of the VAE; `config` says how many levels it has."""
    finest = len(config.block_out_channels) - 1
    is_projection = re.search(r"\.attentions\.0\.to_.+\.weight$", name) is not None
    name = re.sub(r"\bdown_blocks\b", "down", name)
    name = re.sub(r"\bup_blocks\.(\d+)", lambda hit: f"up.{finest - int(hit[1])}", name)
    return Origin(rename(_VAE, name), squeeze_1x1=is_projection)


def original_open_clip_tensor(name: str) -> Origin:
    """The origin of a tensor of OpenCLIP's text encoder (Stable Diffusion 2.x, SDXL)."""
    if name == "text_projection.weight":
        return Origin("text_projection", transposed=True)
    if hit := _PROJECTION.fullmatch(name):
        fused = f"{rename(_OPEN_CLIP, hit[1])}.in_proj_{hit[3]}"
        return Origin(fused, qkv_index="qkv".index(hit[2]))
    return Origin(rename(_OPEN_CLIP, name))
