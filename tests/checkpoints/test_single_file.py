"""A whole model in one file of the original layout: read as its diffusers folder, or refused."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seediff_jax.checkpoints import hub
from seediff_jax.checkpoints.families import FAMILIES
from seediff_jax.checkpoints.load import load_model
from tests.helpers.original_layout import (
    UNET,
    VAE,
    original_clip,
    original_open_clip,
)
from tests.helpers.random_models import small_config, small_xl_config
from tests.helpers.single_files import tensors_of, written

SMALL_SD2 = {"attention_head_dim": [2, 4], "use_linear_projection": True}
# In addition to the weights: schedules, an EMA copy of the UNet, a loss, positions.
IGNORED = {
    "betas": np.ones(5, np.float64),
    "alphas_cumprod": np.ones(5, np.float32),
    "model_ema.diffusion_modelinput_blocks00weight": np.ones((2, 3), np.float32),
    "model_ema.decay": np.ones((), np.float32),
    f"{VAE}loss.logvar": np.ones((), np.float32),
    "cond_stage_model.logit_scale": np.ones((), np.float32),
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A small Stable Diffusion 1.x: its folder, its family, the tensors of its single file."""
    folder = tmp_path_factory.mktemp("first")
    family = written(folder, "sd1", small_config(folder / "tokenizer"))
    return folder, family, tensors_of(folder, original_clip)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A small Stable Diffusion 2.x, whose file has one more layer of text encoder than is used."""
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


def test_a_single_file_of_version_1_equals_its_diffusers_folder(small_first):
    folder, tensors, path = small_first
    save_file(tensors | IGNORED, path)
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
def test_a_single_file_of_version_2_equals_its_folder_except_for_padding(
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


def test_version_2_without_a_prediction_type_is_refused_with_advice(second, monkeypatch, tmp_path):
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    save_file(tensors, tmp_path / "model.safetensors")
    message = refusal(tmp_path / "model.safetensors", tokenizer=folder / "tokenizer")
    assert "is Stable Diffusion 2.x and does not say what" in message
    assert "--prediction_type" in message and "'v_prediction'" in message
    save_file(tensors | {"v_pred": np.zeros(0, np.float32)}, tmp_path / "marked.safetensors")
    model = load_model(tmp_path / "marked.safetensors", tokenizer=folder / "tokenizer")
    assert model.scheduler_config.prediction_type == "v_prediction"


def test_a_fused_projection_with_too_many_rows_is_refused(second, monkeypatch, tmp_path):
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
    headline = f"{path}: unet: 3 weights do not fit the config: "
    message = refusal(path, tokenizer=folder / "tokenizer")
    assert message.startswith(headline)
    assert sorted(message.removeprefix(headline).split("; ")) == [
        "! conv_out.weight (4, 8, 3, 3): the config says (4, 16, 3, 3)",
        f"+ {UNET}label_emb.0.0.weight (2, 3): unexpected",
        "- down_blocks.0.downsamplers.0.conv.bias (16,): missing",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: {n: v for n, v in t.items() if not n.startswith(VAE)},
            "has no VAE ('first_stage_model.*')",
        ),
        (
            lambda t: {n: v for n, v in t.items() if "cond_stage" not in n},
            "not hold a whole",
        ),
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
        (lambda t: like("double_blocks.0.img_attn.qkv.weight"), "is Flux or a similar model (a tr"),
        (lambda t: like(f"{UNET}double_blocks.0.img_attn.qkv.weight", t), "is Flux or a similar"),
        (lambda t: like("single_transformer_blocks.0.attn.to_q.weight"), "is Flux or a similar"),
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
    assert "prediction_type='sample' is not one of" in refusal("shapes", prediction_type="sample")
    shutil.copy(path, tmp_path / "model.ckpt")
    message = refusal(tmp_path / "model.ckpt")
    assert "is a file" in message and "from_single_file" in message


def test_the_default_tokenizer_of_a_single_file_is_that_of_clip(small_first, monkeypatch):
    folder, tensors, path = small_first
    save_file(tensors, path)
    asked = []

    def fetch(hub_id, parts):
        asked.append((hub_id, parts))
        return folder / "tokenizer"

    monkeypatch.setattr("seediff_jax.checkpoints.sources.fetch", fetch)
    assert load_model(path).tokenizer == load_model(folder / "model").tokenizer
    assert asked == [("openai/clip-vit-large-patch14", "tokenizers")]


def test_the_message_names_a_missing_network_and_tokenizer(small_first, monkeypatch, tmp_path):
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


def test_a_single_file_of_xl_equals_its_diffusers_folder(monkeypatch, tmp_path):
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


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.transformer.logit_scale",
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.transformer.vision_model.encoder.layers.0.mlp.fc1.weight",
        "cond_stage_model.transformer.visual_projection.weight",
    ],
)
def test_unused_tensors_of_clip_are_ignored(small_first, name):
    folder, tensors, path = small_first
    save_file(tensors | {name: np.ones((2, 3), np.float32)}, path)
    got = load_model(path, tokenizer=folder / "tokenizer")
    assert got.weights_hash == load_model(folder / "model").weights_hash


@pytest.mark.parametrize(
    "name", ["transformer.text_model.embeddings.position_ids", "visual.conv1.weight", "logit_bias"]
)
def test_unused_tensors_of_open_clip_are_ignored(second, monkeypatch, tmp_path, name):
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    path = tmp_path / "model.safetensors"
    save_file(tensors | {f"cond_stage_model.model.{name}": np.ones((2, 3), np.float32)}, path)
    got = load_model(path, tokenizer=folder / "tokenizer", prediction_type="epsilon")
    assert got.weights_hash == load_model(folder / "model").weights_hash


def test_a_file_of_version_2_in_the_layout_of_turbo_is_not_the_refiner(
    second, monkeypatch, tmp_path
):
    folder, family, tensors = second
    monkeypatch.setitem(FAMILIES, "sd2", family)
    old, new = "cond_stage_model.model.", "conditioner.embedders.0.model."
    tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    options = {"tokenizer": folder / "tokenizer", "prediction_type": "epsilon"}
    assert load_model(path, **options).weights_hash == load_model(folder / "model").weights_hash
    # The UNet of the refiner reads another text encoder, which is wider.
    wide = {
        name: np.zeros((t.shape[0], 40), np.float32) if ".attn2.to_k." in name else t
        for name, t in tensors.items()
    }
    save_file(wide, path)
    assert "is the refiner of Stable Diffusion XL" in refusal(path, **options)


def test_a_file_of_version_1_in_the_later_layout_is_read(small_first):
    folder, tensors, path = small_first
    old, new = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, path)
    got = load_model(path, tokenizer=folder / "tokenizer")
    assert got.weights_hash == load_model(folder / "model").weights_hash


@pytest.mark.parametrize("key", ["modelspec.prediction_type", "modelspec.predict_key"])
@pytest.mark.parametrize(("value", "expected"), [("v", "v_prediction"), ("Epsilon", "epsilon")])
def test_a_stated_prediction_type_is_used(small_first, key, value, expected):
    folder, tensors, path = small_first
    save_file(tensors, path, metadata={key: value})
    options = {"tokenizer": folder / "tokenizer"}
    assert load_model(path, **options).scheduler_config.prediction_type == expected
    other = {"epsilon": "v_prediction", "v_prediction": "epsilon"}[expected]
    model = load_model(path, **options, prediction_type=other)
    assert model.scheduler_config.prediction_type == other


@pytest.mark.parametrize(
    ("metadata", "marks", "message"),
    [
        ({"modelspec.prediction_type": "flow"}, (), "modelspec.prediction_type = flow; supported"),
        (
            {"modelspec.prediction_type": "v", "modelspec.predict_key": "epsilon"},
            (),
            "modelspec.prediction_type = v, modelspec.predict_key = epsilon; supported is one",
        ),
        ({"modelspec.prediction_type": "epsilon"}, ["v_pred"], "v_pred = v_prediction; supported"),
        ({}, ["edm_vpred.sigma_max"], "is a model trained with the EDM form of v-prediction"),
        ({}, ["edm_mean"], "is Playground v2.5"),
    ],
)
def test_an_unsupported_or_contradictory_prediction_type_is_refused(
    small_first, metadata, marks, message
):
    folder, tensors, path = small_first
    save_file(tensors | dict.fromkeys(marks, np.ones(1, np.float32)), path, metadata=metadata)
    assert message in refusal(path, tokenizer=folder / "tokenizer")


def test_float8_weights_are_read(small_first):
    folder, tensors, path = small_first
    name = f"{UNET}out.2.weight"
    small = tensors[name].astype(ml_dtypes.float8_e4m3fn)
    save_file(tensors | {name: small}, path)
    model = load_model(path, tokenizer=folder / "tokenizer")
    kernel = np.asarray(model.params["unet"]["conv_out"]["kernel"])
    np.testing.assert_array_equal(kernel, small.astype(np.float32).transpose(2, 3, 1, 0))
