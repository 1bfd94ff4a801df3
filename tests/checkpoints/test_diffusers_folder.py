"""Checkpoint folders are written and read, in every published spelling."""

import os
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from xxhash import xxh3_128

from seediff_jax.checkpoints.sources import read_source_config
from tests.helpers.checkpoint_files import (
    FILES,
    assert_same,
    change,
    refusal,
    shard_text_encoder,
    weights_hash,
)
from tests.helpers.model_folders import read_params, write_folder, write_orbax
from tests.helpers.random_models import random_params, small_config, small_xl_config


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


def test_a_written_folder_reads_back_bit_equal(written, config, params):
    assert read_source_config(written) == config
    assert_same(read_params(written, config), params)
    assert not (written / "capture.json").exists()


def test_a_float16_folder_reads_back_rounded_and_has_half_the_size(
    config, params, written, tmp_path
):
    write_folder(tmp_path / "half", config, params, dtype=jnp.float16)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert_same(read_params(tmp_path / "half", config), rounded)
    sizes = [(root / FILES["unet"]).stat().st_size for root in (tmp_path / "half", written)]
    assert sizes[0] < 0.6 * sizes[1]


def test_an_orbax_folder_reads_back_bit_equal(config, params, tmp_path):
    write_orbax(tmp_path / "model", config, params)
    assert read_source_config(tmp_path / "model") == config
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
def test_a_variant_is_read_if_there_are_no_other_weights(folder, config, params, name):
    (folder / FILES["unet"]).rename(folder / "unet" / name)
    assert_same(read_params(folder, config), params)


@pytest.mark.parametrize(
    ("index", "shard"),
    [
        ("model.safetensors.index.json", "model-{:05}-of-00002.safetensors"),
        ("model.safetensors.index.fp16.json", "model.fp16-{:05}-of-00002.safetensors"),
        ("model.fp16.safetensors.index.json", "model.fp16-{:05}-of-00002.safetensors"),
        ("model.safetensors.fp16.index.json", "model-{:05}-of-00002.fp16.safetensors"),
        ("model.safetensors.index.fp16.json", "model-{:05}-of-00002.fp16.safetensors"),
    ],
)
def test_shards_are_read_together(folder, config, params, index, shard):
    index = shard_text_encoder(folder, index, shard)
    assert_same(read_params(folder, config), params)
    (folder / "text_encoder" / shard.format(2)).unlink()
    message = refusal(folder, config)
    assert index in message and f"missing: {shard.format(2)}" in message


def test_other_tensors_of_clip_in_a_folder_are_ignored(folder, config, params):
    more = {
        "logit_scale": np.ones((), np.float32),
        "text_projection.weight": np.ones((2, 2), np.float32),
        "vision_model.post_layernorm.bias": np.ones(2, np.float32),
        "visual_projection.weight": np.ones((2, 2), np.float32),
        "vision_model.embeddings.position_ids": np.arange(3),
    }
    change(folder, "text_encoder", lambda tensors: tensors | more)
    assert_same(read_params(folder, config), params)


def test_large_finite_weights_are_not_taken_for_infinity(folder, config, params):
    """Their sum is beyond float32, each of them is not."""
    big = np.float32(3e38)
    change(folder, "unet", lambda t: t | {"conv_in.bias": np.full(16, big)})
    got = read_params(folder, config)
    np.testing.assert_array_equal(got["unet"]["conv_in"]["bias"], np.full(16, big))


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


def test_weights_beyond_float16_are_refused_and_leave_nothing_behind(config, params, tmp_path):
    large = jax.tree.map(np.copy, params)
    large["vae"]["quant_conv"]["bias"][0] = 1e5
    with pytest.raises(ValueError, match="vae as float16: NaN or infinity in quant_conv.bias"):
        write_folder(tmp_path / "model", config, large, dtype=np.float16)
    assert not list(tmp_path.iterdir())


def test_weights_can_be_read_by_all_who_can_read_their_folder(written):
    (weights,) = (written / "unet").glob("*.safetensors")
    assert weights.stat().st_mode & 0o777 == (written / "unet").stat().st_mode & 0o666


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


@pytest.fixture(scope="module")
def orbax_folder(config, params, tmp_path_factory):
    """As converted: with arrays of JAX."""
    folder = tmp_path_factory.mktemp("orbax") / "model"
    write_orbax(folder, config, jax.tree.map(jnp.asarray, params))
    return folder


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "garbage": lambda path: path.write_bytes(b"\x93garbage" * (path.stat().st_size // 8 + 1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "names", ["_METADATA", "manifest.ocdbt", "d/*", "ocdbt.process_0/d/*", "**/*"]
)
def test_a_damaged_orbax_folder_is_refused(orbax_folder, config, tmp_path, capfd, names, damage):
    folder = shutil.copytree(orbax_folder, tmp_path / "model")
    paths = [path for path in (folder / "params").glob(names) if path.is_file()]
    assert paths
    for path in paths:
        DAMAGES[damage](path)
    message = refusal(folder, config)
    assert message.startswith(f"{folder / 'params'} is not an orbax checkpoint, or damaged (")
    assert message.endswith("again with python -m seediff_jax.convert") and "\n" not in message
    assert "NoneType" not in message and "tensorstore_spec" not in message
    # Reads that are still on their way would complain about it for a while.
    assert "Event loop" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"{}",
        b"null",
        b'{"tree_metadata": [1]}',
        b"\x1b[31m" * 10**6,
    ],
)
def test_garbage_in_the_metadata_of_orbax_is_refused_in_one_line(
    orbax_folder, config, tmp_path, content
):
    folder = shutil.copytree(orbax_folder, tmp_path / "model")
    (folder / "params" / "_METADATA").write_bytes(content)
    message = refusal(folder, config)
    assert message.startswith(f"{folder}") and len(message) < 5000 and message.isprintable()


def test_a_pipe_in_an_orbax_folder_is_refused_without_waiting(orbax_folder, config, tmp_path):
    folder = shutil.copytree(orbax_folder, tmp_path / "model")
    (folder / "params" / "_METADATA").unlink()
    os.mkfifo(folder / "params" / "_METADATA")
    assert f"{folder / 'params' / '_METADATA'} is not a regular file" in refusal(folder, config)


def test_an_orbax_folder_of_jax_arrays_reads_back_bit_equal(orbax_folder, config, params):
    assert_same(read_params(orbax_folder, config), params)


def test_an_empty_params_folder_is_orbax_only_without_safetensors(folder, config, params):
    (folder / "params").mkdir()
    assert_same(read_params(folder, config), params)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert "_METADATA) does not exist" in refusal(folder, config)


def test_the_hash_depends_only_on_the_values(config, params, tmp_path):
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
