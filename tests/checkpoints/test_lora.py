"""LoRA files of every spelling, merged as plain NumPy does; files that do not fit are refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.load import load_model
from seediff_jax.checkpoints.orbax_folder import save_orbax
from seediff_jax.errors import UserError
from tests.helpers.lora_files import (
    SPELLINGS,
    TEXT_LAYERS,
    UNET_LAYERS,
    first_of_diffusers,
    kohya,
    lora_file,
    peft,
    tensors_of,
)
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import random_params, small_config, small_xl_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    config = small_config(folder / "tokenizer")
    write_folder(folder / "model", config, random_params(config))
    return folder / "model"


@pytest.fixture(scope="module")
def weights(folder):
    return tensors_of(folder)


def merged(folder, tmp_path, loras):
    model = load_model(folder, loras=loras)
    save_model(model, tmp_path / "merged")
    return tensors_of(tmp_path / "merged"), model


def assert_merged(got, weights, changes):
    """Changed as told, to float32's rounding of sums of 3 products; the others not at all."""
    assert got.keys() == weights.keys()
    for name, tensor in weights.items():
        if name in changes:
            expected = tensor + changes[name]
            np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=5e-6, err_msg=name)
            assert np.abs(changes[name]).max() > 0.1
        else:
            np.testing.assert_array_equal(got[name], tensor, err_msg=name)


@pytest.mark.parametrize("spell", SPELLINGS)
def test_a_lora_of_any_spelling_changes_its_layers(folder, weights, tmp_path, spell):
    layers = [("unet", layer) for layer in UNET_LAYERS]
    layers += [("text_encoder", layer) for layer in TEXT_LAYERS]
    if spell is first_of_diffusers:
        layers = [pair for pair in layers if "attn" in pair[1] and "ff" not in pair[1]]
    tensors, changes = lora_file(weights, spell, layers)
    save_file(tensors, tmp_path / "lora.safetensors")
    got, model = merged(folder, tmp_path, [(tmp_path / "lora.safetensors", 0.8)])
    assert_merged(got, weights, {name: 0.8 * change for name, change in changes.items()})
    assert model.weights_hash != load_model(folder).weights_hash
    assert load_model(tmp_path / "merged").weights_hash == model.weights_hash


def test_alpha_over_rank_scales_and_loras_add_up(folder, weights, tmp_path):
    layers = [("unet", layer) for layer in UNET_LAYERS]
    tensors, changes = lora_file(weights, kohya, layers)
    for i, (component, layer) in enumerate(layers):
        alpha = kohya(component, layer)[0].replace("lora_{}.weight", "alpha")
        tensors[alpha] = np.array(1 + i, np.float16)
        changes[f"{component}.{layer}.weight"] *= (1 + i) / 3
    save_file(tensors, tmp_path / "first.safetensors")
    other, other_changes = lora_file(weights, peft, layers[2:4], rank=2)
    save_file({n: t.astype(np.float16) for n, t in other.items()}, tmp_path / "other.safetensors")
    pairs = [(tmp_path / "first.safetensors", 0.5), (str(tmp_path / "other.safetensors"), -1)]
    got, _ = merged(folder, tmp_path, pairs)
    expected = {name: 0.5 * change for name, change in changes.items()}
    other = {n: t.astype(np.float16).astype(np.float32) for n, t in other.items()}
    for component, layer in layers[2:4]:
        template, sides = peft(component, layer)
        down, up = (other[template.format(side)] for side in sides)
        expected[f"{component}.{layer}.weight"] -= up @ down
    assert_merged(got, weights, expected)


