"""Changes, shards and reads files of a checkpoint folder, and expects refusals."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from xxhash import xxh3_128

from seediff_jax.checkpoints.param_loading import add_to_hash, convert_array, pop_in_order
from tests.helpers.model_folders import read_params

FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


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


def weights_hash(params):
    """The hash of the weights of a model, see add_to_hash."""
    digest = xxh3_128()
    for path, array in pop_in_order(flatten_dict(params)):
        add_to_hash(digest, path, convert_array(path, array, np.float32))
    return digest.hexdigest()


def shard_text_encoder(folder, index, shard):
    tensors = load_file(folder / FILES["text_encoder"])
    (folder / FILES["text_encoder"]).unlink()
    weight_map = {name: shard.format(1 + i % 2) for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / "text_encoder" / file)
    (folder / "text_encoder" / index).write_text(json.dumps({"weight_map": weight_map}))
    return index
