"""The trainer of the embedded models, on a model of a few weights."""

import json
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.training import networks, scenes, train, vae, weights
from experiments.training.attention import attention_inside_and_outside, capture_attention
from experiments.training.growing import grow_unet
from experiments.training.scenes import Scene
from experiments.training.state import (
    Schedule,
    init_state,
    read_average,
    read_step,
    restore_state,
    run_steps,
    save_state,
)
from experiments.training.study import Stage, Study, load_study
from experiments.training.unet import unet_loss
from experiments.training.vocabulary import END, make_vocabulary, write_tokenizer
from seediff_jax import encode_text, load_model
from seediff_jax.checkpoints.sources import find_source
from seediff_jax.errors import UserError
from seediff_jax.models.capture import NO_CAPTURE
from seediff_jax.models.config import unet_config
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.models.unet import UNet
from seediff_jax.prompts.tokenizer import load_tokenizer
from seediff_jax.schedulers.config import scheduler_config
from seediff_jax.schedulers.noise_schedule import make_noise_schedule

_SCHEDULE = Schedule(learning_rate=0.05, ema_decay=0.9)


@pytest.fixture(autouse=True)
def standard_promotion():
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        yield


def _fit_line(path, steps, **schedule):
    """Runs the training loop on a line through noisy points; returns the final state."""

    def loss(params, rng, x):
        noise = 0.1 * jax.random.normal(rng, x.shape)
        return jnp.mean((params["slope"] * x - 3 * x - noise) ** 2)

    def make_batch(step):
        return (np.random.default_rng(step).normal(size=8).astype(np.float32),)

    schedule = _SCHEDULE.replace(steps=steps, **schedule)
    state = init_state({"slope": jnp.zeros(())}, schedule)
    return jax.device_get(run_steps(state, loss, make_batch, path, schedule))


def test_a_stopped_training_run_resumes_to_the_identical_result(tmp_path):
    straight = _fit_line(tmp_path / "straight.npz", 12)
    _fit_line(tmp_path / "stopped.npz", 5)
    resumed = _fit_line(tmp_path / "stopped.npz", 12)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert int(resumed.step) == 12
    assert abs(float(straight.params["slope"])) > 0.01  # it did learn something


def test_devices_that_share_a_batch_make_the_step_of_the_whole_batch():
    assert jax.device_count() > 1
    batch = np.random.default_rng(0).normal(size=2 * jax.device_count()).astype(np.float32)

    def loss(params, stats, rng, x):
        return jnp.mean((params["slope"] * x - 3 * x) ** 2), stats + jnp.mean(x)

    schedule, sgd = _SCHEDULE.replace(steps=1), optax.sgd(0.1)
    state = init_state({"slope": jnp.zeros(())}, schedule, sgd, stats=jnp.zeros(()))
    state = run_steps(state, loss, lambda step: (batch,), None, schedule, sgd)
    # The gradient at 0 is the mean of -6 x^2.
    np.testing.assert_allclose(state.params["slope"], 0.6 * np.mean(batch**2), rtol=1e-6)
    np.testing.assert_allclose(state.stats, batch.mean(), rtol=1e-5)


def test_devices_that_share_a_batch_draw_different_random_numbers():
    def loss(params, rng, x):
        drawn = jax.random.uniform(rng, x.shape)
        return jnp.mean(params["weight"] * x * drawn)

    schedule, sgd, count = _SCHEDULE.replace(steps=1), optax.sgd(1.0), jax.device_count()
    batch = np.eye(count, dtype=np.float32)[:, None]
    found = []
    for row in batch:  # only the device of this row has an influence
        state = init_state({"weight": jnp.zeros(())}, schedule, sgd)
        result = run_steps(state, loss, lambda step, row=row: (row.T,), None, schedule, sgd)
        found.append(float(result.params["weight"]))
    assert len(set(found)) == count


_KILLED = """
import sys, pathlib
from tests import conftest
from tests.experiments.test_training import _SCHEDULE, _fit_line
jax = conftest.jax
jax.config.update("jax_numpy_dtype_promotion", "standard")
_fit_line(pathlib.Path(sys.argv[1]), 10**6, checkpoint_minutes=0)
"""


