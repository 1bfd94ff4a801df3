"""Which files of a hub repository are fetched, and what happens without a network."""

import shutil
import time

import huggingface_hub
import pytest
from huggingface_hub import constants

from seediff_jax.checkpoints import hub
from seediff_jax.checkpoints.load import load_model
from seediff_jax.checkpoints.sources import find_source, read_source_config
from tests.helpers.checkpoint_files import rewrite_json, shard_text_encoder
from tests.helpers.loopback_hub import COMMIT, REPOSITORY, closed_port, serve, use_endpoint
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import (
    random_params,
    small_config,
    small_xl_config,
    write_small_tokenizer,
)

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


def test_without_weights_only_configs_and_tokenizers_are_chosen():
    expected = [name for name in NEEDED if not name.endswith(".safetensors")]
    assert hub.needed_files(LISTING, "configs") == expected


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


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.fp16.index.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("model.safetensors.index.fp16.json", "model-0000{}-of-00002.fp16.safetensors"),
        ("model.safetensors.index.fp16.json", "model.fp16-0000{}-of-00002.safetensors"),
        ("model.bf16.safetensors.index.json", "model.bf16-0000{}-of-00002.safetensors"),
    ],
)
def test_shards_of_a_variant_are_chosen_under_every_naming_scheme(index, shard):
    names = [f"text_encoder/{name}" for name in (index, shard.format(1), shard.format(2))]
    listing = [name for name in LISTING if not name.startswith("text_encoder/model")] + names
    assert [name for name in hub.needed_files(listing) if "text_encoder/model" in name] == names


def test_the_second_text_encoder_is_chosen_with_its_tokenizer():
    """Of Stable Diffusion XL's listing, which also has single files and other formats."""
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


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small model's folder."""
    folder = tmp_path_factory.mktemp("written")
    config = small_config(folder / "tokenizer")
    write_folder(folder / "model", config, random_params(config))
    return folder / "model"


def cached(cache, written, commit="0123abcd", revision="main"):
    """Puts a folder into the cache as one of the revisions of owner/small."""
    model = cache / "models--owner--small"
    (model / "refs").mkdir(parents=True, exist_ok=True)
    (model / "refs" / revision).write_text(commit)
    return shutil.copytree(written, model / "snapshots" / commit)


def refusal(name, **options):
    with pytest.raises(ValueError) as caught:
        load_model(name, **options)
    return str(caught.value)


