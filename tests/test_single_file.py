"""A whole model in one file of the original layout: read as its diffusers folder, or refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from original_layout import (
    UNET,
    VAE,
    original_clip,
    original_open_clip,
    original_unet,
    original_vae,
)
from random_models import random_params, small_config, small_xl_config
from safetensors.numpy import load_file, save_file

from seediff_jax import hub
from seediff_jax.checkpoints import write_folder
from seediff_jax.families import FAMILIES
from seediff_jax.model import load_model

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
SMALL_SD2 = {"attention_head_dim": [2, 4], "use_linear_projection": True}
# Beside the weights: schedules, an EMA copy of the UNet, a loss, positions.
LEFT_ALONE = {
    "betas": np.ones(5, np.float64),
    "alphas_cumprod": np.ones(5, np.float32),
    "model_ema.diffusion_modelinput_blocks00weight": np.ones((2, 3), np.float32),
    "model_ema.decay": np.ones((), np.float32),
    f"{VAE}loss.logvar": np.ones((), np.float32),
    "cond_stage_model.logit_scale": np.ones((), np.float32),
}


def written(folder, family, config):
    """Writes a small model as a diffusers folder; returns the family with its configs."""
    write_folder(folder / "model", config, random_params(config))
    files = [path for path in (folder / "model").rglob("*config.json") if "token" not in str(path)]
    configs = {
        path.relative_to(folder / "model").as_posix(): json.loads(path.read_text())
        for path in [*files, folder / "model/model_index.json"]
    }
    sides = dict.fromkeys(("epsilon", "v_prediction"), config.unet.sample_size)
    return dataclasses.replace(FAMILIES[family], configs=configs, sample_sizes=sides)


def tensors_of(folder, original_text):
    """The tensors of a single file with the weights of a diffusers folder."""
    parts = {name: load_file(folder / "model" / file) for name, file in FILES.items()}
    unet_json, vae_json = (
        json.loads((folder / "model" / name / "config.json").read_text())
        for name in ("unet", "vae")
    )
    return {
        **original_text(parts["text_encoder"]),
        **original_unet(parts["unet"], unet_json),
        **original_vae(parts["vae"], vae_json),
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A small Stable Diffusion 1.x: its folder, its family, the tensors of its single file."""
    folder = tmp_path_factory.mktemp("first")
    family = written(folder, "sd1", small_config(folder / "tokenizer"))
    return folder, family, tensors_of(folder, original_clip)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A small Stable Diffusion 2.x, whose file has a layer of text encoder more than is used."""
    folder = tmp_path_factory.mktemp("second")
    config = small_config(folder / "tokenizer", unet=SMALL_SD2, text={"hidden_act": "gelu"})
    family = written(folder, "sd2", config)

    def original_text(tensors):
        return original_open_clip(tensors, unused_layer=True)

    return folder, family, tensors_of(folder, original_text)


@pytest.fixture
def small_first(first, monkeypatch, tmp_path):
    folder, family, tensors = first
    monkeypatch.setitem(FAMILIES, "sd1", family)
    return folder, dict(tensors), tmp_path / "model.safetensors"


def like(name, tensors=()):
    """Tensors with one more, which tells the family."""
    return {**dict(tensors), name: np.zeros((2, 2), np.float32)}


def refusal(path, **options):
    with pytest.raises(ValueError) as caught:
        load_model(path, **options)
    return str(caught.value)


def test_a_file_of_version_1_is_the_model_of_its_folder(small_first):
    folder, tensors, path = small_first
    save_file(tensors | LEFT_ALONE, path)
    expected = load_model(folder / "model")
    got = load_model(path, tokenizer=folder / "model")
    assert got.weights_hash == expected.weights_hash
    assert got.config == expected.config and got.model_id == str(path)
    assert load_model(path, tokenizer=folder / "tokenizer", scheduler="ddim").config != got.config


def test_old_names_of_the_text_encoder_and_its_positions_are_read(small_first):
    folder, tensors, path = small_first
    text = "cond_stage_model.transformer."
    tensors = {name.replace(f"{text}text_model.", text): t for name, t in tensors.items()}
    tensors[f"{text}embeddings.position_ids"] = np.arange(12)[None]
    save_file(tensors, path)
    expected = load_model(folder / "model").weights_hash
    assert load_model(path, tokenizer=folder / "tokenizer").weights_hash == expected


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_file_of_version_2_is_that_of_its_folder_but_for_the_padding(
    second, monkeypatch, tmp_path, prediction_type
):
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    save_file(tensors, tmp_path / "model.safetensors")
    options = {"tokenizer": folder / "tokenizer", "prediction_type": prediction_type}
    got = load_model(tmp_path / "model.safetensors", **options)
    expected = load_model(folder / "model", prediction_type=prediction_type)
    assert got.weights_hash == expected.weights_hash
    assert got.scheduler_config == expected.scheduler_config
    assert got.scheduler_config.prediction_type == prediction_type
    # OpenCLIP fills up with the token of id 0, CLIP with its end token.
    (ids,), (plain,) = (model.tokenizer.encode(["a"]) for model in (got, expected))
    assert ids[:3].tolist() == plain[:3].tolist() and set(ids[3:]) == {0} != set(plain[3:])


def test_version_2_without_a_prediction_type_is_told_what_to_give(second, monkeypatch, tmp_path):
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    save_file(tensors, tmp_path / "model.safetensors")
    message = refusal(tmp_path / "model.safetensors", tokenizer=folder / "tokenizer")
    assert "Stable Diffusion 2.x: its tensors do not tell" in message
    assert "--prediction_type" in message and "'v_prediction'" in message
    save_file(tensors | {"v_pred": np.zeros(0, np.float32)}, tmp_path / "marked.safetensors")
    model = load_model(tmp_path / "marked.safetensors", tokenizer=folder / "tokenizer")
    assert model.scheduler_config.prediction_type == "v_prediction"


def test_a_fused_projection_with_rows_too_many_is_refused(second, monkeypatch, tmp_path):
    """Its thirds would be cut out of it in other places than they are."""
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"
    save_file(tensors | {name: np.zeros(3 * 24 + 1, np.float32)}, tmp_path / "model.safetensors")
    options = {"tokenizer": folder / "tokenizer", "prediction_type": "epsilon"}
    message = refusal(tmp_path / "model.safetensors", **options)
    assert "layers.0.self_attn.k_proj.bias (73,): the config says (24,)" in message


def test_a_first_convolution_without_axes_is_refused(small_first):
    _, tensors, path = small_first
    save_file(tensors | {f"{UNET}input_blocks.0.0.weight": np.zeros((), np.float32)}, path)
    assert f"{path}: its UNet takes no channels" in refusal(path)


def test_all_differences_are_reported_by_their_names(small_first):
    folder, tensors, path = small_first
    del tensors[f"{UNET}input_blocks.2.0.op.bias"]
    tensors[f"{UNET}label_emb.0.0.weight"] = np.zeros((2, 3), np.float32)
    tensors[f"{UNET}out.2.weight"] = np.zeros((4, 8, 3, 3), np.float32)
    save_file(tensors, path)
    assert sorted(refusal(path, tokenizer=folder / "tokenizer").splitlines()) == [
        "  ! conv_out.weight (4, 8, 3, 3): the config says (4, 16, 3, 3)",
        f"  + {UNET}label_emb.0.0.weight (2, 3): unexpected",
        "  - down_blocks.0.downsamplers.0.conv.bias (16,): missing",
        f"{path}: unet: 3 weights do not fit the config:",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v for n, v in t.items() if not n.startswith(VAE)}, "no whole Stable"),
        (lambda t: {n: v for n, v in t.items() if "cond_stage" not in n}, "no whole Stable"),
        (lambda t: {"conv_in.weight": np.zeros((2, 4, 3, 3), np.float32)}, "found are conv_in."),
        (lambda t: {"lora_unet_a.lora_up.weight": np.zeros((2, 2), np.float32)}, "is a LoRA"),
        (lambda t: t | {"control_model.x": np.zeros(2, np.float32)}, "ControlNet"),
        (
            lambda t: like(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", t),
            "Diffusion 3 (a trans",
        ),
        (
            lambda t: like("joint_blocks.0.x_block.attn.qkv.weight"),
            "is Stable Diffusion 3 (a trans",
        ),
        (lambda t: like("double_blocks.0.img_attn.qkv.weight"), "is Flux or one of its kin (a tr"),
        (lambda t: like(f"{UNET}double_blocks.0.img_attn.qkv.weight", t), "is Flux or one of its"),
        (lambda t: like("single_transformer_blocks.0.attn.to_q.weight"), "is Flux or one of its"),
        (
            lambda t: like(
                "conditioner.embedders.0.model.ln_final.bias", like(f"{UNET}out.2.bias")
            ),
            "is the refiner of Stable Diffusion XL, which only changes images, which is not "
            "supported; give a file of Stable Diffusion 1.x, Stable Diffusion 2.x, Stable Diff",
        ),
        (
            lambda t: t | {f"{UNET}input_blocks.0.0.weight": np.zeros((16, 9, 3, 3), np.float32)},
            "takes 9 channels",
        ),
    ],
)
def test_files_that_hold_something_else_are_refused(small_first, change, message):
    folder, tensors, path = small_first
    save_file(change(tensors), path)
    assert message in refusal(path, tokenizer=folder / "tokenizer")


def test_a_damaged_file_and_other_kinds_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * 100)
    assert "damaged or cut short" in refusal(path)
    assert "prediction_type='sample' is none of" in refusal("shapes", prediction_type="sample")
    shutil.copy(path, tmp_path / "model.ckpt")
    message = refusal(tmp_path / "model.ckpt")
    assert "is a file" in message and "from_single_file" in message


def test_without_a_tokenizer_the_one_of_clip_is_asked_for(small_first, monkeypatch):
    folder, tensors, path = small_first
    save_file(tensors, path)
    asked = []

    def fetch(hub_id, revision=None, choose=None, missing=None):
        asked.append(hub_id)
        assert choose(["a.bin", "vocab.json", "merges.txt"]) == ["vocab.json", "merges.txt"]
        return folder / "tokenizer"

    monkeypatch.setattr("seediff_jax.sources.fetch", fetch)
    assert load_model(path).tokenizer == load_model(folder / "model").tokenizer
    assert asked == ["openai/clip-vit-large-patch14"]


def test_no_network_and_no_tokenizer_is_said_plainly(small_first, monkeypatch, tmp_path):
    _, tensors, path = small_first
    save_file(tensors, path)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(path)
    assert f"{path} has no tokenizer" in message and "cannot be reached" in message
    assert "--tokenizer" in message


def test_a_tokenizer_of_another_size_is_refused(small_first):
    folder, tensors, path = small_first
    save_file(tensors, path)
    assert "tokenizer='nothing' is neither" in refusal(path, tokenizer="nothing")
    (path.parent / "empty").mkdir()
    assert "vocab.json is missing" in refusal(path, tokenizer=path.parent / "empty")


def test_a_file_of_xl_is_the_model_of_its_folder(monkeypatch, tmp_path):
    config = small_xl_config(tmp_path)
    family = written(tmp_path, "sdxl", config)
    monkeypatch.setitem(FAMILIES, "sdxl", family)
    prefixes = family.text_encoders

    def original_text(tensors):
        return original_clip(tensors, prefixes["text_encoder"])

    second = load_file(tmp_path / "model/text_encoder_2/model.safetensors")
    tensors = {
        **tensors_of(tmp_path, original_text),
        **original_open_clip(second, prefixes["text_encoder_2"]),
        "denoiser.sigmas": np.ones(5, np.float32),
        "conditioner.embedders.1.model.logit_scale": np.ones((), np.float32),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    got = load_model(tmp_path / "model.safetensors", tokenizer=tmp_path / "model")
    expected = load_model(tmp_path / "model")
    assert got.weights_hash == expected.weights_hash and got.config == expected.config
