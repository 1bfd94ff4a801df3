"""Shapes of all weights of the networks, computed from their configs without tracing the networks.

Tracing takes seconds, in which a checkpoint of gigabytes is loaded. The trees have the structure of
the Linen params, with the shape of a weight as a leaf; they must follow clip, unet and vae.
"""

from typing import Any

from seediff_jax.models.config import ClipTextConfig, UNetConfig, VaeConfig
from seediff_jax.models.plan import BlockPlan, block_plans

Shapes = dict[str, Any]
"""Nested dicts as the params, with tuples of sizes as leaves."""


def text_encoder_shapes(config: ClipTextConfig) -> Shapes:
    """The shapes of a ClipTextModel's params."""
    width = config.hidden_size
    shapes = {
        "token_embedding": {"embedding": (config.vocab_size, width)},
        "position_embedding": {"embedding": (config.max_position_embeddings, width)},
        "final_layer_norm": _norm(width),
    }
    for i in range(config.num_hidden_layers):
        projections = ("q_proj", "k_proj", "v_proj", "out_proj")
        shapes[f"layers_{i}"] = {
            "self_attn": {name: _dense(width, width) for name in projections},
            "layer_norm1": _norm(width),
            "mlp": {
                "fc1": _dense(width, config.intermediate_size),
                "fc2": _dense(config.intermediate_size, width),
            },
            "layer_norm2": _norm(width),
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
        block = _block(plan, inputs, embedding, config)
        if plan.name.startswith("down_blocks"):
            skips += [width] * (plan.num_resnets + (plan.resize is not None))
        shapes[plan.name.replace(".", "_")] = block
    shapes["conv_norm_out"] = _norm(width)
    shapes["conv_out"] = _conv(3, width, config.out_channels)
    return shapes


def vae_shapes(config: VaeConfig) -> Shapes:
    """The shapes of an AutoencoderKL's params."""
    widths, latents = config.block_out_channels, config.latent_channels
    count = config.layers_per_block
    shapes = {
        "encoder": {
            "conv_in": _conv(3, config.in_channels, widths[0]),
            **_vae_stages(widths, count, "down"),
            "mid_block": _vae_mid_block(config),
            "conv_norm_out": _norm(widths[-1]),
            "conv_out": _conv(3, widths[-1], 2 * latents),
        },
        "decoder": {
            "conv_in": _conv(3, latents, widths[-1]),
            "mid_block": _vae_mid_block(config),
            **_vae_stages(widths[::-1], count + 1, "up"),
            "conv_norm_out": _norm(widths[0]),
            "conv_out": _conv(3, widths[0], config.out_channels),
        },
    }
    if config.use_quant_conv:
        shapes["quant_conv"] = _conv(1, 2 * latents, 2 * latents)
    if config.use_post_quant_conv:
        shapes["post_quant_conv"] = _conv(1, latents, latents)
    return shapes


def _block(plan: BlockPlan, inputs: list[int], embedding: int, config: UNetConfig) -> Shapes:
    """A block of the UNet, whose ResNet blocks have these inputs."""
    shapes = {
        f"resnets_{i}": _resnet(width, plan.channels, embedding) for i, width in enumerate(inputs)
    }
    for i in range(plan.num_transformers):
        shapes[f"attentions_{i}"] = _transformer(plan.channels, plan.depth, config)
    if plan.resize is not None:
        shapes[f"{plan.resize}samplers_0"] = {"conv": _conv(3, plan.channels, plan.channels)}
    return shapes


def _transformer(width: int, depth: int, config: UNetConfig) -> Shapes:
    linear = config.use_linear_projection
    shapes = {
        "norm": _norm(width),
        "proj_in": _dense(width, width) if linear else _conv(1, width, width),
        "proj_out": _dense(width, width) if linear else _conv(1, width, width),
    }
    for i in range(depth):
        shapes[f"transformer_blocks_{i}"] = {
            "norm1": _norm(width),
            "attn1": _attention(width, width, bias=False),
            "norm2": _norm(width),
            "attn2": _attention(width, config.cross_attention_dim, bias=False),
            "norm3": _norm(width),
            "ff": {"net_0_proj": _dense(width, 8 * width), "net_2": _dense(4 * width, width)},
        }
    return shapes


def _vae_stages(widths: tuple[int, ...], num_resnets: int, resize: str) -> Shapes:
    shapes, last = {}, len(widths) - 1
    for i, channels in enumerate(widths):
        inputs = [widths[max(i - 1, 0)], *[channels] * (num_resnets - 1)]
        stage = {f"resnets_{j}": _resnet(width, channels) for j, width in enumerate(inputs)}
        if i < last:
            stage[f"{resize}samplers_0"] = {"conv": _conv(3, channels, channels)}
        shapes[f"{resize}_blocks_{i}"] = stage
    return shapes


def _vae_mid_block(config: VaeConfig) -> Shapes:
    width = config.block_out_channels[-1]
    shapes = {"resnets_0": _resnet(width, width), "resnets_1": _resnet(width, width)}
    if config.mid_block_add_attention:
        attention = _attention(width, width, bias=True)
        shapes["attentions_0"] = {"group_norm": _norm(width), "attention": attention}
    return shapes


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


def _dense(inputs: int, outputs: int, *, bias: bool = True) -> Shapes:
    return {"kernel": (inputs, outputs)} | ({"bias": (outputs,)} if bias else {})


def _conv(side: int, inputs: int, outputs: int) -> Shapes:
    return {"kernel": (side, side, inputs, outputs), "bias": (outputs,)}


def _norm(width: int) -> Shapes:
    return {"scale": (width,), "bias": (width,)}
