"""The JSON files and the tokenizer of a model folder: what is read, and what is refused."""

import dataclasses
import json
import re
import shutil

import pytest

from seediff_jax.checkpoints.diffusers_folder import write_model_config
from seediff_jax.checkpoints.sources import read_source_config
from seediff_jax.errors import UserError
from seediff_jax.models.capture import CaptureConfig
from tests.helpers.random_models import small_config, small_xl_config


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
    assert read_source_config(folder) == config
    assert not (folder / "capture.json").exists()


def test_a_choice_of_layers_is_kept_with_the_model(config, tmp_path):
    layer = "up_blocks.1.attentions.1.transformer_blocks.0"
    capture = CaptureConfig(cross_layers=(f"{layer}.attn2",), self_layers=(f"{layer}.attn1",))
    write_model_config(tmp_path, dataclasses.replace(config, capture=capture))
    assert read_source_config(tmp_path).capture == capture


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model_index.json", None, "model_index.json is missing"),
        ("unet/config.json", None, "unet/config.json is missing"),
        ("vae/config.json", "{", "vae/config.json is damaged, it is not JSON"),
        ("tokenizer/tokenizer.json", "{", "tokenizer.json is damaged"),
        ("scheduler/scheduler_config.json", "[]", "must hold a JSON object"),
        (
            "capture.json",
            '{"self_layers": ["x"]}',
            "capture.json: expected the lists",
        ),
        ("capture.json", '{"self_layers": ["x"], "cross_layers": []}', "no layer 'x'"),
    ],
)
def test_missing_and_damaged_json_is_refused(folder, name, content, message):
    (folder / name).unlink(missing_ok=True)
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_source_config(folder)


def test_a_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer: no such folder"):
        read_source_config(folder)


def test_the_tokenizer_is_written_in_both_forms(folder, config):
    names = {path.name for path in (folder / "tokenizer").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"}
    (folder / "tokenizer" / "tokenizer.json").unlink()
    again = read_source_config(folder).tokenizer
    assert again.encode(["a cat"]).tolist() == config.tokenizer.encode(["a cat"]).tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True},
            r"\(the refiner of Stable Diffusion XL, .* is not supported, only .*XL base",
        ),
        (
            {"_class_name": "StableDiffusionInpaintPipeline"},
            r"StableDiffusionInpaintPipeline \(inpainting, .* is not supported",
        ),
        (
            {"_class_name": "StableDiffusion3Pipeline"},
            r"\(a transformer instead of a UNet\) is not",
        ),
        (
            {"_class_name": "FluxPipeline"},
            r"FluxPipeline \(a transformer instead of a UNet\) is not",
        ),
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "text_encoder_2 is None, only transformers.s CLIPTextModelWithProjection is supported",
        ),
        ({"_class_name": None}, "None is not supported, only StableDiffusionPipeline"),
        ({"unet": ["diffusers", "SD3Transformer2DModel"]}, "only diffusers's UNet2DConditionModel"),
        ({"text_encoder": None}, "text_encoder is None, only transformers's CLIPTextModel"),
    ],
)
def test_other_pipelines_are_refused_by_name(folder, edit, message):
    rewrite_json(folder / "model_index.json", edit)
    with pytest.raises(ValueError, match=message):
        read_source_config(folder)


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
            "12 tokens, but the text encoder reads at most 7",
        ),
        (
            "text_encoder",
            {"vocab_size": 500},
            "tokenizer has ids up to 513, but the text encoder only below 500",
        ),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(folder, name, edit, message):
    rewrite_json(folder / name / "config.json", edit)
    with pytest.raises(ValueError, match=message):
        read_source_config(folder)


@pytest.fixture
def xl_folder(tmp_path):
    """The same of Stable Diffusion XL."""
    config = small_xl_config(tmp_path / "made")
    (tmp_path / "xl").mkdir()
    write_model_config(tmp_path / "xl", config)
    return tmp_path / "xl", config


