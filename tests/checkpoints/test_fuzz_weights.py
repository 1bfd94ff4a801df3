"""Thousands of damaged and hostile safetensors files: each is refused by name, or read right."""

import json
import struct

import numpy as np
import pytest
import safetensors
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from seediff_jax.checkpoints.lora import lora_merges
from seediff_jax.checkpoints.parameters import parameters
from seediff_jax.checkpoints.safetensors_files import DTYPES, open_weights
from seediff_jax.checkpoints.single_file import read_family
from seediff_jax.checkpoints.sources import read_source_config, read_source_weights
from tests.helpers.fuzzing import FEW_OR_THOUSANDS, changed, require_refusal, texts, try_all
from tests.helpers.model_folders import write_folder
from tests.helpers.original_layout import original_clip, original_unet, original_vae
from tests.helpers.random_models import random_params, small_config

TENSORS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv.bias": np.ones(2, np.float16),
    "ids": np.arange(3),
    "empty": np.zeros((0, 4), np.float32),
}
LORA = {
    "lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3), np.float32),
    "lora_unet_conv_in.lora_up.weight": np.ones((16, 2, 1, 1), np.float16),
    "lora_unet_conv_in.alpha": np.array(2),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": np.ones(
        (3, 24), np.float32
    ),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": np.ones(
        (24, 3), np.float64
    ),
}
STATED = {
    "text_encoder.lora_alpha": 6,
    "text_encoder.r": 3,
    "unet.lora_alpha": 2,
    "unet.alpha_pattern": {"conv_in": 1},
    "unet.use_rslora": True,
}


@st.composite
def lora_files(draw):
    """A LoRA whose tensors or metadata were changed."""
    stated = draw(st.just(json.dumps(STATED).encode()) | texts(STATED))
    stated = stated.decode("utf-8", "replace")
    return save(draw(changed(LORA)), metadata={"lora_adapter_metadata": stated})


@st.composite
def weight_files(draw):
    """A safetensors file whose header, its length or the bytes are not what was written."""
    whole = save(TENSORS, metadata={"format": "pt"})
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = whole[8 : 8 + length], whole[8 + length :]
    text = draw(st.just(header) | texts(json.loads(header)))
    lengths = st.sampled_from([0, 1, 7, 8, 2**24, 2**31, 2**32, 2**63, 2**64 - 1])
    length = draw(st.just(len(text)) | st.just(len(text)) | lengths | st.integers(0, 500))
    content = struct.pack("<Q", length) + text + data
    if draw(st.integers(0, 3)) == 0:
        content = content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=9))
    return content


def check_weights(path, content):
    path.write_bytes(content)

    def read():
        tensors, _ = open_weights(path)
        read = [tensor for tensor in tensors.values() if tensor.dtype in DTYPES]
        return {tensor.name: (tensor.read(), tensor.dtype) for tensor in read}

    got = require_refusal(read, path)
    if got is not None:
        expected = {name: stored["data"] for name, stored in safetensors.deserialize(content)}
        for name, (array, dtype) in got.items():
            values = np.frombuffer(expected[name], DTYPES[dtype]).astype(np.float32)
            np.testing.assert_array_equal(array, values.reshape(array.shape))


def check_lora(path, content, config):
    path.write_bytes(content)
    shapes = {name: parameter.shape for name, parameter in parameters(config).items()}

    def merge():
        for name, merge in lora_merges([(path, 1.0)], config).items():
            weight = merge(np.zeros(shapes[name], np.float32))
            assert weight.shape == shapes[name] and np.isfinite(weight).all()

    require_refusal(merge, path)


def check_single_file(path, content, config):
    path.write_bytes(content)
    shapes = {name: parameter.shape for name, parameter in parameters(config).items()}

    def read():
        read_family(path)
        weights = read_source_weights(path, config, np.float32)
        return {name: weight.array.shape for name, weight in weights if weight.is_finite}

    assert require_refusal(read, path) in (None, shapes)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory):
    """The tensors of a single file with a whole model, and its config."""
    scratch = tmp_path_factory.mktemp("fuzz")
    config = small_config(scratch / "tokenizer")
    write_folder(scratch / "model", config, random_params(config))
    folder = scratch / "model"
    files = {name: next((folder / name).glob("*.safetensors")) for name in ("unet", "vae")}
    json_of = {name: json.loads((folder / name / "config.json").read_bytes()) for name in files}
    tensors = {
        **original_clip(load_file(folder / "text_encoder" / "model.safetensors")),
        **original_unet(load_file(files["unet"]), json_of["unet"]),
        **original_vae(load_file(files["vae"]), json_of["vae"]),
    }
    config = read_source_config(folder)
    return tensors, config


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@FEW_OR_THOUSANDS
def test_weight_files_are_refused_by_name_or_read_as_safetensors_reads_them(path, examples):
    try_all(lambda content: check_weights(path, content), weight_files(), examples)


@FEW_OR_THOUSANDS
def test_loras_are_refused_by_name_or_make_finite_weights(path, single_file, examples):
    _, config = single_file
    try_all(lambda content: check_lora(path, content, config), lora_files(), examples, 100, 2000)


# Of a failure, which hypothesis would hide behind it: the strategy holds all tensors of a model.
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@FEW_OR_THOUSANDS
def test_single_files_are_refused_by_name_or_read_whole(path, single_file, examples):
    tensors, config = single_file
    try_all(
        lambda some: check_single_file(path, save(some), config),
        changed(tensors),
        examples,
        few=50,
        thousands=1000,
    )
