"""Writes small models as folders, given their config and params, and reads their params."""

import numpy as np
from flax.traverse_util import unflatten_dict

from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.checkpoints.orbax_folder import save_orbax
from seediff_jax.checkpoints.sources import read_source_weights
from seediff_jax.models.model import Model


def write_folder(folder, config, params, dtype=np.float32):
    save_model(make(config, params), folder, dtype=dtype)


def write_orbax(folder, config, params):
    save_orbax(make(config, params), folder)


def make(config, params):
    return Model(params=params, config=config, dtype=np.dtype(np.float32))


def read_params(folder, config):
    """Reads the weights of a folder as float32 params."""
    weights = read_source_weights(folder, config, np.float32)
    return unflatten_dict({path: weight.array for path, weight in weights})
