"""Which files of a hub repository are fetched, and what happens without a network."""

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants
from random_models import random_params, small_config

from seediff_jax import hub
from seediff_jax.checkpoints import write_folder
from seediff_jax.model import load_model

# The listing of Stable Diffusion v1-4, shortened.
LISTING = [
    ".gitattributes",
    "README.md",
    "feature_extractor/preprocessor_config.json",
    "model_index.json",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "sd-v1-4.ckpt",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
NEEDED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_only_the_needed_files_are_chosen():
    assert hub.needed_files(LISTING) == NEEDED


def test_a_plan_needs_no_weights():
    expected = [name for name in NEEDED if not name.endswith(".safetensors")]
    assert hub.config_files(LISTING) == expected


def test_shards_are_chosen_with_their_index():
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    single = "unet/diffusion_pytorch_model.safetensors"
    listing = [name for name in LISTING if name != single] + [index, *shards]
    assert [
        name for name in hub.needed_files(listing) if "diffusion" in name and "unet" in name
    ] == [
        index,
        *shards,
    ]


def test_the_second_text_encoder_is_chosen_with_its_tokenizer():
    """Of Stable Diffusion XL's listing, which has single files and other formats beside it."""
    more = [
        "sd_xl_base_1.0.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_2/model.onnx",
        "text_encoder_2/model.safetensors",
        "tokenizer_2/merges.txt",
        "tokenizer_2/vocab.json",
        "vae_decoder/config.json",
    ]
    chosen = hub.needed_files(LISTING + more)
    assert [name for name in chosen if name not in NEEDED] == [more[i] for i in (1, 4, 5, 6)]


def test_a_download_asks_for_those_files_alone(monkeypatch, tmp_path):
    asked = {}

    def download(hub_id, revision, allow_patterns):
        asked[hub_id, revision] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_files", lambda self, hub_id, revision: LISTING
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.fetch("owner/model") == tmp_path
    assert asked == {("owner/model", None): NEEDED}


def test_a_cached_model_loads_without_a_network(cache, tmp_path):
    config = small_config(tmp_path / "tokenizer")
    write_folder(tmp_path / "written", config, random_params(config))
    model = cache / "models--owner--small"
    shutil.copytree(tmp_path / "written", model / "snapshots" / "0123abcd")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    loaded = load_model("owner/small")
    assert loaded.model_id == "owner/small"
    assert loaded.weights_hash == load_model(tmp_path / "written").weights_hash


def test_no_network_and_no_cached_copy_is_said_plainly(cache):
    with pytest.raises(ValueError) as caught:
        load_model("owner/unknown")
    message = str(caught.value)
    assert "'owner/unknown': no such folder" in message
    assert "cannot be reached" in message and "its cache has no copy" in message


def test_a_name_that_the_hub_refuses_is_named(cache, monkeypatch):
    def refuse(self, hub_id, revision):
        response = type("Response", (), {"status_code": 404, "headers": {}, "request": None})()
        raise huggingface_hub.errors.HfHubHTTPError("404: not found", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    with pytest.raises(ValueError, match="'owner/unknown'.*the hub refuses.*404"):
        load_model("owner/unknown")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CompVis/stable-diffusion-v1-4", True),
        ("shapes", False),
        ("/absolute/path", False),
        ("./relative", False),
        ("a/b/c", False),
    ],
)
def test_hub_ids_are_told_from_paths(name, expected):
    assert hub.is_hub_id(name) == expected


def test_a_revision_is_asked_for_and_found_in_the_cache(cache, tmp_path, monkeypatch):
    asked = []

    def list_repo_files(self, hub_id, revision):
        asked.append((hub_id, revision))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", list_repo_files)
    model = cache / "models--owner--small"
    config = small_config(tmp_path / "tokenizer")
    for number, commit in enumerate(["0123abcd", "4567ef01"]):
        write_folder(model / "snapshots" / commit, config, random_params(config, seed=number))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    (model / "refs" / "other").write_text("4567ef01")
    expected = load_model(model / "snapshots" / "4567ef01").weights_hash
    assert load_model("owner/small", revision="other").weights_hash == expected
    assert load_model("owner/small").weights_hash != expected
    assert asked == [("owner/small", "other"), ("owner/small", None)]
    with pytest.raises(ValueError, match="'owner/small' at revision 'third': no such folder"):
        load_model("owner/small", revision="third")


def test_only_a_model_of_the_hub_has_revisions(tmp_path):
    for name in ("shapes", tmp_path):
        with pytest.raises(ValueError, match="revision='main' is of a model of the hub"):
            load_model(name, revision="main")


def test_of_a_tokenizer_only_its_files_are_fetched():
    names = ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"]
    needed = ["merges.txt", "tokenizer.json", "vocab.json"]
    assert hub.tokenizer_files(names) == needed
    inside = [f"tokenizer/{name}" for name in needed]
    second = ["tokenizer_2/tokenizer_config.json", "tokenizer_2/vocab.json"]
    assert hub.tokenizer_files([*names, *inside, *second, "unet/config.json"]) == inside + second
