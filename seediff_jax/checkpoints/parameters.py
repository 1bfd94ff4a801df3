"""All parameters of a model: their paths in Linen, their names in a checkpoint, their shapes.

The modules are named after diffusers' checkpoints, so the tables hold only the names that differ:
numbered submodules, the text encoder's prefix, and spellings of older checkpoints. Only the layouts
of kernels differ: torch has (out, in) and (out, in, height, width), Linen (in, out) and (height,
width, in, out).

The shapes are computed from the configs without tracing the networks, because tracing takes as long
as loading gigabytes. They must follow models.clip, models.unet and models.vae.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from seediff_jax.models.config import ClipTextConfig, UNetConfig, VaeConfig, block_plans
from seediff_jax.models.model import ModelConfig

ParamPath = tuple[str, ...]
"""Place of a weight in the params, or in those of a component."""
Shapes = dict[str, Any]
"""Nested dicts as the params, with tuples of sizes as leaves."""

# Linen path, joined by ".", without the weight's own name -> diffusers; every row is applied.
_NUMBERED = (r"(s|to_out|net)_(\d+)\b", r"\1.\2")
_RENAMES = {
    "text_encoder": (
        (r"^layers_(\d+)\.", r"text_model.encoder.layers.\1."),
        (r"^(\w+_embedding)$", r"text_model.embeddings.\1"),
        (r"^final_layer_norm$", "text_model.final_layer_norm"),
    ),
    "unet": ((r"\bnet_0_proj\b", "net.0.proj"), _NUMBERED),
    "vae": ((r"\battentions_0\.attention\b", "attentions_0"), _NUMBERED),
}
# Other spellings of a diffusers name -> the one above.
_SYNONYMS = {
    "text_encoder": ((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
    "vae": (
        (r"(attentions\.0)\.([qkv])(?:uery|ey|alue)\.", r"\1.to_\2."),
        (r"(attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
    ),
}
# Parts of CLIP other than the text encoder, and buffers that are not weights.
_UNUSED_OF_CLIP = re.compile(
    r"(.*\.)?position_ids|logit_(scale|bias)|attn_mask|text_projection(\.weight|\.bias)?"
    r"|(vision_model|visual|visual_projection)\..*"
)


class Parameter(NamedTuple):
    """A weight of a model: its place, name in diffusers, and shape in Linen and in a checkpoint."""

    path: ParamPath
    name: str
    shape: tuple[int, ...]
    stored_shape: tuple[int, ...]


@functools.lru_cache(maxsize=8)
def parameters(config: ModelConfig) -> Mapping[ParamPath, Parameter]:
    """All weights of a model by path, a name of `config.components` first; in order of paths."""
    shapes = {
        "text_encoder": text_encoder_shapes(config.text_encoder),
        "unet": unet_shapes(config.unet),
        "vae": vae_shapes(config.vae),
    }
    if config.is_xl:
        shapes["text_encoder_2"] = text_encoder_shapes(config.text_encoder_2)
    found = {}
    for path, shape in sorted(flatten_dict(shapes).items()):
        component, *modules, kind = path
        module = rename(_RENAMES[component.removesuffix("_2")], ".".join(modules))
        name = f"{module}.bias" if kind == "bias" else f"{module}.weight"
        stored_shape = tuple(shape[axis] for axis in checkpoint_axes(kind, len(shape)))
        found[path] = Parameter(path, name, shape, stored_shape)
    return MappingProxyType(found)


def component_parameters(config: ModelConfig, component: str) -> dict[str, Parameter]:
    """The weights of a component by their names in diffusers."""
    return {item.name: item for path, item in parameters(config).items() if path[0] == component}


def canonical_name(component: str, name: str) -> str:
    """The present diffusers spelling of a tensor's name."""
    return rename(_SYNONYMS.get(component.removesuffix("_2"), ()), name)


def is_unused(component: str, name: str) -> bool:
    """Whether a tensor that is not a parameter is one that Stable Diffusion never reads."""
    return component.startswith("text_encoder") and bool(_UNUSED_OF_CLIP.fullmatch(name))


def checkpoint_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Axes by which the array of a weight in Linen's layout is transposed for a checkpoint."""
    if name != "kernel":
        return tuple(range(ndim))
    return {2: (1, 0), 4: (3, 2, 0, 1)}[ndim]


def rename(rows: Iterable[tuple[str, str]], name: str) -> str:
    """Applies every row, a pattern and its replacement, to a name."""
    for pattern, replacement in rows:
        name = re.sub(pattern, replacement, name)
    return name


