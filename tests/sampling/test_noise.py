"""The noise of a sample depends on the seed and its index, and not on settings of JAX."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seediff_jax.checkpoints.load import make_model
from seediff_jax.sampling.noise import draw_rows, initial_latents, seed_key, step_noise
from tests.helpers.random_models import one_level_config, random_params

SEED, INDICES, CALL = np.uint32(2**32 - 5), np.array([0, 1, 77], np.int32), np.int32(3)
SHAPE = (8, 8, 4)

# Every option of jax.config that random numbers, dtypes or products depend on.
OPTIONS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "unsafe_rbg",
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_enable_custom_prng": True,
    "jax_legacy_prng_key": "error",
    "jax_debug_key_reuse": True,
    "jax_threefry_gpu_kernel_lowering": True,
    "jax_numpy_dtype_promotion": "standard",
    "jax_default_matmul_precision": "bfloat16",
}
VARIABLES = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_RANDOM_SEED_OFFSET": "5",
}
# Saves the noise and, with a second argument, what a run of few steps makes.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from seediff_jax import MaskConfig, SamplingConfig, generate
from seediff_jax.checkpoints.load import make_model
from tests.helpers.random_models import one_level_config, random_params
from tests.sampling.test_noise import draw_noise

file = Path(sys.argv[1])
config = one_level_config(file.with_suffix("") / "tokenizer")
model = make_model(config, random_params(config), model_id="random")
arrays = dict(zip(("initial", "step"), draw_noise(model), strict=True))
if sys.argv[2:]:
    pairs = generate(
        model,
        ["a dog", "a cow"],
        [["dog"], ["cow"]],
        sampling=SamplingConfig(num_steps=3),
        masks=MaskConfig(refine_iterations=2),
    )
    names = ("images", "soft_masks", "label_maps", "seed_counts")
    arrays |= {name: getattr(pairs, name) for name in names}
np.savez(file, **arrays)
"""


def draw_noise(model):
    return initial_latents(model, SEED, INDICES), step_noise(model, SEED, INDICES, CALL)


def expected_noise():
    """What JAX's own functions give at its default settings."""

    def rows(key):
        return jnp.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE) for i in INDICES])

    key = jax.random.key(SEED)
    fresh = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), CALL)
    return rows(key), rows(fresh)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = one_level_config(tmp_path_factory.mktemp("made") / "tokenizer")
    return make_model(config, random_params(config), model_id="random")


def assert_same_bits(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


def test_noise_is_that_of_jax_at_its_default_settings(model):
    for got, expected in zip(draw_noise(model), expected_noise(), strict=True):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_of_jax_changes_the_noise(model, name):
    expected, before = expected_noise(), getattr(jax.config, name)
    jax.config.update(name, OPTIONS[name])
    try:
        eager = draw_noise(model)
        jitted = jax.jit(draw_noise)(model)
        uniform = draw_rows(jax.random.uniform, seed_key(SEED), INDICES, (5,))
    finally:
        jax.config.update(name, before)
    for got, wanted in zip((*eager, *jitted), (*expected, *expected), strict=True):
        assert_same_bits(got, wanted)
    assert_same_bits(uniform, draw_rows(jax.random.uniform, seed_key(SEED), INDICES, (5,)))


def start(file, variables, *more):
    environment = {n: v for n, v in os.environ.items() if not n.startswith("JAX_")} | variables
    command = [sys.executable, "-c", SCRIPT, str(file), *more]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment)


def test_no_environment_variable_changes_noise_images_or_masks(tmp_path):
    runs = {
        name: start(tmp_path / f"{name}.npz", {name: value}, *(["run"] if "X64" in name else []))
        for name, value in VARIABLES.items()
    }
    runs["none"] = start(tmp_path / "none.npz", {}, "run")
    assert [run.wait() for run in runs.values()] == [0] * len(runs)
    expected = np.load(tmp_path / "none.npz")
    for name in VARIABLES:
        got = np.load(tmp_path / f"{name}.npz")
        assert len(got.files) == (6 if "X64" in name else 2)
        for key in got.files:
            assert_same_bits(got[key], expected[key])
    assert len(np.unique(expected["images"])) > 10
