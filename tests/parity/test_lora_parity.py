"""Names in LoRA files mean the same layers as in diffusers' own conversion."""

import types

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)

from seediff_jax.checkpoints.lora import DOWN, UP, layer_spellings, parse_name
from seediff_jax.models.config import unet_config
from tests.helpers.original_layout import RESNET, original_module, unet_modules
from tests.helpers.random_models import UNET
from tests.helpers.torch_models import blocks, random_text_encoder, random_unet

OPTIONS = {
    "small": {},
    "as XL": {
        **blocks("paa"),
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 2],
        "use_linear_projection": True,
    },
}


def layers_of(model):
    """Lists the names of all linear layers and convolutions."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def kohya_file(modules, prefix):
    """Makes two factors of one number each, and an alpha, for each module."""
    parts = {"lora_down.weight": 1.0, "lora_up.weight": 2.0, "alpha": 3.0}
    return {
        f"{prefix}{module.replace('.', '_')}.{part}": torch.tensor(value)
        for module in modules
        for part, value in parts.items()
    }


def meant(names, component, modules, config):
    """Returns each (module of diffusers, role) that the package reads from names of a component."""
    known = {
        layer: module for module in modules for layer in layer_spellings(component, module, config)
    }
    parsed = [parse_name(name) for name in names]
    return {(known[layer], role) for layer, role, _ in parsed if layer[0] == component}


def meant_by_diffusers(names, component):
    """Returns the same from names that diffusers converted to its current spelling."""
    roles = {"lora_A": DOWN, "lora_B": UP}
    found = set()
    for name in names:
        module, role = name.removesuffix(".weight").rsplit(".", 1)
        found.add((module.removeprefix(f"{component}."), roles[role]))
    return found


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_names_of_unet_layers_are_parsed_as_in_diffusers(options, original):
    json = UNET | options
    modules = layers_of(random_unet(options))
    if original:
        # diffusers takes the second part of a block for attention, even where it has none.
        plain = [i for i, kind in enumerate(json["up_block_types"]) if kind == "UpBlock2D"]
        modules = [
            m for m in modules if m not in {f"up_blocks.{i}.upsamplers.0.conv" for i in plain}
        ]
    config = unet_config(json)
    places = unet_modules(json)
    spelled = [original_module(m, places, RESNET) for m in modules] if original else modules
    tensors = kohya_file(spelled, "lora_unet_")
    ours = meant(tensors, "unet", modules, config)
    assert {module for module, _ in ours} == set(modules)
    theirs = _maybe_map_sgm_blocks_to_diffusers(
        dict(tensors), types.SimpleNamespace(layers_per_block=json["layers_per_block"])
    )
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(theirs)
    theirs = convert_unet_state_dict_to_peft(theirs)
    assert {pair for pair in ours if pair[1] in (DOWN, UP)} == meant_by_diffusers(theirs, "unet")


def test_names_of_text_encoder_layers_are_parsed_as_in_diffusers():
    modules = [
        name if name.startswith("text_model.") else f"text_model.{name}"
        for name in layers_of(random_text_encoder({}))
    ]
    tensors = kohya_file(modules, "lora_te_")
    ours = meant(tensors, "text_encoder", modules, unet_config(UNET))
    theirs, _ = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    assert {m for m, _ in ours} == set(modules)
    theirs = meant_by_diffusers(convert_state_dict_to_peft(theirs), "text_encoder")
    assert {pair for pair in ours if pair[1] in (DOWN, UP)} == theirs


def test_the_names_of_both_text_encoders_are_distinguished():
    names = ["lora_te1_x.alpha", "lora_te2_x.alpha", "text_encoder_2.x.lora_A.weight"]
    components = [parse_name(name)[0][0] for name in names]
    assert components == ["text_encoder", "text_encoder_2", "text_encoder_2"]