def test_the_alpha_in_the_header_of_diffusers_is_used(folder, weights, tmp_path):
    layers = [("unet", "conv_in"), ("text_encoder", TEXT_LAYERS[0])]
    tensors, changes = lora_file(weights, peft, layers)
    header = {"unet.lora_alpha": 6, "unet.r": 3, "unet.alpha_pattern": {}}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(header)})
    got, _ = merged(folder, tmp_path, [(path, 1)])
    changes["unet.conv_in.weight"] *= 2
    assert_merged(got, weights, changes)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ('{"unet.lora_alpha": "6"}', "lora_alpha = '6', expected a number of up to 1000000"),
        ('{"unet.lora_alpha": 1e300}', r"lora_alpha = 1e\+300, expected a number of up to 1000000"),
        ('{"unet.lora_alpha": NaN}', "lora_adapter_metadata in its header is not JSON: NaN"),
        ('{"unet.lora_alpha": 6', "lora_adapter_metadata in its header is not JSON"),
        ("[6]", "lora_adapter_metadata in its header is not a JSON object"),
    ],
)
def test_an_alpha_that_is_not_a_number_is_refused(folder, weights, tmp_path, stated, message):
    tensors, _ = lora_file(weights, peft, [("unet", "conv_in")])
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": stated})
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.*{message}"):
        load_model(folder, loras=[(path, 1)])


def test_alpha_may_be_an_integer_and_factors_may_not(folder, weights, tmp_path):
    layer = ("unet", "conv_in")
    tensors, changes = lora_file(weights, kohya, [layer])
    tensors["lora_unet_conv_in.alpha"] = np.array(6)
    save_file(tensors, tmp_path / "lora.safetensors")
    got, _ = merged(folder, tmp_path, [(tmp_path / "lora.safetensors", 1)])
    assert_merged(got, weights, {"unet.conv_in.weight": 2 * changes["unet.conv_in.weight"]})
    tensors["lora_unet_conv_in.lora_up.weight"] = np.ones((16, 3, 1, 1), np.int64)
    message = refusal(folder, tmp_path, tensors)
    assert "! lora_unet_conv_in.lora_up.weight: dtype I64, expected one of F64, F32, F16" in message


def test_factors_may_be_matrices_or_1x1_convolutions(folder, weights, tmp_path):
    layer = ("unet", "mid_block.attentions.0.proj_in")
    tensors, changes = lora_file(weights, kohya, [layer])
    assert all(tensor.ndim == 4 for tensor in tensors.values())
    save_file({n: t[:, :, 0, 0] for n, t in tensors.items()}, tmp_path / "lora.safetensors")
    got, _ = merged(folder, tmp_path, [(tmp_path / "lora.safetensors", 1)])
    assert_merged(got, weights, changes)


def refusal(folder, tmp_path, tensors, strength=1.0):
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError) as caught:
        load_model(folder, loras=[(tmp_path / "lora.safetensors", strength)])
    return str(caught.value)


def test_everything_that_does_not_fit_is_listed(folder, weights, tmp_path):
    layers = [("unet", "conv_in"), ("unet", "conv_out"), ("unet", "time_embedding.linear_1")]
    tensors, _ = lora_file(weights, kohya, layers)
    del tensors["lora_unet_conv_out.lora_up.weight"]
    tensors["lora_unet_conv_in.lora_down.weight"] = np.zeros((3, 9, 3, 3), np.float32)
    tensors["lora_unet_input_blocks_0_0.lora_up.weight"] = np.zeros((3, 9), np.float32)
    for name in ("lora_down.weight", "lora_up.weight", "alpha"):
        tensors[f"lora_te2_text_projection.{name}"] = np.zeros((2, 2), np.float32)
    tensors["lora_unet_conv_in.hada_w1_a"] = np.zeros((2, 2), np.float32)
    message = refusal(folder, tmp_path, tensors)
    headline = f"the LoRA {tmp_path / 'lora.safetensors'} does not fit the model, 5 faults: "
    assert message.startswith(headline)
    *faults, needed = message.removeprefix(headline).split("; ")
    faults.sort()
    assert faults[0].startswith("! lora_unet_conv_in.lora_down.weight: down (3, 9, 3, 3), up (16, ")
    assert faults[1:] == [
        "+ lora_te2_text_projection.alpha: the model has no such layer",
        "+ lora_unet_conv_in.hada_w1_a: not a tensor of a LoRA of this kind",
        "+ lora_unet_input_blocks_0_0.lora_up.weight: the same layer as "
        "lora_unet_conv_in.lora_down.weight",
        "- lora_unet_conv_out.lora_down.weight: the layer has no up factor",
    ]
    assert "expected down and up factors" in needed and "unet: up_blocks_1" in needed


