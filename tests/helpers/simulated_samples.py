"""Stands in for a model and its programs: samples follow from their index alone, without delay."""

import jax
import numpy as np

import seediff_jax.driver.regenerate  # noqa: F401  # imports `prepare` before a test replaces it
from seediff_jax.checkpoints.sources import find_source, read_source_config
from seediff_jax.models.model import Model, Provenance
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.programs import PairRows
from seediff_jax.sampling.sampler import STAGES

SIDE, SEED_SIDE = 16, 8


class Programs:
    """Stands in for PairPrograms."""

    def __init__(self, mesh):
        self.mesh, self.attention = mesh, "none"

    def __call__(self, inputs):
        count = inputs.class_token_mask.shape[1]
        rows = [_row(int(index), count) for index in inputs.indices]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    def fetch(self, results):
        return results


def prepare(config, folder=None):
    """Stands in for `make_dataset.prepare`: a model without weights."""
    del folder
    read = read_source_config(find_source(config.model))
    model = Model(
        params={},
        config=read,
        dtype=np.dtype(np.float32),
        provenance=Provenance(model_id=config.model, weights_hash="none"),
    )
    return config, model, Programs(make_mesh(config.mesh))


def _row(index, count):
    random = np.random.default_rng(index)
    return PairRows(
        images=random.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        label_maps=random.integers(0, count + 1, (SIDE, SIDE), np.uint8),
        soft_masks=random.random((count, SIDE, SIDE), np.float32),
        seed_maps=random.random((count, SEED_SIDE**2), np.float32),
        seed_counts=random.integers(0, 64, count, np.int32),
        scores=random.random(count, np.float32),
        presence=random.random(count, np.float32),
        is_finite=dict.fromkeys(STAGES, np.True_),
    )