def text_encoder_shapes(config: ClipTextConfig) -> Shapes:
    """The shapes of a ClipTextModel's params."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = {
        "self_attn": {f"{name}_proj": _dense(width, width) for name in ("q", "k", "v", "out")},
        "layer_norm1": _norm(width),
        "mlp": {"fc1": _dense(width, inner), "fc2": _dense(inner, width)},
        "layer_norm2": _norm(width),
    }
    shapes = {
        "token_embedding": {"embedding": (config.vocab_size, width)},
        "position_embedding": {"embedding": (config.max_position_embeddings, width)},
        **_numbered("layers", [layer] * config.num_hidden_layers),
        "final_layer_norm": _norm(width),
    }
    if config.projection_dim is not None:
        shapes["text_projection"] = _dense(width, config.projection_dim, bias=False)
    return shapes


def unet_shapes(config: UNetConfig) -> Shapes:
    """The shapes of a UNet's params."""
    first = config.block_out_channels[0]
    embedding = 4 * first
    shapes: Shapes = {"time_embedding": _two_layers(first, embedding)}
    if config.time_cond_proj_dim is not None:
        guidance = _dense(config.time_cond_proj_dim, first, bias=False)
        shapes["time_embedding"]["cond_proj"] = guidance
    if config.addition_embed_type is not None:
        added = config.projection_class_embeddings_input_dim
        shapes["add_embedding"] = _two_layers(added, embedding)
    shapes["conv_in"] = _conv(3, config.in_channels, first)
    width, skips = first, [first]
    for plan in block_plans(config):
        inputs = []
        for _ in range(plan.num_resnets):
            inputs.append(width + (skips.pop() if plan.name.startswith("up_blocks") else 0))
            width = plan.channels
        if plan.name.startswith("down_blocks"):
            skips += [width] * (plan.num_resnets + (plan.resize is not None))
        transformers = [_transformer(width, plan.depth, config)] * plan.num_transformers
        block = _block(inputs, width, plan.resize, embedding)
        shapes[plan.name.replace(".", "_")] = block | _numbered("attentions", transformers)
    shapes["conv_norm_out"] = _norm(width)
    shapes["conv_out"] = _conv(3, width, config.out_channels)
    return shapes


def vae_shapes(config: VaeConfig) -> Shapes:
    """The shapes of an AutoencoderKL's params."""
    latents, count = config.latent_channels, config.layers_per_block
    shapes = {
        "encoder": _vae_half(config, "down", count, config.in_channels, 2 * latents),
        "decoder": _vae_half(config, "up", count + 1, latents, config.out_channels),
    }
    if config.use_quant_conv:
        shapes["quant_conv"] = _conv(1, 2 * latents, 2 * latents)
    if config.use_post_quant_conv:
        shapes["post_quant_conv"] = _conv(1, latents, latents)
    return shapes


def _vae_half(
    config: VaeConfig, resize: str, num_resnets: int, inputs: int, outputs: int
) -> Shapes:
    """The encoder, whose stages go "down", or the decoder, whose stages go "up"."""
    widths, deepest = config.block_out_channels, config.block_out_channels[-1]
    widths = widths if resize == "down" else widths[::-1]
    middle = _block((deepest, deepest), deepest, None)
    if config.mid_block_add_attention:
        attention = _attention(deepest, deepest, bias=True)
        middle["attentions_0"] = {"group_norm": _norm(deepest), "attention": attention}
    stages = []
    for i, width in enumerate(widths):
        before = [widths[max(i - 1, 0)], *[width] * (num_resnets - 1)]
        stages.append(_block(before, width, resize if i < len(widths) - 1 else None))
    return {
        "conv_in": _conv(3, inputs, widths[0]),
        **_numbered(f"{resize}_blocks", stages),
        "mid_block": middle,
        "conv_norm_out": _norm(widths[-1]),
        "conv_out": _conv(3, widths[-1], outputs),
    }


def _block(
    inputs: Sequence[int], channels: int, resize: str | None, embedding: int | None = None
) -> Shapes:
    """A block of ResNet blocks with these inputs, which may end with a change of the side."""
    shapes = _numbered("resnets", [_resnet(width, channels, embedding) for width in inputs])
    if resize is not None:
        shapes[f"{resize}samplers_0"] = {"conv": _conv(3, channels, channels)}
    return shapes


def _transformer(width: int, depth: int, config: UNetConfig) -> Shapes:
    projection = _dense(width, width) if config.use_linear_projection else _conv(1, width, width)
    block = {
        "norm1": _norm(width),
        "attn1": _attention(width, width, bias=False),
        "norm2": _norm(width),
        "attn2": _attention(width, config.cross_attention_dim, bias=False),
        "norm3": _norm(width),
        "ff": {"net_0_proj": _dense(width, 8 * width), "net_2": _dense(4 * width, width)},
    }
    shapes = {"norm": _norm(width), "proj_in": projection, "proj_out": projection}
    return shapes | _numbered("transformer_blocks", [block] * depth)


def _resnet(inputs: int, channels: int, embedding: int | None = None) -> Shapes:
    shapes = {
        "norm1": _norm(inputs),
        "conv1": _conv(3, inputs, channels),
        "norm2": _norm(channels),
        "conv2": _conv(3, channels, channels),
    }
    if embedding is not None:
        shapes["time_emb_proj"] = _dense(embedding, channels)
    if inputs != channels:
        shapes["conv_shortcut"] = _conv(1, inputs, channels)
    return shapes


def _attention(width: int, context: int, *, bias: bool) -> Shapes:
    return {
        "to_q": _dense(width, width, bias=bias),
        "to_k": _dense(context, width, bias=bias),
        "to_v": _dense(context, width, bias=bias),
        "to_out_0": _dense(width, width),
    }


def _two_layers(inputs: int, outputs: int) -> Shapes:
    return {"linear_1": _dense(inputs, outputs), "linear_2": _dense(outputs, outputs)}


def _numbered(name: str, parts: Sequence[Shapes]) -> Shapes:
    return {f"{name}_{i}": part for i, part in enumerate(parts)}


def _dense(inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def _conv(side: int, inputs: int, outputs: int) -> Shapes:
    return {"kernel": (side, side, inputs, outputs), "bias": (outputs,)}


def _norm(width: int) -> Shapes:
    return {"scale": (width,), "bias": (width,)}