def test_the_message_about_a_lora_of_another_model_is_short(folder, tmp_path):
    tensors = {f"lora_unet_x_{i}.lora_up.weight": np.zeros((2, 2), np.float32) for i in range(50)}
    message = refusal(folder, tmp_path, tensors)
    assert "50 faults" in message and "and 40 more" in message
    assert "- it changes no layer" in refusal(folder, tmp_path, {})


def test_paths_and_strengths_are_checked_first(folder, tmp_path):
    assert "not a finite number" in refusal(folder, tmp_path, {}, float("nan"))
    (tmp_path / "lora.pt").write_bytes(b"")
    for name, message in (("lora.pt", "is not a .safetensors"), ("none.safetensors", "not exist")):
        with pytest.raises(ValueError, match=message):
            load_model(folder, loras=[(tmp_path / name, 1)])
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 5)
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_model(folder, loras=[(tmp_path / "cut.safetensors", 1)])


def test_loras_are_merged_into_orbax_folders_too(folder, weights, tmp_path):
    save_orbax(load_model(folder), tmp_path / "orbax")
    tensors, changes = lora_file(weights, kohya, [("unet", layer) for layer in UNET_LAYERS])
    save_file(tensors, tmp_path / "lora.safetensors")
    got, _ = merged(tmp_path / "orbax", tmp_path, [(tmp_path / "lora.safetensors", 1)])
    assert_merged(got, weights, changes)


def test_a_change_that_is_not_finite_is_refused_by_name(folder, weights, tmp_path):
    tensors, _ = lora_file(weights, kohya, [("unet", "conv_in"), ("unet", "conv_out")])
    tensors["lora_unet_conv_out.lora_up.weight"][0, 0] = np.inf
    message = refusal(folder, tmp_path, tensors)
    assert "NaN or infinity in the change by lora_unet_conv_out.lora_down.weight" in message


def test_a_lora_of_xl_changes_both_text_encoders_and_the_unet(tmp_path):
    config = small_xl_config(tmp_path)
    write_folder(tmp_path / "model", config, random_params(config))
    weights = tensors_of(tmp_path / "model")
    spelled = {
        "unet.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_2_2_conv",
        "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
        "text_encoder.text_model.encoder.layers.1.mlp.fc1": (
            "lora_te1_text_model_encoder_layers_1_mlp_fc1"
        ),
        "text_encoder_2.text_model.encoder.layers.2.self_attn.k_proj": (
            "lora_te2_text_model_encoder_layers_2_self_attn_k_proj"
        ),
        "text_encoder_2.text_projection": "lora_te2_text_projection",
    }

    def spell(component, layer):
        return spelled[f"{component}.{layer}"] + ".lora_{}.weight", ("down", "up")

    tensors, changes = lora_file(weights, spell, [name.split(".", 1) for name in spelled])
    save_file(tensors, tmp_path / "lora.safetensors")
    got, _ = merged(tmp_path / "model", tmp_path, [(tmp_path / "lora.safetensors", 1)])
    assert_merged(got, weights, changes)


