"""Translates names of diffusers into those of the original layout of Stable Diffusion.

The files of CompVis and Stability AI number the layers of the UNet consecutively, count the levels
of the VAE's decoder from fine to coarse, write its attention as 1 x 1 convolutions, and fuse the
projections of OpenCLIP. Names here have no prefix for their component; names of modules (a tensor's
name without ".weight") are translated as well.
"""

import re

from seediff_jax.checkpoints.parameters import rename
from seediff_jax.models.config import UNetConfig, VaeConfig

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
    (r"^text_projection\.weight$", "text_projection"),
    (r"\blayer_norm([12])\b", r"ln_\1"),
    (r"\bself_attn\.[qkv]_proj\.", "attn.in_proj_"),
    (r"\bself_attn\b", "attn"),
    (r"\bmlp\.fc1\b", "mlp.c_fc"),
    (r"\bmlp\.fc2\b", "mlp.c_proj"),
)


def original_unet_name(name: str, config: UNetConfig) -> str:
    """Translates the diffusers name of a tensor or module of the UNet.

    The config says how many layers a block has, and which blocks have attention.
    """
    if ".resnets." in name:
        name = rename(_UNET_RESNET, name)
    hit = _UNET_LAYER.fullmatch(name)
    if hit is None:
        return rename(_UNET, name)
    side, block, kind, layer, rest = hit.groups()
    number = int(block) * (config.layers_per_block + 1) + int(layer)
    place = int(kind == "attentions")
    if kind == "downsamplers":  # a layer of its own, the last of the block
        number, rest = number + config.layers_per_block, re.sub("^conv", "op", rest)
    elif kind == "upsamplers":  # it ends the last layer, after the attention where there is one
        number += config.layers_per_block
        place = 2 if config.up_block_types[int(block)] == "CrossAttnUpBlock2D" else 1
    if side == "down":
        return f"input_blocks.{number + 1}.{place}.{rest}"  # number 0 is conv_in
    return f"output_blocks.{number}.{place}.{rest}"


def original_vae_name(name: str, config: VaeConfig) -> str:
    """Translates the name of a tensor of the VAE; `config` says how many levels it has."""
    finest = len(config.block_out_channels) - 1
    name = re.sub(r"\bdown_blocks\b", "down", name)
    name = re.sub(r"\bup_blocks\.(\d+)", lambda hit: f"up.{finest - int(hit[1])}", name)
    return rename(_VAE, name)


def original_open_clip_name(name: str) -> str:
    """Translates the name of a tensor of OpenCLIP's text encoder (Stable Diffusion 2.x, XL)."""
    return rename(_OPEN_CLIP, name)