@pytest.mark.parametrize("zeros", [True, False])
def test_a_written_folder_of_stable_diffusion_xl_reads_back_equal(xl_folder, zeros, tmp_path):
    _, config = xl_folder
    config = dataclasses.replace(config, force_zeros_for_empty_prompt=zeros)
    (tmp_path / "again").mkdir()
    write_model_config(tmp_path / "again", config)
    assert read_source_config(tmp_path / "again") == config
    assert config.components == ("text_encoder", "text_encoder_2", "unet", "vae")


def test_infinity_is_read_where_diffusers_writes_it_and_nowhere_else(folder):
    """json.dumps writes -Infinity, as diffusers does into the file of its DPM-Solver."""
    path = folder / "scheduler" / "scheduler_config.json"
    dpm = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -float("inf")}
    rewrite_json(path, dpm)
    assert "-Infinity" in path.read_text()
    assert read_source_config(folder).scheduler.kind == "dpmsolver_multistep"
    rewrite_json(path, {"beta_end": float("inf")})
    with pytest.raises(ValueError, match="scheduler_config.json: beta_start=0.00085 and beta_end"):
        read_source_config(folder)
    rewrite_json(path, {"beta_end": float("nan")})
    with pytest.raises(ValueError, match="scheduler_config.json is damaged.*NaN is not a number"):
        read_source_config(folder)
    rewrite_json(folder / "vae" / "config.json", {"scaling_factor": float("inf")})
    with pytest.raises(ValueError, match="vae/config.json is damaged.*Infinity is not a number"):
        read_source_config(folder)


@pytest.mark.parametrize("zeros", ["false", None, 0])
def test_a_value_that_is_neither_true_nor_false_is_refused(xl_folder, zeros):
    rewrite_json(xl_folder[0] / "model_index.json", {"force_zeros_for_empty_prompt": zeros})
    with pytest.raises(ValueError, match="model_index.json: force_zeros_for_empty_prompt = .*true"):
        read_source_config(xl_folder[0])


def test_a_latent_consistency_model_is_read_under_its_own_name(folder):
    rewrite_json(folder / "model_index.json", {"_class_name": "LatentConsistencyModelPipeline"})
    rewrite_json(folder / "unet" / "config.json", {"time_cond_proj_dim": 32})
    assert read_source_config(folder).unet.time_cond_proj_dim == 32


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("text_encoder_2", {"hidden_size": 45}, "dim = 64 must equal text hidden_size = 69"),
        (
            "text_encoder_2",
            {"projection_dim": 16},
            "unet pooled text = 20 must equal text_encoder_2 projection_dim = 16",
        ),
        ("text_encoder_2", {"vocab_size": 500}, "text_encoder_2: the tokenizer has ids up to 513"),
        ("unet", {"in_channels": 9}, "in_channels = 9 must equal vae latent_channels = 4"),
    ],
)
def test_parts_of_stable_diffusion_xl_that_do_not_fit_are_refused(xl_folder, name, edit, message):
    rewrite_json(xl_folder[0] / name / "config.json", edit)
    with pytest.raises(ValueError, match=message):
        read_source_config(xl_folder[0])


