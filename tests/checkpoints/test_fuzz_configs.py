"""Thousands of damaged and hostile JSON files: each is refused by name, or gives a sound config."""

import json

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from seediff_jax.checkpoints.diffusers_folder import write_model_config
from seediff_jax.checkpoints.sources import read_source_config
from seediff_jax.files.strict_json import read_json
from seediff_jax.schedulers.config import scheduler_config, scheduler_json
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.fuzzing import FEW_OR_THOUSANDS, require_refusal, texts, try_all
from tests.helpers.model_folders import read_params, write_folder
from tests.helpers.random_models import random_params, small_config, small_xl_config

CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "capture.json",
)
CONFIGS_OF_XL = (
    "model_index.json",
    "unet/config.json",
    "text_encoder_2/config.json",
    "tokenizer_2/tokenizer_config.json",
)
# With the options that diffusers writes and that have no effect here.
SCHEDULER_FILES = [
    {
        **scheduler_json(scheduler_config({"_class_name": made.class_name})),
        "lambda_min_clipped": -np.inf,
    }
    for made in SCHEDULERS.values()
]
TOKENIZER = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")


def check_scheduler(path, text):
    path.write_bytes(text)
    config = require_refusal(
        lambda: scheduler_config(read_json(path, infinity=True), str(path)), path
    )
    assert config is None or scheduler_config(scheduler_json(config)) == config


def check_folder(folder, name, text):
    """Reads the folder with another text of one of its files; puts the file back."""
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(text)
    try:
        return require_refusal(lambda: read_source_config(folder), folder)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with all files that `read_source_config` knows."""
    scratch = tmp_path_factory.mktemp("fuzz")
    config = small_config(scratch / "tokenizer")
    write_folder(scratch / "model", config, random_params(config))
    layer = "up_blocks.1.attentions.0.transformer_blocks.0"
    capture = {"cross_layers": [f"{layer}.attn2"], "self_layers": [f"{layer}.attn1"]}
    (scratch / "model" / "capture.json").write_text(json.dumps(capture))
    read_source_config(scratch / "model")  # imports what it needs; that is not measured
    return scratch / "model"


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory):
    """The configs of a Stable Diffusion XL."""
    scratch = tmp_path_factory.mktemp("fuzz_xl")
    config = small_xl_config(scratch)
    (scratch / "model").mkdir()
    write_model_config(scratch / "model", config)
    read_source_config(scratch / "model")
    return scratch / "model"


def file_texts(folder, names):
    """Names of JSON files with a damaged text of each."""
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), texts(json.loads((folder / name).read_bytes())))
    )


@FEW_OR_THOUSANDS
@pytest.mark.parametrize(
    ("names", "few", "thousands"), [(CONFIGS, 300, 5000), (TOKENIZER, 100, 2000)], ids=str
)
def test_configs_are_refused_by_name_or_are_sound(folder, names, few, thousands, examples):
    damaged = file_texts(folder, names)
    try_all(lambda file: check_folder(folder, *file), damaged, examples, few, thousands)


@FEW_OR_THOUSANDS
def test_configs_of_xl_are_refused_by_name_or_are_sound(xl_folder, examples):
    damaged = file_texts(xl_folder, CONFIGS_OF_XL)
    try_all(lambda file: check_folder(xl_folder, *file), damaged, examples, 100, 2000)


@pytest.mark.slow
def test_weights_of_a_changed_config_are_refused_by_name_or_read(folder):
    """A config that is sound for itself is compared with the weights, in little time and memory."""

    def check(file):
        config = check_folder(folder, *file)
        if config is not None:
            require_refusal(lambda: read_params(folder, config), folder)
            jax.clear_caches()  # JAX keeps what it traced of every config

    try_all(check, file_texts(folder, CONFIGS), "thousands", thousands=100)


@FEW_OR_THOUSANDS
def test_schedulers_are_refused_by_name_or_written_back_equal(tmp_path, examples):
    damaged = st.sampled_from(SCHEDULER_FILES).flatmap(texts)
    try_all(lambda text: check_scheduler(tmp_path / "config.json", text), damaged, examples)
