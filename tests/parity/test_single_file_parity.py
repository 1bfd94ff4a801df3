"""Names and values of single files equal diffusers' own conversion of the same tensors."""

import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    infer_diffusers_model_type,
)
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from seediff_jax.checkpoints.families import FAMILIES
from seediff_jax.checkpoints.original_names import original_unet_name
from seediff_jax.checkpoints.safetensors_files import open_weights
from seediff_jax.checkpoints.single_file import component_tensors
from seediff_jax.models.config import unet_config, vae_config
from tests.helpers.original_layout import (
    UNET,
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
)
from tests.helpers.random_models import TEXT
from tests.helpers.random_models import UNET as SMALL_UNET
from tests.helpers.random_models import VAE as SMALL_VAE
from tests.helpers.torch_models import blocks, random_unet, random_vae, randomise

XL_ADDITION = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 60,
}
UNETS = {
    "two levels": {},
    "two layers per block": {"layers_per_block": 2, **blocks("ap")},
    "attention at every level": {**blocks("aa"), "use_linear_projection": True},
    "three levels as XL": {
        **blocks("paa"),
        "block_out_channels": [16, 32, 32],
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, 2, 3],
        "use_linear_projection": True,
        **XL_ADDITION,
    },
}


def numpy_state(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def full_names(tensors):
    """Adds `text_model.`, which transformers leaves out of the names of some classes."""
    whole = any(name.startswith("text_model.") for name in tensors)
    return tensors if whole else {f"text_model.{n}": t for n, t in tensors.items()}


def torch_state(tensors):
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


def read(folder, tensors, component, names, **config):
    """Writes a file with these tensors; returns what the package reads from it."""
    save_file(tensors, folder / "model.safetensors")
    stored, _ = open_weights(folder / "model.safetensors")
    part = component_tensors(stored, component, names, types.SimpleNamespace(**config))
    shapes = {name: tensor.shape for name, tensor in part.items()}
    blocks = {name: [b.copy() for b in tensor.read_blocks()] for name, tensor in part.items()}
    return {n: np.concatenate(blocks[n]).reshape(shape) for n, shape in shapes.items()}, shapes


def assert_equal(got, expected, original):
    """Checks that `got` has the names and bits of diffusers' conversion, and of the source."""
    tensors, shapes = got
    for other in (expected, original):
        assert tensors.keys() == other.keys()
        for name, tensor in other.items():
            assert shapes[name] == tuple(tensor.shape), name
            np.testing.assert_array_equal(tensors[name], np.asarray(tensor), err_msg=name)


@pytest.mark.parametrize("options", UNETS.values(), ids=UNETS)
def test_the_unet_is_converted_as_diffusers_does(options, tmp_path):
    json = SMALL_UNET | options
    state = numpy_state(random_unet(options))
    tensors = original_unet(state, json)
    expected = convert_ldm_unet_checkpoint(torch_state(tensors), json)
    plain = {name: value for name, value in json.items() if name not in XL_ADDITION}
    got = read(tmp_path, tensors, "unet", state, unet=unet_config(plain))
    assert_equal(got, expected, state)


@pytest.mark.parametrize("widths", [[8, 16], [8, 8, 16, 16]])
def test_the_vae_is_converted_as_diffusers_does(widths, tmp_path):
    options = {"block_out_channels": widths, "layers_per_block": 2}
    vae = random_vae(options)
    state = numpy_state(vae)
    tensors = original_vae(state, SMALL_VAE | options)
    expected = convert_ldm_vae_checkpoint(torch_state(tensors), vae.config)
    config = vae_config(SMALL_VAE | options)
    assert_equal(read(tmp_path, tensors, "vae", state, vae=config), expected, state)


def clip(kind, **options):
    return randomise(kind(CLIPTextConfig(**TEXT | options)), 0)


def test_clip_is_converted_as_diffusers_does(tmp_path):
    state = full_names(numpy_state(clip(CLIPTextModel)))
    tensors = original_clip(state)
    expected = convert_ldm_clip_checkpoint(torch_state(tensors))
    config = types.SimpleNamespace(num_hidden_layers=2)
    got = read(tmp_path, tensors, "text_encoder", state, text_encoder=config)
    assert_equal(got, expected, state)


def test_open_clip_is_converted_as_diffusers_does(tmp_path):
    """23 layers of 24: with this number diffusers knows that the last layer is unused."""
    text_model = clip(CLIPTextModel, num_hidden_layers=23)
    state = full_names(numpy_state(text_model))
    tensors = original_open_clip(state, unused_layer=True)
    expected = convert_open_clip_checkpoint(text_model, torch_state(tensors))
    config = types.SimpleNamespace(num_hidden_layers=23)
    got = read(tmp_path, tensors, "text_encoder", state, text_encoder=config)
    assert_equal(got, expected, state)


def test_both_text_encoders_of_xl_are_converted_as_diffusers_does(tmp_path):
    first = full_names(numpy_state(clip(CLIPTextModel)))
    second_model = clip(CLIPTextModelWithProjection, projection_dim=TEXT["hidden_size"])
    second = numpy_state(second_model)
    assert "text_projection.weight" in second
    prefixes = FAMILIES["sdxl"].text_encoders
    tensors = {
        **original_clip(first, prefixes["text_encoder"]),
        **original_open_clip(second, prefixes["text_encoder_2"]),
    }
    state = torch_state(tensors)
    expected = convert_ldm_clip_checkpoint(state)
    expected_2 = convert_open_clip_checkpoint(second_model, state, prefixes["text_encoder_2"])
    config = types.SimpleNamespace(num_hidden_layers=2)
    options = {"text_encoder": config, "text_encoder_2": config}
    assert_equal(read(tmp_path, tensors, "text_encoder", first, **options), expected, first)
    assert_equal(read(tmp_path, tensors, "text_encoder_2", second, **options), expected_2, second)


def meta_model(cls, json):
    """Makes a full-size model of diffusers that takes no memory."""
    options = {name: value for name, value in json.items() if not name.startswith("_")}
    with torch.device("meta"):
        return cls.from_config(options) if hasattr(cls, "from_config") else cls(options)


# Millions of parameters, as the original programs print.
SIZES = {
    "sd1": {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06},
    "sd2": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
    "sdxl": {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66},
}


@pytest.mark.parametrize("family", SIZES)
def test_a_family_has_the_published_number_of_parameters(family):
    configs = FAMILIES[family].folder_configs("epsilon")
    for component, size in SIZES[family].items():
        json = configs[f"{component}/config.json"]
        if component.startswith("text"):
            kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
            with torch.device("meta"):
                model = kinds[component](CLIPTextConfig(**json))
        else:
            model = meta_model(
                {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[component], json
            )
        count = sum(parameter.numel() for parameter in model.parameters())
        assert round(count / 1e6, 2) == size, component


@pytest.mark.parametrize(
    ("family", "known_as"), [("sd1", "v1"), ("sd2", "v2"), ("sdxl", "xl_base")]
)
def test_diffusers_recognises_and_converts_the_names_of_the_full_size(family, known_as):
    """diffusers converts our names of all tensors of the full UNet back."""
    json = FAMILIES[family].folder_configs("epsilon")["unet/config.json"]
    state = meta_model(UNet2DConditionModel, json).state_dict()
    plain = {name: value for name, value in json.items() if name not in XL_ADDITION}
    config = unet_config(plain)
    tensors = {UNET + original_unet_name(name, config): t for name, t in state.items()}
    back = convert_ldm_unet_checkpoint(dict(tensors), json)
    assert back.keys() == state.keys()
    assert all(back[name] is tensor for name, tensor in state.items())
    mark = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    tensors |= {mark: None} if family == "sdxl" else {}
    assert infer_diffusers_model_type(tensors) == known_as
