"""Checkpoint folders with damaged, missing, foreign or unsafe files: refused by name."""

import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seediff_jax.checkpoints.sources import read_source_config
from seediff_jax.errors import UserError
from tests.helpers.checkpoint_files import FILES, change, refusal, rewrite_json, shard_text_encoder
from tests.helpers.model_folders import read_params, write_folder
from tests.helpers.random_models import random_params, small_config


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small model's folder."""
    folder = tmp_path_factory.mktemp("written")
    config = small_config(folder / "tokenizer")
    write_folder(folder / "model", config, random_params(config))
    return folder / "model"


@pytest.fixture(scope="module")
def config(written):
    return read_source_config(written)


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it, to be spoiled."""
    return shutil.copytree(written, tmp_path / "copy")


@pytest.mark.parametrize("fault", ["exchanged", "foreign", "unlisted"])
def test_shards_of_several_checkpoints_are_refused(folder, config, fault):
    index, shard = "model.safetensors.index.json", "model-{:05}-of-00002.safetensors"
    shard_text_encoder(folder, index, shard)
    first, second = (folder / "text_encoder" / shard.format(i) for i in (1, 2))
    tensors = load_file(first)
    name = min(tensors)
    if fault == "exchanged":
        other = load_file(second)
        save_file(tensors, second)
        save_file(other, first)
        expected = f"- {name}: not in {first.name}", f"+ {name}: in {second.name}, not listed"
    elif fault == "foreign":
        save_file({"other." + key: tensor for key, tensor in tensors.items()}, first)
        expected = f"- {name}: not in {first.name}", f"+ other.{name}: in {first.name}"
    else:
        save_file(tensors | {"extra": np.zeros(3)}, first)
        expected = (f"+ extra: in {first.name}, not listed",)
    message = refusal(folder, config)
    assert message.startswith(f"{folder / 'text_encoder' / index} does not fit the shards")
    assert all(line in message for line in expected), message


def test_a_damaged_shard_and_a_damaged_index_are_named(folder, config):
    index, shard = "model.safetensors.index.json", "model-{:05}-of-00002.safetensors"
    shard_text_encoder(folder, index, shard)
    path = folder / "text_encoder" / shard.format(2)
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(folder, config).startswith(f"{path} is damaged or cut short")
    path = folder / "text_encoder" / index
    expected = f"{path} is damaged: it has no weight_map of file names; fetch it again"
    for content in ('{"weight_map": {"a": 3}}', '{"weight_map": {}}'):
        path.write_text(content)
        assert refusal(folder, config) == expected


def test_all_names_are_checked_before_a_weight_is_read(folder, config):
    """NaN in the first component would be reported first, if it were read first."""
    change(folder, "text_encoder", lambda t: {k: v * np.float32(np.nan) for k, v in t.items()})
    change(folder, "vae", lambda t: {k: v for k, v in t.items() if k != "quant_conv.bias"})
    assert refusal(folder, config).startswith(f"{folder / 'vae'}: 1 weights do not fit")


def test_float64_beyond_float32_is_refused_by_name(folder, config):
    change(folder, "vae", lambda t: t | {"quant_conv.bias": np.full(8, 1e300)})
    assert refusal(folder, config) == f"{folder / 'vae'}: NaN or infinity in quant_conv.bias"


def test_all_differences_are_reported_at_once(folder, config):
    def spoil(tensors):
        del tensors["conv_in.bias"], tensors["conv_out.bias"]
        tensors["class_embedding.weight"] = np.zeros((2, 3), np.float32)
        tensors["conv_in.weight"] = np.zeros((16, 9, 3, 3), np.float32)
        tensors["conv_norm_out.bias"] = np.zeros(16, np.int8)
        return tensors

    change(folder, "unet", spoil)
    headline = f"{folder / 'unet'}: 5 weights do not fit the config: "
    message = refusal(folder, config)
    assert message.startswith(headline)
    assert sorted(message.removeprefix(headline).split("; ")) == [
        "! conv_in.weight (16, 9, 3, 3): the config says (16, 4, 3, 3)",
        "! conv_norm_out.bias: dtype I8, expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2",
        "+ class_embedding.weight (2, 3): unexpected",
        "- conv_in.bias (16,): missing",
        "- conv_out.bias (4,): missing",
    ]


def test_a_tensor_in_two_spellings_is_refused(folder, config):
    name = "decoder.mid_block.attentions.0.to_q.bias"
    change(folder, "vae", lambda t: t | {name.replace("to_q", "query"): t[name].copy()})
    assert "the same tensor as" in refusal(folder, config)


def test_a_config_that_contradicts_the_weights_is_refused(folder):
    rewrite_json(folder / "unet" / "config.json", lambda c: c | {"layers_per_block": 2})
    message = refusal(folder, read_source_config(folder))
    assert "100 weights do not fit" in message and " more" in message
    assert "- down_blocks.0.attentions.1.norm.bias (16,): missing" in message
    assert "! up_blocks." in message and len(message) < 4000


def test_nan_and_infinity_are_refused_by_name(folder, config):
    def spoil(tensors):
        tensors["conv_in.bias"][3] = np.nan
        tensors["conv_out.weight"][0, 0, 0, 0] = np.inf

    change(folder, "unet", spoil)
    assert "NaN or infinity in conv_in.bias, conv_out.weight" in refusal(folder, config).replace(
        "conv_out.weight, conv_in.bias", "conv_in.bias, conv_out.weight"
    )


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(folder, config, kept):
    path = folder / FILES["vae"]
    path.write_bytes(path.read_bytes()[:kept])
    message = refusal(folder, config)
    assert str(path) in message and "damaged or cut short" in message


def test_pickles_are_never_opened(folder, config):
    class Bomb:
        def __reduce__(self):
            return (os._exit, (1,))

    (folder / FILES["unet"]).unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    message = refusal(folder, config)
    assert "only diffusion_pytorch_model.bin" in message
    assert "StableDiffusionPipeline.from_pretrained" in message


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match="is not a file, but a folder, pipe or device"):
        read_params(folder, read_source_config(folder))


def test_thousands_of_unexpected_tensors_give_a_short_message(folder, config):
    odd = {f"\x1b[31m{i}": np.zeros(1, np.float32) for i in range(20_000)}
    change(folder, "unet", lambda tensors: tensors | odd)
    message = refusal(folder, config)
    assert "20000 weights do not fit" in message and "and 19990 more" in message
    assert len(message) < 5000 and message.isprintable()


def test_missing_weights_are_named(folder, config):
    (folder / FILES["text_encoder"]).unlink()
    message = refusal(folder, config)
    assert f"{folder / FILES['text_encoder']} is missing; the folder holds config.json" in message


def test_the_missing_folder_of_a_component_is_named_by_its_file(folder, config):
    shutil.rmtree(folder / "unet")
    message = refusal(folder, config)
    assert message.startswith(f"{folder / FILES['unet']} is missing; the folder holds nothing")
