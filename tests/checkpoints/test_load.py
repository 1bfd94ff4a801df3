"""Which parts of a model change its compiled programs, and how a model is printed."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import seediff_jax
from seediff_jax.checkpoints.load import load_model
from seediff_jax.models.capture import NO_CAPTURE
from seediff_jax.models.model import Provenance, encode_text
from tests.helpers.lora_files import ATTENTION, kohya, lora_file, tensors_of
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import one_level_config, random_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two checkpoints of one architecture, and a LoRA for them."""
    folder = tmp_path_factory.mktemp("made")
    config = one_level_config(folder / "tokenizer")
    for seed, name in enumerate(("first", "second")):
        write_folder(folder / name, config, random_params(config, seed))
    layers = [("unet", f"{ATTENTION}.attn1.to_q")]
    tensors, _ = lora_file(tensors_of(folder / "first"), kohya, layers)
    save_file(tensors, folder / "style.safetensors")
    return folder


@pytest.fixture
def compiled():
    """Grows by one item with every program that XLA compiles."""
    events = []

    def listen(event, duration, **unused):
        if event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def test_other_weights_of_one_architecture_compile_nothing(folder, compiled):
    lora = [(folder / "style.safetensors", 0.8)]
    models = [
        load_model(folder / "first"),
        load_model(folder / "second"),
        load_model(folder / "first", loras=lora),
    ]
    assert len({model.weights_hash for model in models}) == 3
    images = []
    for model in models:
        before = len(compiled)
        images.append(seediff_jax.generate(model, ["a cat"], [["cat"]]).images)
        assert (len(compiled) > before) == (model is models[0])
    assert all((np.asarray(images[0]) != image).any() for image in images[1:])


def test_other_recorded_layers_or_another_scheduler_compile_again(folder):
    model = load_model(folder / "first")
    sampler = model.config.scheduler.with_kind("ddim")
    other = model.with_config(capture=NO_CAPTURE, scheduler=sampler)
    assert other.capture == NO_CAPTURE and other.scheduler_config.kind == "ddim"
    assert jax.tree.structure(other) != jax.tree.structure(model)
    assert other.provenance is model.provenance and other.params is model.params


def test_provenance_does_not_recompile(folder):
    model = load_model(folder / "first")
    other = model.replace(provenance=Provenance(model_id="b", weights_hash="c", commit="d"))
    assert (other.model_id, other.weights_hash, other.commit) == ("b", "c", "d")
    assert jax.tree.structure(other) == jax.tree.structure(model)
    assert hash(other.provenance) == hash(model.provenance)
    before = encode_text.__wrapped__._cache_size()
    for each in (model, other):
        encode_text(each, model.tokenizer.encode(["a cat"]))
    assert encode_text.__wrapped__._cache_size() == before + 1


def test_a_model_is_shown_in_a_few_lines(folder):
    model = load_model(folder / "first")
    lines = repr(model).splitlines()
    assert len(lines) <= 5 and all(len(line) < 300 for line in lines)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    for text in (str(folder / "first"), f"{count:,} weights", "float32", "pndm", "8 pixels"):
        assert text in repr(model)
