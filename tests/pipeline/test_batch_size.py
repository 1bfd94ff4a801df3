"""The batch that fits, by numbers made up by hand; nothing is compiled."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.networks import make_abstract_model
from seediff_jax.driver import work_loop
from seediff_jax.models.capture import coarse_capture
from seediff_jax.pipeline import batch_size
from seediff_jax.pipeline.batch_size import (
    DEFAULT_BATCH,
    MAX_BATCH,
    MEASURED_CLASSES,
    ROUNDS,
    SD1_BATCHES,
    auto_batch_size,
    fitting_batch_size,
    is_measured,
    predict_batch_size,
    programs_bytes,
    search_batch_size,
)
from seediff_jax.pipeline.memory import Programs, abstract_model
from seediff_jax.pipeline.mesh import make_mesh
from seediff_jax.pipeline.settings import PairSettings
from tests.helpers.random_models import small_config
from tests.helpers.settings import pair_settings

GIB = 2**30
PLAIN = PairSettings()


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    return abstract_model(small_config(tmp_path_factory.mktemp("made") / "tokenizer"))


@pytest.fixture(scope="module")
def sd1():
    return make_abstract_model("sd1", jnp.bfloat16)


def mesh_of(platform, kind, memory_stats=None, shape=(1, 1)):
    """What is read of a mesh of such devices."""
    device = types.SimpleNamespace(
        platform=platform,
        device_kind=kind,
        process_index=0,
        memory_stats=lambda: memory_stats,
    )
    sizes = dict(zip(("data", "model"), shape, strict=True))
    return types.SimpleNamespace(devices=np.full(shape, device), shape=sizes)


def lowered(arguments, outputs, temporaries):
    """A lowered program whose compiler says so."""
    sizes = types.SimpleNamespace(
        argument_size_in_bytes=arguments,
        output_size_in_bytes=outputs,
        temp_size_in_bytes=temporaries,
        generated_code_size_in_bytes=0,
        alias_size_in_bytes=0,
    )
    compiled = types.SimpleNamespace(memory_analysis=lambda: sizes)
    return types.SimpleNamespace(compile=lambda options: compiled)


def asking(taken):
    """A measurement that looks up what a batch takes, and the list of what was asked."""
    asked = []

    def measure(size):
        asked.append(size)
        return taken(size)

    return measure, asked


@pytest.mark.parametrize(
    ("fixed", "per_image", "usable", "expected"),
    [
        (2, 0.5, 10, 16),  # 2 + 16 / 2 = 10: just fits
        (2, 0.5, 9.9, 8),
        (2, 3, 10, 2),
        (2, 9, 10, 1),
        (2, 0.01, 10, MAX_BATCH),
        (2, -0.1, 10, MAX_BATCH),  # a compiler that saves memory in the larger batch
    ],
)
def test_the_largest_power_of_two_that_a_line_allows(fixed, per_image, usable, expected):
    measured = {size: fixed + per_image * size for size in (4, 8)}
    assert predict_batch_size(measured, usable) == expected


def test_what_is_linear_is_found_with_four_measurements():
    measure, asked = asking(lambda size: 2 + 0.5 * size)
    assert search_batch_size(measure, 10) == 16
    assert asked == [8, 4, 16, 32]


@pytest.mark.parametrize(
    ("taken", "usable", "expected"),
    [
        # The line of 4 and 8 says 8; that 16 takes no more is found out.
        ({4: 6, 8: 9, 16: 9, 32: 15}, 10, 16),
        # The line of 4 and 8 says 32, which the compiler refuses.
        ({4: 5, 8: 5.1, 16: 9, 32: None}, 10, 16),
        ({4: 5, 8: 5.1, 16: 11, 32: None}, 10, 8),
        ({4: 5, 8: None}, 10, 4),
        ({2: 9, 4: 11, 8: 20}, 10, 2),
        ({1: 4, 2: None, 4: None, 8: None}, 10, 1),
        (dict.fromkeys((4, 8, 16, 32), 4), 10, 32),
        # More memory for fewer images: all the same, four are not more than eight.
        ({4: 12, 8: 9, 16: 9.5, 32: 20}, 10, 16),
        ({4: None, 8: 9, 16: 9.5, 32: 20}, 10, 16),
    ],
)
def test_what_is_not_linear_is_compiled_until_it_fits(taken, usable, expected):
    measure, asked = asking(taken.__getitem__)
    assert search_batch_size(measure, usable) == expected
    assert len(asked) == len(set(asked)), "a compile takes a minute"


@pytest.mark.parametrize(
    ("taken", "needed"), [(12 * GIB, "12.00 GiB"), (None, "more than there is")]
)
def test_a_device_that_is_too_small_for_one_image_is_said(taken, needed):
    with pytest.raises(
        ValueError, match=rf"one image needs {needed}, usable are 10.00 GiB.*coarse"
    ):
        search_batch_size(lambda size: taken, 10 * GIB)


def test_a_run_takes_the_larger_program_and_the_results_of_two_rounds():
    sample, masks = lowered(10, 20, 100), lowered(20, 3, 50)
    # Weights of 15 of which sampling does not read 5: 10 + 5 + 20 + 100, and results.
    assert programs_bytes(Programs(sample, masks, weight_bytes=15)) == 135 + 3 + (20 + 3)
    assert programs_bytes(Programs(sample, lowered(20, 3, 500), 15)) == 15 + 523 + (20 + 3)
    assert ROUNDS == work_loop.DEPTH == 2


def test_only_a_lack_of_memory_is_taken_for_one():
    def failing(message):
        def fail(options):
            raise jax.errors.JaxRuntimeError(message)

        return types.SimpleNamespace(compile=fail)

    refused = failing("RESOURCE_EXHAUSTED: Ran out of memory on HBM")
    assert programs_bytes(Programs(lowered(1, 1, 1), refused, 0)) is None
    broken = failing("INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        programs_bytes(Programs(broken, refused, 0))


def test_a_cpu_and_a_device_of_unknown_memory_take_the_default(small_model):
    for mesh in (make_mesh(), mesh_of("gpu", "a GPU")):
        assert auto_batch_size(small_model, PLAIN, mesh) == DEFAULT_BATCH


@pytest.mark.parametrize(("kind", "expected"), SD1_BATCHES.items())
def test_stable_diffusion_1_on_a_tpu_is_not_compiled(sd1, kind, expected):
    settings = pair_settings(num_steps=20, guidance_scale=3.0, threshold=0.4, rng_seed=7)
    mesh = mesh_of("tpu", kind, shape=(4, 1))
    assert auto_batch_size(sd1, settings, mesh, num_classes=MEASURED_CLASSES) == expected


def test_what_takes_other_memory_is_not_taken_for_what_was_measured(sd1):
    assert is_measured(sd1, PLAIN)
    assert is_measured(sd1, pair_settings(height=512, width=512))
    for change in (
        {"width": 768},
        {"guidance_scale": 1},
        {"guidance_rescale": 0.5},
        {"affinity": "transition", "power": 2},
        {"refine_iterations": 10},
        {"dry_run": True},
        {"attention": "xla"},
        {"guidance_interval": (0.2, 0.8)},
    ):
        assert not is_measured(sd1, pair_settings(**change)), change
    assert not is_measured(sd1, PLAIN, MEASURED_CLASSES + 1)
    assert not is_measured(sd1, PLAIN, has_unnamed=True)
    assert not is_measured(sd1.replace(dtype=jnp.dtype("float32")), PLAIN)
    wide = dataclasses.replace(sd1.unet_config, sample_size=96)
    assert not is_measured(sd1.with_config(unet=wide), PLAIN)
    assert not is_measured(sd1.with_config(attention="xla"), PLAIN)
    assert not is_measured(sd1.with_config(capture=coarse_capture(sd1.unet_config)), PLAIN)


@pytest.mark.parametrize(
    ("mesh", "model", "memory"),
    [
        (mesh_of("gpu", "a GPU", {"bytes_limit": 80 * GIB}), "sd1", 80 * GIB),
        (mesh_of("tpu", "TPU v5 lite", {"bytes_limit": 16 * GIB}, (1, 2)), "sd1", 16 * GIB),
        (mesh_of("tpu", "TPU v5 lite", {"bytes_limit": 16 * GIB}), "small_model", 16 * GIB),
    ],
    ids=["a GPU", "weights that are split", "another model"],
)
def test_what_was_not_measured_is_compiled(request, monkeypatch, mesh, model, memory):
    model = request.getfixturevalue(model)
    calls = []
    monkeypatch.setattr(batch_size, "fitting_batch_size", lambda *call: calls.append(call) or 11)
    assert auto_batch_size(model, PLAIN, mesh, num_classes=3, has_unnamed=True) == 11
    assert calls == [(model, PLAIN, mesh, memory, 3, True)]


def test_programs_of_one_device_are_compiled_until_a_batch_fits(small_model, monkeypatch):
    asked = []

    def abstract_programs(mesh, model, size, settings, **classes):
        assert dict(mesh.shape) == {"data": 1, "model": 1}
        assert (model, settings) == (small_model, PLAIN)
        assert classes == {"num_classes": 3, "has_unnamed": True}
        asked.append(size)
        return Programs(lowered(10, 20 * size, 100 * size), lowered(20 * size, 3 * size, 0), 10)

    monkeypatch.setattr(batch_size, "abstract_programs", abstract_programs)
    # Of 1000 bytes 950 are used: 10 + 146 * 8 are too many, 10 + 146 * 4 are not.
    assert fitting_batch_size(small_model, PLAIN, make_mesh(), 1000, 3, True) == 4
    assert asked == [8, 4]
