"""Checkpoint folders out and in, every spelling that is found in the wild, and every damage."""

import json
import os
import pickle
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_models import random_params, small_config, small_xl_config
from safetensors.numpy import load_file, save_file
from xxhash import xxh3_128

from seediff_jax.checkpoints import read_params, weights_hash, write_folder, write_orbax
from seediff_jax.model_config import read_model_config

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("made") / "tokenizer")


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def written(config, params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "model"
    write_folder(folder, config, params)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of a written folder, to be changed."""
    return shutil.copytree(written, tmp_path / "copy")


def assert_same(got, expected):
    got, expected = flatten_dict(got, sep="/"), flatten_dict(expected, sep="/")
    assert got.keys() == expected.keys()
    for name, leaf in expected.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)


def change(folder, component, edit):
    """Applies `edit` to the dict of tensors of a component."""
    path = folder / FILES[component]
    tensors = load_file(path)
    save_file(edit(dict(tensors)) or tensors, path)


def rewrite_json(path, edit):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content)))


def refusal(folder, config):
    with pytest.raises(ValueError) as caught:
        read_params(folder, config)
    return str(caught.value)


def test_a_written_folder_reads_back_bit_equal(written, config, params):
    assert read_model_config(written) == config
    assert_same(read_params(written, config), params)
    assert not (written / "capture.json").exists()


def test_a_float16_folder_is_half_the_size_and_reads_back_rounded(
    config, params, written, tmp_path
):
    write_folder(tmp_path / "half", config, params, dtype=jnp.float16)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert_same(read_params(tmp_path / "half", config), rounded)
    sizes = [(root / FILES["unet"]).stat().st_size for root in (tmp_path / "half", written)]
    assert sizes[0] < 0.6 * sizes[1]


def test_an_orbax_folder_reads_back_bit_equal(config, params, tmp_path):
    write_orbax(tmp_path / "model", config, params)
    assert read_model_config(tmp_path / "model") == config
    assert_same(read_params(tmp_path / "model", config), params)


def test_files_of_float16_and_bfloat16_are_read_exactly(folder, config, params):
    change(folder, "unet", lambda tensors: {k: v.astype(np.float16) for k, v in tensors.items()})
    change(folder, "vae", lambda t: {k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()})
    got = read_params(folder, config)
    for part, dtype in (("unet", np.float16), ("vae", ml_dtypes.bfloat16)):
        rounded = jax.tree.map(lambda x, to=dtype: x.astype(to).astype(np.float32), params[part])
        assert_same(got[part], rounded)


@pytest.mark.parametrize(
    "name",
    ["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bf16.safetensors"],
)
def test_a_variant_is_read_where_there_is_nothing_better(folder, config, params, name):
    (folder / FILES["unet"]).rename(folder / "unet" / name)
    assert_same(read_params(folder, config), params)


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.json", "model-{:05}-of-00002.safetensors"),
        ("model.safetensors.index.fp16.json", "model.fp16-{:05}-of-00002.safetensors"),
        ("model.fp16.safetensors.index.json", "model.fp16-{:05}-of-00002.safetensors"),
    ],
)
def test_shards_are_read_together(folder, config, params, index, shard):
    index = shard_text_encoder(folder, index, shard)
    assert_same(read_params(folder, config), params)
    (folder / "text_encoder" / shard.format(2)).unlink()
    message = refusal(folder, config)
    assert index in message and f"missing: {shard.format(2)}" in message


def shard_text_encoder(folder, index, shard):
    tensors = load_file(folder / FILES["text_encoder"])
    (folder / FILES["text_encoder"]).unlink()
    weight_map = {name: shard.format(1 + i % 2) for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / "text_encoder" / file)
    (folder / "text_encoder" / index).write_text(json.dumps({"weight_map": weight_map}))
    return index


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
        expected = f"- {name}: not in {first.name}", f"+ {name}: in {second.name}, not listed so"
    elif fault == "foreign":
        save_file({"other." + key: tensor for key, tensor in tensors.items()}, first)
        expected = f"- {name}: not in {first.name}", f"+ other.{name}: in {first.name}"
    else:
        save_file(tensors | {"extra": np.zeros(3)}, first)
        expected = (f"+ extra: in {first.name}, not listed so",)
    message = refusal(folder, config)
    assert message.startswith(f"{folder / 'text_encoder' / index} is not of the shards beside it")
    assert all(line in message for line in expected), message


def test_a_damaged_shard_and_a_damaged_index_are_named(folder, config):
    index, shard = "model.safetensors.index.json", "model-{:05}-of-00002.safetensors"
    shard_text_encoder(folder, index, shard)
    path = folder / "text_encoder" / shard.format(2)
    path.write_bytes(path.read_bytes()[:-4])
    assert refusal(folder, config).startswith(f"{path} is damaged or cut short")
    path = folder / "text_encoder" / index
    path.write_text('{"weight_map": {"a": 3}}')
    assert refusal(folder, config) == f"{path} is damaged: it has no weight_map of file names"


def test_all_names_are_checked_before_a_weight_is_read(folder, config):
    """NaN in the first component would be reported first, if it were read first."""
    change(folder, "text_encoder", lambda t: {k: v * np.float32(np.nan) for k, v in t.items()})
    change(folder, "vae", lambda t: {k: v for k, v in t.items() if k != "quant_conv.bias"})
    assert refusal(folder, config).startswith(f"{folder / 'vae'}: 1 weights do not fit")


def test_large_finite_weights_are_no_infinity(folder, config, params):
    """Their sum is beyond float32, each of them is not."""
    big = np.float32(3e38)
    change(folder, "unet", lambda t: t | {"conv_in.bias": np.full(16, big)})
    got = read_params(folder, config)
    np.testing.assert_array_equal(got["unet"]["conv_in"]["bias"], np.full(16, big))


def test_float64_beyond_float32_is_refused_by_name(folder, config):
    change(folder, "vae", lambda t: t | {"quant_conv.bias": np.full(8, 1e300)})
    assert refusal(folder, config) == f"{folder / 'vae'}: NaN or infinity in quant_conv.bias"


def test_older_and_newer_spellings_are_read(folder, config, params):
    """Text encoder without its prefix and with position_ids; VAE attention of early diffusers."""

    def respell(tensors):
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        return tensors | {"embeddings.position_ids": np.arange(12)[None]}

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def respell_vae(tensors):
        return {
            re.sub(r"(to_q|to_k|to_v|to_out\.0)", lambda hit: old[hit.group()], name): tensor
            for name, tensor in tensors.items()
        }

    change(folder, "text_encoder", respell)
    change(folder, "vae", respell_vae)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in load_file(folder / FILES["vae"])
    assert_same(read_params(folder, config), params)


def test_all_differences_are_reported_at_once(folder, config):
    def spoil(tensors):
        del tensors["conv_in.bias"], tensors["conv_out.bias"]
        tensors["class_embedding.weight"] = np.zeros((2, 3), np.float32)
        tensors["conv_in.weight"] = np.zeros((16, 9, 3, 3), np.float32)
        tensors["conv_norm_out.bias"] = np.zeros(16, np.int8)
        return tensors

    change(folder, "unet", spoil)
    lines = refusal(folder, config).splitlines()
    assert lines[0] == f"{folder / 'unet'}: 5 weights do not fit the config:"
    assert sorted(line.strip() for line in lines[1:]) == [
        "! conv_in.weight (16, 9, 3, 3): the config says (16, 4, 3, 3)",
        "! conv_norm_out.bias: dtype I8, needed F32, F16, BF16 or F64",
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
    message = refusal(folder, read_model_config(folder))
    assert "- down_blocks.0.resnets.1.conv1.weight (16, 16, 3, 3): missing" in message


def test_nan_and_infinity_are_refused_by_name(folder, config):
    def spoil(tensors):
        tensors["conv_in.bias"][3] = np.nan
        tensors["conv_out.weight"][0, 0, 0, 0] = np.inf

    change(folder, "unet", spoil)
    assert "NaN or infinity in conv_in.bias, conv_out.weight" in refusal(folder, config).replace(
        "conv_out.weight, conv_in.bias", "conv_in.bias, conv_out.weight"
    )


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_file_cut_short_is_refused(folder, config, kept):
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


def test_missing_weights_are_named(folder, config):
    (folder / FILES["text_encoder"]).unlink()
    message = refusal(folder, config)
    assert (
        f"{folder / FILES['text_encoder']} is missing; the folder holds ['config.json']" in message
    )


def test_weights_beyond_float16_are_refused_and_leave_nothing_behind(config, params, tmp_path):
    large = jax.tree.map(np.copy, params)
    large["vae"]["quant_conv"]["bias"][0] = 1e5
    with pytest.raises(ValueError, match="vae as float16: NaN or infinity in quant_conv.bias"):
        write_folder(tmp_path / "model", config, large, dtype=np.float16)
    assert not list(tmp_path.iterdir())


def test_params_of_another_model_are_not_written(config, params, tmp_path):
    fewer = params | {"vae": {k: v for k, v in params["vae"].items() if k != "quant_conv"}}
    for write in (write_folder, write_orbax):
        with pytest.raises(ValueError, match=r"- vae/quant_conv/bias \(8,\): missing"):
            write(tmp_path / "model", config, fewer)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_overwritten(config, params, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists; name a new folder"):
        write_folder(tmp_path, config, params)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_damaged_orbax_folder_is_refused(config, params, tmp_path):
    write_orbax(tmp_path / "model", config, params)
    shutil.rmtree(tmp_path / "model" / "params")
    (tmp_path / "model" / "params").mkdir()
    with pytest.raises(ValueError, match="is no orbax checkpoint, or damaged"):
        read_params(tmp_path / "model", config)


def test_the_hash_follows_the_values_and_nothing_else(config, params, tmp_path):
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    write_folder(tmp_path / "half", config, rounded, dtype=np.float16)
    write_orbax(tmp_path / "orbax", config, rounded)
    hashes = {weights_hash(read_params(tmp_path / name, config)) for name in ("half", "orbax")}
    assert hashes == {weights_hash(rounded)} != {weights_hash(params)}


def test_a_folder_of_stable_diffusion_xl_reads_back_bit_equal(tmp_path):
    config = small_xl_config(tmp_path / "made")
    params = random_params(config)
    write_folder(tmp_path / "folder", config, params)
    write_orbax(tmp_path / "orbax", config, params)
    tensors = load_file(tmp_path / "folder" / "text_encoder_2" / "model.safetensors")
    kernel = params["text_encoder_2"]["text_projection"]["kernel"]
    np.testing.assert_array_equal(tensors["text_projection.weight"], kernel.T)
    assert "text_model.encoder.layers.2.mlp.fc1.weight" in tensors
    for name in ("folder", "orbax"):
        assert_same(read_params(tmp_path / name, config), params)


def test_the_hash_is_xxh3_of_paths_shapes_and_the_hashes_of_values():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    params = {"vae": {"kernel": jnp.array(kernel)}}
    params["unet"] = {"bias_1": np.zeros(3), "bias": {"scale": np.ones(1)}}
    digest = xxh3_128()
    for line, values in (
        ("unet/bias/scale (1,)", [1]),
        ("unet/bias_1 (3,)", [0] * 3),
        ("vae/kernel (2, 3)", [0, 3, 1, 4, 2, 5]),  # in the order of a checkpoint
    ):
        content = np.array(values, np.float32).tobytes()
        digest.update(f"{line}\n".encode() + xxh3_128(content).digest())
    assert weights_hash(params) == digest.hexdigest()
