"""The JSON files and the tokenizer of a model folder: what is read, and what is refused."""

import dataclasses
import json
import re
import shutil

import pytest
from random_models import small_config

from seediff_jax.model_config import read_model_config, write_model_config
from seediff_jax.models.capture import CaptureConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("made") / "tokenizer")


@pytest.fixture
def folder(config, tmp_path):
    """A model folder without weights, to be changed."""
    (tmp_path / "model").mkdir()
    write_model_config(tmp_path / "model", config)
    return tmp_path / "model"


def rewrite_json(path, edit):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | edit))


def test_a_written_folder_reads_back_equal(folder, config):
    assert read_model_config(folder) == config
    assert not (folder / "capture.json").exists()


def test_a_choice_of_layers_is_kept_with_the_model(config, tmp_path):
    layer = "up_blocks.1.attentions.1.transformer_blocks.0"
    capture = CaptureConfig(cross_layers=(f"{layer}.attn2",), self_layers=(f"{layer}.attn1",))
    write_model_config(tmp_path, dataclasses.replace(config, capture=capture))
    assert read_model_config(tmp_path).capture == capture


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model_index.json", None, "model_index.json is missing"),
        ("unet/config.json", None, "unet/config.json is missing"),
        ("vae/config.json", "{", "vae/config.json is damaged, it is not JSON"),
        ("tokenizer/tokenizer.json", "{", "tokenizer.json is damaged"),
        ("scheduler/scheduler_config.json", "[]", "must hold a JSON object"),
        ("capture.json", '{"self_layers": ["x"]}', "capture.json: needed are lists of layer names"),
        ("capture.json", '{"self_layers": ["x"], "cross_layers": []}', "no layer 'x'"),
    ],
)
def test_missing_and_damaged_json_is_refused(folder, name, content, message):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_model_config(folder)


def test_a_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer: no such folder"):
        read_model_config(folder)


def test_the_tokenizer_is_written_in_both_forms(folder, config):
    names = {path.name for path in (folder / "tokenizer").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    (folder / "tokenizer" / "tokenizer.json").unlink()
    again = read_model_config(folder).tokenizer
    assert again.encode(["a cat"]).tolist() == config.tokenizer.encode(["a cat"]).tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "StableDiffusionXLPipeline is not",
        ),
        ({"_class_name": None}, "None is not supported, only StableDiffusionPipeline"),
        ({"unet": ["diffusers", "SD3Transformer2DModel"]}, "only diffusers's UNet2DConditionModel"),
        ({"text_encoder": None}, "text_encoder is None, only transformers's CLIPTextModel"),
    ],
)
def test_other_pipelines_are_refused_by_name(folder, edit, message):
    rewrite_json(folder / "model_index.json", edit)
    with pytest.raises(ValueError, match=message):
        read_model_config(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "unet",
            {"cross_attention_dim": 32},
            "cross_attention_dim = 32 must equal text",
        ),
        ("vae", {"latent_channels": 8}, "in_channels = 4 must equal vae latent_channels = 8"),
        (
            "unet",
            {"in_channels": 9},
            "in_channels = 9 must equal vae latent_channels = 4; .*for inpainting",
        ),
        (
            "text_encoder",
            {"max_position_embeddings": 7},
            "12 tokens, the text encoder reads 7",
        ),
        (
            "text_encoder",
            {"vocab_size": 500},
            "tokenizer has ids up to 513, the text encoder below 500",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(folder, name, edit, message):
    rewrite_json(folder / name / "config.json", edit)
    with pytest.raises(ValueError, match=message):
        read_model_config(folder)


@pytest.mark.parametrize(
    ("pipeline", "parts"),
    [
        (
            "StableDiffusion3Pipeline",
            {
                "transformer": ["diffusers", "SD3Transformer2DModel"],
                "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
                "text_encoder_3": ["transformers", "T5EncoderModel"],
                "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            },
        ),
        ("FluxPipeline", {"transformer": ["diffusers", "FluxTransformer2DModel"]}),
        ("StableDiffusionXLImg2ImgPipeline", {"text_encoder": [None, None]}),
        ("StableDiffusionInpaintPipeline", {}),
        ("StableDiffusionDepth2ImgPipeline", {"depth_estimator": ["transformers", "DPT"]}),
    ],
)
def test_families_that_are_not_supported_are_refused_with_the_file_and_advice(
    folder, pipeline, parts
):
    """Their folders have no other part that a Stable Diffusion folder has; none is asked for."""
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    shutil.rmtree(folder / "unet")
    index |= {"_class_name": pipeline, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as caught:
        read_model_config(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model_index.json'}: {pipeline} is not supported")
    assert message.endswith("name a text-to-image checkpoint of that family")


def test_a_capture_that_does_not_fit_is_refused_with_its_folder(folder):
    rewrite_json(folder / "unet" / "config.json", {"sample_size": 8})
    (folder / "capture.json").write_text('{"self_layers": ["x"], "cross_layers": []}')
    with pytest.raises(ValueError, match=f"^{re.escape(str(folder))}: capture: no layer 'x'"):
        read_model_config(folder)


def test_the_largest_token_id_counts_not_the_number_of_tokens(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[next(iter(vocabulary))] = 10**6
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer has ids up to 1000000, the text encoder below"):
        read_model_config(folder)