def test_a_training_run_resumes_after_kill_9_to_the_identical_result(tmp_path):
    path = tmp_path / "killed.npz"
    command = [sys.executable, "-c", _KILLED, str(path)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        while not path.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    reached = read_step(path)
    assert reached >= 1
    resumed = _fit_line(path, reached + 3)
    straight = _fit_line(tmp_path / "straight.npz", reached + 3)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_a_checkpoint_is_one_file_and_its_average_can_be_read_alone(tmp_path):
    state = _fit_line(tmp_path / "unet.npz", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["unet.npz"]
    average = read_average(tmp_path / "unet.npz", {"slope": jnp.zeros(())})
    np.testing.assert_array_equal(average["slope"], state.ema["slope"])
    unchanged = {"slope": jnp.ones(())}
    assert read_average(tmp_path / "missing.npz", unchanged) is unchanged


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    save_state(tmp_path / "unet.npz", init_state({"slope": jnp.zeros(())}, _SCHEDULE))
    for other in ({"slope": jnp.zeros(2)}, {"offset": jnp.zeros(())}):
        with pytest.raises(ValueError, match="does not fit the recipe"):
            restore_state(tmp_path / "unet.npz", init_state(other, _SCHEDULE))


def test_learning_rate_warms_up_stays_and_falls():
    schedule = Schedule(learning_rate=1.0, decay_from=200, decay_steps=100)
    rates = [float(schedule.rate(jnp.int32(step))) for step in (0, 49, 99, 200, 250, 300, 999)]
    np.testing.assert_allclose(rates, [0.01, 0.5, 1, 1, 0.51, 0.02, 0.02], rtol=1e-5)


def test_shrinking_is_the_area_average_of_opencv():
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    expected = cv2.resize(image.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(vae.shrink(image[None], 64)[0], expected / 127.5 - 1, atol=1e-6)


def test_reconstruction_loss_counts_a_shifted_edge_more_than_an_offset():
    images = jnp.zeros((1, 8, 8, 3)).at[:, :, 4:].set(1.0)
    shifted = jnp.zeros((1, 8, 8, 3)).at[:, :, 5:].set(1.0)
    offset = images + 1 / 8  # the same absolute error in the mean
    assert vae.reconstruction_loss(images, images) == 0
    assert vae.reconstruction_loss(shifted, images) > vae.reconstruction_loss(offset, images)


def test_vocabulary_spells_each_word_as_one_token(tmp_path):
    words = ("a", "an", "and", "cat", "cart", "plant", "planted")
    vocabulary, merges = make_vocabulary(words)
    assert all(f"{word}</w>" in vocabulary for word in words)
    assert len(set(merges)) == len(merges)
    write_tokenizer(tmp_path, words, 16)
    assert json.loads((tmp_path / "vocab.json").read_text()) == vocabulary
    ids = load_tokenizer(tmp_path).encode(["a planted cart and an plant"])[0]
    assert (ids != vocabulary[END]).sum() == 1 + 6


def test_min_snr_weight_caps_easy_timesteps_of_a_spread_batch():
    # With a perfect prediction of zero velocity the loss is the weight times the mean square.
    schedule = make_noise_schedule(scheduler_config(networks.SCHEDULER_JSON))

    class Zero:
        def apply(self, params, *inputs):
            self.timesteps = np.asarray(inputs[1])
            return (jnp.zeros_like(inputs[0]), None)

    class Text:
        def apply(self, params, token_ids):
            return types.SimpleNamespace(last=token_ids)

    modules = {"unet": Zero(), "text_encoder": Text()}
    latents = jnp.ones((4, 2, 2, 4))
    ids = jnp.zeros((4, 3), jnp.int32)
    rng = jax.random.key(3)
    params = {"unet": {}, "text_encoder": {}}
    value = unet_loss(modules, schedule, params, rng, latents, ids, ids[:1])
    timesteps = modules["unet"].timesteps
    assert (timesteps // 250).tolist() == [0, 1, 2, 3]  # one in each quarter of the schedule
    alphas = np.asarray(schedule.alphas_cumprod)[timesteps][:, None, None, None]
    _, rng_noise, _ = jax.random.split(rng, 3)
    noise = np.asarray(jax.random.normal(rng_noise, latents.shape))
    velocity = np.sqrt(alphas) * noise - np.sqrt(1 - alphas)
    snr = alphas / (1 - alphas)
    expected = np.mean(np.minimum(snr, 5) / (snr + 1) * velocity**2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32 mean of 64 terms


def _render(seed, *, side=128, num_objects=None):
    """One square of one of two colours."""
    rng = np.random.default_rng(seed)
    name = ("cat", "potted plant")[seed % 2]
    top, left = rng.integers(0, side // 2, 2)
    label_map = np.zeros((side, side), np.uint8)
    label_map[top : top + side // 2, left : left + side // 2] = 1 + seed % 2
    image = np.full((side, side, 3), 200, np.uint8)
    image[label_map > 0] = ((250, 60, 20), (20, 180, 60))[seed % 2]
    return Scene(image, label_map, f"a photo of a {name}", (name,))


def _tiny_study(steps):
    return Study(
        name="tiny",
        classes=("cat", "potted plant"),
        words=("a", "cat", "of", "photo", "plant", "potted"),
        synonyms={"kitten": "cat"},
        make_renderer=lambda run_dir: _render,
        text_encoder_json=lambda v: networks.text_encoder_json(v) | {"hidden_size": 24},
        unet_json=networks.unet_json(4, (32, 32, 32))
        | {"block_out_channels": [8, 8, 8], "cross_attention_dim": 24},
        vae_json=networks.vae_json(4) | {"block_out_channels": [8, 8, 8]},
        plans={
            "cpu": (
                Stage("vae", 2, 8),
                Stage("inner", 1, 8, 64),
                Stage("unet", steps, 8),
                Stage("decoder", 2, 8),
            )
        },
        notice="Drawn by a test.\n",
    )


def test_a_grown_unet_draws_what_the_inner_one_draws_at_twice_the_side():
    large = networks.unet_json(4, (32, 32, 32)) | {"cross_attention_dim": 24}
    configs = [unet_config(networks.inner_unet_json(large)), unet_config(large)]
    modules = [UNet(each, capture=NO_CAPTURE) for each in configs]
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 8, 8, 4)).astype(np.float32)
    text = jnp.asarray(rng.standard_normal((2, 5, 24)), jnp.float32)
    columns, timesteps = TokenColumns(jnp.zeros((0, 5, 1))), jnp.array([10, 800])
    inputs = [latents, latents.repeat(2, axis=1).repeat(2, axis=2)]
    params = [
        module.init(jax.random.key(k), value, timesteps, text, columns)["params"]
        for k, (module, value) in enumerate(zip(modules, inputs, strict=True))
    ]
    for name in ("conv_in", "conv_out"):  # of single pixels, since pixels are repeated
        kernel = params[0][name]["kernel"]
        params[0][name]["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    params[1] = grow_unet(params[0], params[1])
    small, grown = (
        np.asarray(module.apply({"params": p}, value, timesteps, text, columns)[0])
        for module, p, value in zip(modules, params, inputs, strict=True)
    )
    assert small.std() > 0.1
    # The same sums of float32 in another order.
    np.testing.assert_allclose(grown, small.repeat(2, axis=1).repeat(2, axis=2), atol=2e-5)


def test_the_watcher_has_flags_of_the_same_names_as_the_trainer():
    command = [sys.executable, "-m", "experiments.training.watch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "--run_dir" in done.stdout and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def stickers_run(tmp_path_factory):
    """A run that was started from the model in the package."""
    run_dir = tmp_path_factory.mktemp("runs") / "stickers"
    weights.keep_initial(run_dir, find_source("stickers"))
    return run_dir


def test_a_run_that_trains_the_unet_alone_keeps_the_rest_of_its_initial_model(stickers_run):
    study, model = load_study("stickers"), load_model("stickers")
    config, params = weights.start_params(study, stickers_run)
    trained = {key: params[key] for key in ("text_encoder", "unet")}
    trained = jax.tree.map(lambda leaf: leaf + 1, trained)
    save_state(stickers_run / "unet.npz", init_state(trained, _SCHEDULE))
    config, params = weights.load_params(study, stickers_run)
    assert config.vae == model.config.vae  # with the scale of its latents
    jax.tree.map(np.testing.assert_array_equal, params["vae"], dict(model.params["vae"]))
    kernels = (tree["unet"]["conv_in"]["kernel"] for tree in (params, model.params))
    np.testing.assert_allclose(next(kernels), next(kernels) + 1, rtol=1e-6)


def test_a_plan_that_a_study_lacks_is_refused_before_anything_is_rendered(tmp_path):
    flags.FLAGS.mark_as_parsed()
    message = "--plan=more is not a plan of shapes; use cpu or gpu"
    with flagsaver.flagsaver(study="shapes", plan="more", run_dir=str(tmp_path / "run")):
        with pytest.raises(UserError, match=message):
            train.main([])
    assert not (tmp_path / "run").exists()


def test_the_initial_model_of_a_run_does_not_change(stickers_run, tmp_path):
    source = find_source("stickers")
    weights.keep_initial(stickers_run, source)  # the same command again
    other = shutil.copytree(source, tmp_path / "other")
    (other / "NOTICE").write_text("another\n")
    with pytest.raises(UserError, match="was started from another model"):
        weights.keep_initial(stickers_run, other)
    with pytest.raises(UserError, match="has no vae/config.json"):
        weights.keep_initial(tmp_path / "run", tmp_path)
    trained = init_state({"slope": jnp.zeros(())}, _SCHEDULE).replace(step=jnp.int32(3))
    save_state(tmp_path / "run" / "vae.npz", trained)
    with pytest.raises(UserError, match="has trained its stage vae from random weights"):
        weights.keep_initial(tmp_path / "run", source)


@pytest.mark.slow
def test_a_plan_is_trained_resumed_and_exported(tmp_path, monkeypatch):
    flags.FLAGS.mark_as_parsed()
    # Processes that render would have to import the tests.
    monkeypatch.setattr(scenes, "_render", _render_here)
    monkeypatch.setattr(train, "_HELD_OUT", 8)
    for steps in (1, 3):
        study = _tiny_study(steps)
        with flagsaver.flagsaver(num_scenes=16):
            assert train.train(study, study.plans["cpu"], tmp_path)
        assert read_step(tmp_path / "unet.npz") == steps
    train.export(study, tmp_path, tmp_path / "export")
    assert (tmp_path / "export" / "NOTICE").read_text() == "Drawn by a test.\n"
    model = load_model(str(tmp_path / "export"))
    _, params = weights.load_params(study, tmp_path)
    found, expected = (tree["unet"]["conv_in"]["kernel"] for tree in (model.params, params))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)  # float16
    tokens = model.config.tokenizer.encode(["a photo of a kitten", "a photo of a cat"])
    kitten, cat = np.asarray(encode_text(model, tokens))
    np.testing.assert_array_equal(kitten, cat)
    weights.keep_initial(tmp_path / "next", tmp_path / "export")
    config, started = weights.start_params(study, tmp_path / "next")
    np.testing.assert_array_equal(started["unet"]["conv_in"]["kernel"], found)
    assert config.vae.scaling_factor == model.config.vae.scaling_factor != 1
    maps = capture_attention(model, [_render(0), _render(1)], 400)
    inside = attention_inside_and_outside(maps, [_render(0), _render(1)])
    assert inside.shape == (2, len(model.capture.cross_layers), 2)
    assert (inside > 0).all()


def _render_here(render, count):
    drawn = [render(seed) for seed in range(count)]
    return np.stack([scene.image for scene in drawn]), [scene.caption for scene in drawn]