@pytest.fixture
def no_retries(monkeypatch):
    """The hub's client sleeps before it asks again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it asks a second time"))


def test_a_download_fetches_the_needed_files_alone_and_serves_without_a_network(
    cache, written, tmp_path, capfd, request
):
    repository = shutil.copytree(written, tmp_path / "repository")
    (repository / "README.md").write_text("not needed")
    (repository / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not needed")
    with serve(repository) as asked:
        got = load_model(REPOSITORY)
    assert got.weights_hash == load_model(written).weights_hash
    assert got.commit == COMMIT and load_model(written).commit is None
    names = {path.partition(f"{COMMIT}/")[2] for path in asked if "/resolve/" in path}
    needed = hub.needed_files([p.relative_to(written).as_posix() for p in written.rglob("*")])
    assert names == set(needed)
    capfd.readouterr()
    request.getfixturevalue("no_retries")
    with use_endpoint(closed_port()):
        assert hub.fetch(REPOSITORY).name == COMMIT
    assert capfd.readouterr() == ("", "")


def test_a_refused_connection_is_reported_without_retries(cache, no_retries, capfd):
    with use_endpoint(closed_port()):
        message = refusal("models/mistyped")
    assert "'models/mistyped': no such folder" in message
    assert "cannot be reached" in message and "Connection refused" in message
    assert capfd.readouterr() == ("", "")


def test_a_connection_lost_during_the_download_gives_one_line(cache, written, monkeypatch, capfd):
    """The listing comes, then the connection is gone."""
    with serve(written):
        files = hub._list_files(REPOSITORY, None)
    monkeypatch.setattr(hub, "_list_files", lambda hub_id, revision: files)
    with use_endpoint(closed_port()):
        message = refusal(REPOSITORY)
    assert "'owner/small'" in message and "cannot be reached" in message
    assert message.isprintable() and len(message) < 1000
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_temporary_error_of_the_hub_falls_back_to_the_cache(cache, written, monkeypatch, status):
    folder = cached(cache, written)
    answer_with(monkeypatch, status)
    assert hub.fetch("owner/small") == folder


def test_a_cache_with_only_a_tokenizer_is_reported_as_incomplete(cache, written):
    folder = cached(cache, written)
    for path in folder.iterdir():
        if path.name != "tokenizer":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with use_endpoint(closed_port()):
        message = refusal("owner/small")
    assert "'owner/small': the Hugging Face hub cannot be reached (" in message
    assert "its cache lacks model_index.json; connect to the network once" in message
    assert hub.fetch("owner/small", parts="tokenizers") == folder


@pytest.mark.parametrize(
    "name",
    [
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "tokenizer/vocab.json",
        "text_encoder/model-00002-of-00002.safetensors",
    ],
)
def test_what_a_cache_lacks_is_named(cache, written, name):
    folder = cached(cache, written)
    shard_text_encoder(folder, "model.safetensors.index.json", "model-{:05}-of-00002.safetensors")
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    assert hub.missing_files(folder) == []
    (folder / name).unlink()
    assert hub.missing_files(folder) == [name]
    assert f"its cache lacks {name};" in refusal("owner/small")


def test_xl_needs_both_text_encoders_and_tokenizers(tmp_path):
    config = small_xl_config(tmp_path / "made")
    write_folder(tmp_path / "model", config, random_params(config))
    assert hub.missing_files(tmp_path / "model") == []
    for name in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(tmp_path / "model" / name)
    lost = [
        "text_encoder_2/config.json",
        "tokenizer_2/vocab.json",
        "tokenizer_2/merges.txt",
    ]
    assert hub.missing_files(tmp_path / "model", "configs") == lost
    assert hub.missing_files(tmp_path / "model") == [*lost, "text_encoder_2/model.safetensors"]


def test_a_repository_without_safetensors_is_refused_with_advice(cache, written, tmp_path):
    repository = shutil.copytree(written, tmp_path / "repository")
    unet = repository / "unet" / "diffusion_pytorch_model.safetensors"
    unet.rename(unet.with_suffix(".bin"))
    with serve(repository):
        message = refusal(REPOSITORY)
    assert "'owner/small' has no unet/diffusion_pytorch_model.safetensors; a diffusers" in message
    assert "StableDiffusionPipeline.from_pretrained('owner/small')" in message


def test_a_pipeline_of_another_kind_is_named_as_such(cache, written):
    folder = cached(cache, written)
    rewrite_json(folder / "model_index.json", lambda index: index | {"_class_name": "FluxPipeline"})
    assert "FluxPipeline (a transformer instead of a UNet) is not" in refusal("owner/small")


def test_missing_files_of_a_cached_tokenizer_are_listed(tmp_path):
    assert hub.missing_files(tmp_path, "tokenizers") == ["vocab.json", "merges.txt"]
    write_small_tokenizer(tmp_path / "tokenizer")
    assert hub.missing_files(tmp_path, "tokenizers") == []
    (tmp_path / "tokenizer" / "merges.txt").unlink()
    assert hub.missing_files(tmp_path, "tokenizers") == ["tokenizer/merges.txt"]


def test_a_cached_model_loads_without_a_network(cache, written):
    cached(cache, written)
    loaded = load_model("owner/small")
    assert loaded.model_id == "owner/small"
    assert loaded.weights_hash == load_model(written).weights_hash


def test_the_message_names_a_missing_network_and_cache(cache):
    with pytest.raises(ValueError) as caught:
        load_model("owner/unknown")
    message = str(caught.value)
    assert "'owner/unknown': no such folder" in message
    assert "cannot be reached" in message and "its cache has no copy" in message


def answer_with(monkeypatch, status):
    def refuse(self, hub_id, revision, timeout):
        response = type("Response", (), {"status_code": status, "headers": {}, "request": None})()
        raise huggingface_hub.errors.HfHubHTTPError(f"{status}: not found", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


def test_a_name_that_the_hub_refuses_is_named(cache, monkeypatch):
    answer_with(monkeypatch, 404)
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
def test_hub_ids_are_distinguished_from_paths(name, expected):
    assert hub.is_hub_id(name) == expected


def test_a_cached_revision_is_found(cache, written, tmp_path, monkeypatch):
    asked = []

    def model_info(self, hub_id, revision, timeout):
        asked.append((hub_id, revision))
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    cached(cache, written)
    config = small_config(tmp_path / "tokenizer")
    write_folder(tmp_path / "other", config, random_params(config, seed=1))
    other = cached(cache, tmp_path / "other", "4567ef01", "other")
    expected = load_model(other).weights_hash
    assert load_model("owner/small", revision="other").weights_hash == expected
    assert load_model("owner/small").weights_hash != expected
    assert asked == [("owner/small", "other"), ("owner/small", None)]
    with pytest.raises(ValueError, match="'owner/small' at revision 'third': no such folder"):
        load_model("owner/small", revision="third")


def test_a_revision_of_a_local_model_is_refused(tmp_path):
    for name in ("shapes", tmp_path):
        with pytest.raises(
            ValueError, match="revision='main' is given, but only models of the hub"
        ):
            load_model(name, revision="main")


def test_only_the_files_of_a_tokenizer_are_fetched():
    names = ["config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"]
    needed = ["merges.txt", "tokenizer.json", "vocab.json"]
    assert hub.needed_files(names, "tokenizers") == needed
    inside = [f"tokenizer/{name}" for name in needed]
    second = ["tokenizer_2/tokenizer_config.json", "tokenizer_2/vocab.json"]
    listing = [*names, *inside, *second, "unet/config.json"]
    assert hub.needed_files(listing, "tokenizers") == inside + second


def test_without_weights_only_configs_are_downloaded(cache, written, tmp_path):
    with serve(written) as asked:
        folder = find_source(REPOSITORY, weights=False)
    assert not [path for path in asked if "safetensors" in path]
    assert read_source_config(folder).unet == load_model(written).unet_config
    with use_endpoint(closed_port()):
        assert find_source(REPOSITORY, weights=False) == folder
        assert "its cache lacks text_encoder/model.safetensors" in refusal(REPOSITORY)