def test_a_unet_of_stable_diffusion_xl_in_another_pipeline_is_refused(xl_folder):
    rewrite_json(xl_folder[0] / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    with pytest.raises(ValueError, match="cross_attention_dim = 64 must equal text"):
        read_source_config(xl_folder[0])


def test_tokenizers_that_differ_in_more_than_padding_are_refused(xl_folder):
    folder, _ = xl_folder
    path = folder / "tokenizer_2" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer and tokenizer_2 differ in vocab"):
        read_source_config(folder)


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
        read_source_config(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model_index.json'}: {pipeline}")
    assert " is not supported, only StableDiffusionPipeline" in message
    assert message.endswith("name a text-to-image checkpoint of one of them")


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("unet", {"sample_size": 4096}, r"sample_size = 4096 \(8192 pixels\) would take .* GiB"),
        ("unet", {"sample_size": 65536}, "sample_size = 65536, expected 1 to 4096"),
        ("vae", {"latent_channels": 65536}, "latent_channels = 65536, expected 1 to 256"),
        ("unet", {"block_out_channels": [65536, 65536]}, "its weights would take .* GiB"),
    ],
)
def test_a_model_that_no_device_can_hold_is_refused_before_tracing(folder, name, edit, message):
    rewrite_json(folder / name / "config.json", edit)
    with pytest.raises(UserError, match=message):
        read_source_config(folder)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("unet/config.json", {"block_out_channels": list(range(10**6))}),
        ("unet/config.json", {"attention_head_dim": [8] * 10**6}),
        ("unet/config.json", {"x" * 10**6: "y" * 10**6}),
        ("vae/config.json", {"latents_mean": [0.0] * 10**6}),
        ("text_encoder/config.json", {"hidden_act": "\x1b[31m" * 10**6}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 10**6}),
        ("scheduler/scheduler_config.json", {"_class_name": ["\x1b[31m"] * 10**6}),
        ("model_index.json", {"_class_name": "\x1b[31m" * 10**6}),
        ("model_index.json", {"unet": ["\n"] * 10**6}),
        ("capture.json", {"self_layers": ["\x1b"] * 10**6, "cross_layers": []}),
    ],
)
def test_messages_about_configs_are_short_and_safe_for_a_terminal(folder, name, edit):
    (folder / "capture.json").write_text("{}")
    rewrite_json(folder / name, edit)
    with pytest.raises(UserError) as caught:
        read_source_config(folder)
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("tokenizer/tokenizer.json", {"added_tokens": 1}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "a"}),
        ("tokenizer/tokenizer_config.json", {"pad_token": 3}),
    ],
)
def test_a_damaged_tokenizer_gives_a_user_error(folder, name, edit):
    rewrite_json(folder / name, edit)
    with pytest.raises(UserError, match=str(folder / "tokenizer")):
        read_source_config(folder)


def test_an_unknown_option_of_the_scheduler_is_refused(folder):
    with pytest.raises(UserError, match="scheduler_options: 'pndm' has no sharpness"):
        read_source_config(folder, scheduler_options={"sharpness": 1})


@pytest.mark.parametrize(
    "pipeline", ["StableDiffusionImg2ImgPipeline", "LatentConsistencyModelImg2ImgPipeline"]
)
def test_a_folder_saved_by_an_image_to_image_pipeline_is_the_same_model(folder, config, pipeline):
    rewrite_json(folder / "model_index.json", {"_class_name": pipeline})
    assert read_source_config(folder) == config


def test_a_folder_of_xl_saved_by_an_image_to_image_pipeline_is_the_same_model(xl_folder):
    folder, config = xl_folder
    rewrite_json(folder / "model_index.json", {"_class_name": "StableDiffusionXLImg2ImgPipeline"})
    assert read_source_config(folder) == config


def test_later_half_keeps_the_layers_that_the_model_chose(folder):
    published = read_source_config(folder, capture="later_half").capture
    assert published.calls == (0.5, 1.0)
    assert published == dataclasses.replace(read_source_config(folder).capture, calls=(0.5, 1.0))
    cross, own = published.cross_layers[:1], published.self_layers[:1]
    (folder / "capture.json").write_text(json.dumps({"self_layers": own, "cross_layers": cross}))
    chosen = read_source_config(folder, capture="later_half").capture
    assert chosen == CaptureConfig(cross_layers=cross, self_layers=own, calls=(0.5, 1.0))


@pytest.mark.parametrize(("choice", "near"), [("publishd", "published"), ("zzz", None)])
def test_the_capture_of_a_similar_name_is_suggested(folder, choice, near):
    with pytest.raises(ValueError, match=f"capture='{choice}' is not one of published") as caught:
        read_source_config(folder, capture=choice)
    assert str(caught.value).endswith(f"file; did you mean {near}?" if near else "file")


def test_a_capture_that_does_not_fit_is_refused_with_its_file(folder):
    rewrite_json(folder / "unet" / "config.json", {"sample_size": 8})
    (folder / "capture.json").write_text('{"self_layers": ["x"], "cross_layers": []}')
    path = re.escape(str(folder / "capture.json"))
    with pytest.raises(ValueError, match=f"^{path}: capture: no layer 'x'"):
        read_source_config(folder)


def test_the_vocabulary_is_compared_by_the_largest_token_id(folder):
    path = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[next(iter(vocabulary))] = 10**6
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokenizer has ids up to 1000000, but the text encoder"):
        read_source_config(folder)