def peft_adapter(folder, tensors, options):
    """Writes an adapter as peft does; returns its file."""
    folder.mkdir()
    named = {name.replace("unet.", "base_model.model.", 1): t for name, t in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    if options is not None:
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["to_q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config | options))
    return folder / "adapter_model.safetensors"


ADAPTED = [("unet", layer) for layer in list(UNET_LAYERS)[:2]]  # attn1.to_q and attn2.to_k


@pytest.mark.parametrize(
    ("options", "scales"),
    [
        ({"lora_alpha": 8, "r": 3}, [8 / 3, 8 / 3]),
        ({"use_rslora": True}, [6 / 3**0.5, 6 / 3**0.5]),
        ({"alpha_pattern": {"to_k": 12, "q": 99}}, [2, 4]),
        ({"alpha_pattern": {"attn1.to_q": 3}, "use_rslora": True}, [3**0.5, 6 / 3**0.5]),
        ({"alpha_pattern": {f"^{ADAPTED[0][1]}$": 1.5}, "use_dora": False}, [0.5, 2]),
        ({"bias": "none", "init_lora_weights": "gaussian", "modules_to_save": None}, [2, 2]),
    ],
)
def test_a_peft_adapter_has_the_scale_of_its_config(folder, weights, tmp_path, options, scales):
    tensors, changes = lora_file(weights, peft, ADAPTED)
    path = peft_adapter(tmp_path / "adapter", tensors, options)
    got, _ = merged(folder, tmp_path, [(path, 1)])
    for (component, layer), scale in zip(ADAPTED, scales, strict=True):
        changes[f"{component}.{layer}.weight"] *= scale
    assert_merged(got, weights, changes)


def test_a_peft_adapter_for_a_text_encoder_is_recognised_by_its_names(folder, weights, tmp_path):
    layer = ("text_encoder", TEXT_LAYERS[0])
    tensors, changes = lora_file(weights, peft, [layer])
    named = {name.replace("text_encoder.", "unet.", 1): t for name, t in tensors.items()}
    path = peft_adapter(tmp_path / "adapter", named, {"alpha_pattern": {TEXT_LAYERS[0]: 9}})
    got, _ = merged(folder, tmp_path, [(path, 1)])
    assert_merged(
        got,
        weights,
        {f"text_encoder.{TEXT_LAYERS[0]}.weight": 3 * change for change in changes.values()},
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "adapter_config.json is missing; adapter_model.safetensors is an adapter of peft"),
        ({"lora_alpha": None}, "lora_alpha = None, expected a number"),
        ({"use_dora": True}, "a LoRA with use_dora = True is not supported"),
        ({"bias": "all"}, "a LoRA with bias = 'all' is not supported"),
        ({"peft_type": "LOHA"}, "a LoRA with peft_type = 'LOHA' is not supported"),
        ({"init_lora_weights": "pissa"}, "a LoRA with init_lora_weights = 'pissa'"),
        ({"modules_to_save": ["conv_in"]}, "a LoRA with modules_to_save = "),
        ({"alpha_pattern": {"to_(q|k)": 3}}, "alpha_pattern has to_.*expected names of modules"),
        ({"alpha_pattern": [3]}, "alpha_pattern = .3., expected an object"),
        ({"alpha_pattern": {"to_q": "3"}}, "to_q = '3', expected a number"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"new_option": "\x1b[31m" * 10**6}, "a LoRA with new_option = "),
    ],
)
def test_a_peft_adapter_with_unsupported_options_is_refused(
    folder, weights, tmp_path, options, message
):
    tensors, _ = lora_file(weights, peft, ADAPTED)
    path = peft_adapter(tmp_path / "adapter", tensors, options)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder, loras=[(path, 1)])
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


def test_rank_stabilisation_and_patterns_in_the_header_of_diffusers_are_used(
    folder, weights, tmp_path
):
    tensors, changes = lora_file(weights, peft, ADAPTED)
    header = {"unet.lora_alpha": 6, "unet.use_rslora": True, "unet.alpha_pattern": {"to_k": 3}}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata={"lora_adapter_metadata": json.dumps(header)})
    got, _ = merged(folder, tmp_path, [(path, 1)])
    for (component, layer), alpha in zip(ADAPTED, (6, 3), strict=True):
        changes[f"{component}.{layer}.weight"] *= alpha / 3**0.5
    assert_merged(got, weights, changes)


def test_a_lora_with_many_odd_names_is_refused_in_a_short_message(folder, tmp_path):
    tensors = {f"\x1b[31m{i}": np.zeros(1, np.float32) for i in range(20_000)}
    message = refusal(folder, tmp_path, tensors)
    assert len(message) < 5000 and message.isprintable() and "and 19990 more" in message
