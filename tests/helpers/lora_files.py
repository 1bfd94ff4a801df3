"""LoRA files in all spellings for layers of the small model, and the changes they must make."""

import numpy as np
from safetensors.numpy import load_file

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
# Layers of the small model in diffusers, and in the original layout.
UNET_LAYERS = {
    f"{ATTENTION}.attn1.to_q": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    f"{ATTENTION}.attn2.to_k": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    f"{ATTENTION}.attn2.to_out.0": "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.0.proj": (
        "output_blocks.3.1.transformer_blocks.0.ff.net.0.proj"
    ),
    "mid_block.attentions.0.proj_in": "middle_block.1.proj_in",
    "down_blocks.1.resnets.0.conv1": "input_blocks.3.0.in_layers.2",
    "up_blocks.0.resnets.1.time_emb_proj": "output_blocks.1.0.emb_layers.1",
    "up_blocks.0.resnets.0.conv_shortcut": "output_blocks.0.0.skip_connection",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
}
TEXT_LAYERS = (
    "text_model.encoder.layers.0.self_attn.q_proj",
    "text_model.encoder.layers.1.self_attn.out_proj",
    "text_model.encoder.layers.1.mlp.fc2",
)
OLD_PROJECTIONS = {"q_proj": "to_q", "out_proj": "to_out"}


def kohya(component, layer):
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[component]
    return prefix + layer.replace(".", "_") + ".lora_{}.weight", ("down", "up")


def kohya_original(component, layer):
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_"}[component]
    return prefix + UNET_LAYERS.get(layer, layer).replace(".", "_") + ".lora_{}.weight", (
        "down",
        "up",
    )


def peft(component, layer):
    return f"{component}.{layer}.lora_{{}}.weight", ("A", "B")


def before_peft(component, layer):
    inside = {"unet": "lora", "text_encoder": "lora_linear_layer"}[component]
    return f"{component}.{layer}.{inside}.{{}}.weight", ("down", "up")


def first_of_diffusers(component, layer):
    """Names attention layers, as the first LoRAs of diffusers do."""
    *above, last = layer.removesuffix(".0").split(".")
    if component == "unet":
        above.append("processor")
    return (
        ".".join([component, *above, OLD_PROJECTIONS.get(last, last)]) + "_lora.{}.weight",
        ("down", "up"),
    )


SPELLINGS = [kohya, kohya_original, peft, before_peft, first_of_diffusers]


def tensors_of(folder):
    return {
        f"{component}.{name}": tensor
        for component, file in FILES.items()
        if (folder / file).exists()
        for name, tensor in load_file(folder / file).items()
    }


def factors(weights, name, rank, seed):
    """Draws the down and up factors of a layer; for a convolution, up is 1 x 1."""
    random = np.random.default_rng(seed)
    shape = weights[f"{name}.weight"].shape
    down = random.standard_normal((rank, *shape[1:]), np.float32)
    up = random.standard_normal((shape[0], rank, *[1] * (len(shape) - 2)), np.float32)
    return down, up


def lora_file(weights, spell, layers, rank=3):
    """Makes the tensors of a file, and the change of each layer's weight at strength 1."""
    tensors, changes = {}, {}
    for seed, (component, layer) in enumerate(layers):
        name = f"{component}.{layer}"
        template, sides = spell(component, layer)
        down, up = factors(weights, name, rank, seed)
        tensors |= dict(zip(map(template.format, sides), (down, up), strict=True))
        matrix = np.tensordot(up.reshape(-1, rank), down.astype(np.float64), 1)
        changes[f"{name}.weight"] = matrix.reshape(weights[f"{name}.weight"].shape)
    return tensors, changes
