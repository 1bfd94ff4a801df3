"""The names of LoRA files: which factor of which layer a tensor is.

    lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight       kohya
    lora_unet_input_blocks_1_1_proj_in.lora_down.weight                 kohya, original layout
    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight               diffusers with peft
    unet.down_blocks.0.attentions.0.proj_in.lora.down.weight            diffusers before it
    ...attn1.processor.to_q_lora.down.weight                            the first of diffusers

Whatever the spelling, a layer is found by its path with every "." written as "_", so that a name is
never taken apart by guessing.
"""

import dataclasses
import re

from seediff_jax.models.config import UNetConfig
from seediff_jax.models.original_names import original_unet_name

DOWN, UP, ALPHA = "down", "up", "alpha"

# The end of a tensor's name -> what it is; "{}" stands for the side.
_FACTOR_ENDS = (
    r"\.lora_{kohya}\.weight",
    r"\.lora_{peft}(\.default)?\.weight",
    r"(\.lora|\.lora_linear_layer|_lora)\.{kohya}\.weight",
)
_SIDES = {DOWN: {"kohya": "down", "peft": "A"}, UP: {"kohya": "up", "peft": "B"}}
_ENDS = [
    (side, re.compile(f"(.+?){end.format(**words)}"))
    for side, words in _SIDES.items()
    for end in _FACTOR_ENDS
] + [(ALPHA, re.compile(r"(.+?)(\.lora|_lora)?\.alpha"))]
_PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("unet.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("base_model.model.", "unet"),
)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a component, however its name was spelled: its path, joined by "_"."""

    component: str
    path: str


def parse_name(name: str) -> tuple[Layer, str] | None:
    """Reads the name of a tensor of a LoRA.

    Returns:
        The layer, and DOWN, UP or ALPHA; None for what is no LoRA, or one of another kind.
    """
    for role, pattern in _ENDS:
        if hit := pattern.fullmatch(name):
            return _layer(hit[1]), role
    return None


def layer_spellings(component: str, module: str, config: UNetConfig) -> set[Layer]:
    """All ways in which `parse_name` may write a layer.

    Args:
        component: "unet", "text_encoder" or "text_encoder_2".
        module: its name in diffusers, as in `down_blocks.0.attentions.0.proj_in`.
        config: of the UNet.
    """
    if component == "unet":
        names = {module, original_unet_name(module, config)}
        if module.endswith(".to_out.0"):
            names.add(module.removesuffix(".0"))
    else:
        old = re.sub(r"\.([qkv]|out)_proj$", r".to_\1", module)
        names = {module, old} | {name.removeprefix("text_model.") for name in (module, old)}
    return {Layer(component, name.replace(".", "_")) for name in names}


def _layer(name: str) -> Layer:
    component = "unet"
    for prefix, part in _PREFIXES:
        if name.startswith(prefix):
            name, component = name.removeprefix(prefix), part
            break
    return Layer(component, name.replace(".processor.", ".").replace(".", "_"))
