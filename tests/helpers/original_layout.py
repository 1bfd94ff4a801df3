"""Converts diffusers' state dicts to the original layout, layer by layer in order of execution.

It follows the structure of the original networks, whose layers are in numbered lists. It shares no
table with the package.
"""

import numpy as np

UNET, VAE = "model.diffusion_model.", "first_stage_model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MID_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_modules(json):
    """Maps each module of diffusers' UNet that has parameters to the original module.

    A ResNet block or an attention block stands for everything in it.
    """
    places = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    number, last = 0, len(json["block_out_channels"]) - 1
    for block, kind in enumerate(json["down_block_types"]):
        for layer in range(json["layers_per_block"]):
            number += 1
            places[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if "CrossAttn" in kind:
                places[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
        if block < last:
            number += 1
            places[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    number = 0
    for block, kind in enumerate(json["up_block_types"]):
        for layer in range(json["layers_per_block"] + 1):
            parts = [f"up_blocks.{block}.resnets.{layer}"]
            if "CrossAttn" in kind:
                parts.append(f"up_blocks.{block}.attentions.{layer}")
            if layer == json["layers_per_block"] and block < last:
                parts.append(f"up_blocks.{block}.upsamplers.0")
            for place, part in enumerate(parts):
                places[part] = f"output_blocks.{number}.{place}"
            number += 1
    return places


def vae_modules(json):
    """Does what `unet_modules` does, for the VAE."""
    last, depth = len(json["block_out_channels"]) - 1, json["layers_per_block"]
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side in ("encoder", "decoder"):
        for inside, original in (
            ("conv_in", "conv_in"),
            ("conv_norm_out", "norm_out"),
            ("conv_out", "conv_out"),
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.attentions.0", "mid.attn_1"),
            ("mid_block.resnets.1", "mid.block_2"),
        ):
            places[f"{side}.{inside}"] = f"{side}.{original}"
    for level in range(last + 1):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for layer in range(depth):
            places[f"{down}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
        for layer in range(depth + 1):
            places[f"{up}.resnets.{layer}"] = f"decoder.up.{level}.block.{layer}"
        places[f"{down}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        places[f"{up}.upsamplers.0.conv"] = f"decoder.up.{level}.upsample.conv"
    return places


def original_module(module, places, resnet=None):
    """Returns the original name of a module or a tensor of the UNet or the VAE."""
    place = max((p for p in places if f"{module}.".startswith(f"{p}.")), key=len)
    inside = module[len(place) :]
    tables = {".resnets.": resnet or {}, "mid_block.attentions": {} if resnet else MID_ATTENTION}
    for mark, table in tables.items():
        for new, old in table.items() if mark in place else ():
            if f"{inside}.".startswith(f".{new}."):
                inside = f".{old}" + inside[len(new) + 1 :]
                break
    return places[place] + inside


def original_unet(tensors, json):
    places = unet_modules(json)
    return {UNET + original_module(n, places, RESNET): t for n, t in tensors.items()}


def original_vae(tensors, json):
    """Converts the VAE, whose attention becomes 1 x 1 convolutions."""
    places, result = vae_modules(json), {}
    for name, tensor in tensors.items():
        if "attentions" in name and name.endswith("weight") and "norm" not in name:
            tensor = tensor[:, :, None, None]
        name = original_module(name, places).replace("conv_shortcut", "nin_shortcut")
        result[VAE + name] = tensor
    return result


def original_clip(tensors, prefix="cond_stage_model.transformer."):
    """Converts the CLIP of Hugging Face, which the original file contains unchanged."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def original_open_clip(tensors, prefix="cond_stage_model.model.", unused_layer=False):
    """Converts to OpenCLIP: fused projections, transposed last matrix, perhaps an unused layer."""
    layers = "text_model.encoder.layers."
    result = {
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["text_model.final_layer_norm.weight"],
        "ln_final.bias": tensors["text_model.final_layer_norm.bias"],
    }
    if "text_projection.weight" in tensors:
        result["text_projection"] = tensors["text_projection.weight"].T
    count = 1 + max(int(n[len(layers) :].split(".")[0]) for n in tensors if n.startswith(layers))
    for i in range(count):
        for leaf in ("weight", "bias"):
            for new, old in OPEN_CLIP_LAYER.items():
                result[f"transformer.resblocks.{i}.{old}.{leaf}"] = tensors[
                    f"{layers}{i}.{new}.{leaf}"
                ]
            parts = [tensors[f"{layers}{i}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            result[f"transformer.resblocks.{i}.attn.in_proj_{leaf}"] = np.concatenate(parts)
    if unused_layer:
        first = "transformer.resblocks.0."
        for name in [name for name in result if name.startswith(first)]:
            result[name.replace(first, f"transformer.resblocks.{count}.")] = result[name] + 1
        result["text_projection"] = np.eye(len(result["ln_final.bias"]), dtype=np.float32)
        result["logit_scale"] = np.zeros((), np.float32)
    return {prefix + name: np.ascontiguousarray(tensor) for name, tensor in result.items()}
