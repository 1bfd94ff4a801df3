"""The segmenter's loss, optimiser, batches, trainer, checkpoints and predictions."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.segmenter import pseudo_labels, trainer
from experiments.segmenter.checkpoints import read_last_step, read_weights, write_weights
from experiments.segmenter.config import DATASET_DIFFUSION
from experiments.segmenter.data import ArraySamples
from experiments.segmenter.evaluate import load_run
from experiments.segmenter.loading import load_batches
from experiments.segmenter.predict import evaluate, predict
from experiments.training.run_folder import require_settings
from seediff_jax.dataset.iou import mean_iou
from seediff_jax.errors import UserError
from tests.helpers.segmenter_runs import LEARNING, SMALL, TINY, TinyNet, squares

ROOT = pathlib.Path(__file__).parents[2]
ONE = jax.devices()[:1]  # programs of one device compile and run faster


@pytest.fixture
def standard_promotion():
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def tiny(monkeypatch, standard_promotion):
    """A recipe of TinyNet."""
    monkeypatch.setattr(trainer, "make_network", TinyNet.of)
    return TINY


def test_a_run_folder_refuses_other_settings_and_names_them(tmp_path):
    require_settings(tmp_path, {"steps": 3, "scales": (1, 2)})
    require_settings(tmp_path, {"scales": [1, 2], "steps": 3})
    with pytest.raises(UserError, match=r"holds a run with steps=3 \(now 4\)"):
        require_settings(tmp_path, {"steps": 4, "scales": (1, 2)})


# Loss and optimiser


def test_the_loss_is_the_mean_over_pixels_that_are_not_255():
    logits = np.random.default_rng(0).normal(size=(1, 2, 2, 3)).astype(np.float32)
    labels = np.array([[[0, 255], [2, 255]]], np.uint8)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -(log_probs[0, 0, 0, 0] + log_probs[0, 1, 0, 2]) / 2
    found = trainer.segmentation_loss(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    nothing = jnp.full((1, 2, 2), 255, jnp.uint8)
    gradient = jax.grad(trainer.segmentation_loss)(jnp.asarray(logits), nothing)
    np.testing.assert_array_equal(gradient, 0)


def test_three_steps_of_adamw_equal_those_computed_by_hand(standard_promotion):
    config = dataclasses.replace(
        SMALL, steps=10, learning_rate=0.1, backbone_factor=0.1, weight_decay=0.02, clip_norm=0.5
    )
    optimizer = trainer.make_optimizer(config)
    params = {"backbone": jnp.float32(1.0), "head": jnp.float32(-2.0)}
    state = optimizer.init(params)
    values, first, second = {"backbone": 1.0, "head": -2.0}, {}, {}
    for step, raw in enumerate([(3.0, 4.0), (0.1, -0.2), (-1.0, 0.5)]):
        gradient = dict(zip(params, raw, strict=True))
        updates, state = optimizer.update(
            {k: jnp.float32(v) for k, v in gradient.items()}, state, params
        )
        params = {k: params[k] + updates[k] for k in params}
        shrink = min(1, 0.5 / np.hypot(*raw))
        rate = 0.1 * (1 - step / 10) ** 0.9
        for k, factor in (("backbone", 0.1), ("head", 1.0)):
            g = gradient[k] * shrink
            first[k] = 0.9 * first.get(k, 0) + 0.1 * g
            second[k] = 0.999 * second.get(k, 0) + 0.001 * g * g
            mean, square = first[k] / (1 - 0.9 ** (step + 1)), second[k] / (1 - 0.999 ** (step + 1))
            values[k] -= factor * rate * (mean / (np.sqrt(square) + 1e-8) + 0.02 * values[k])
            np.testing.assert_allclose(params[k], values[k], rtol=2e-6)


def test_two_steps_of_sgd_are_those_of_torch(standard_promotion):
    import torch

    config = dataclasses.replace(
        SMALL, optimizer="sgd", steps=10, learning_rate=0.1, final_rate=0.01, weight_decay=0.05,
        clip_norm=0.0,
    )  # fmt: skip
    optimizer = trainer.make_optimizer(config)
    params = {"head": jnp.float32(2.0)}
    state = optimizer.init(params)
    weight = torch.nn.Parameter(torch.tensor(2.0))
    theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.05)
    for step, gradient in enumerate([1.0, -3.0]):
        updates, state = optimizer.update({"head": jnp.float32(gradient)}, state, params)
        params = {"head": params["head"] + updates["head"]}
        theirs.param_groups[0]["lr"] = (0.1 - 0.01) * (1 - step / 10) ** 0.9 + 0.01
        weight.grad = torch.tensor(gradient)
        theirs.step()
        np.testing.assert_allclose(params["head"], weight.item(), rtol=1e-6)


# Batches


def _show_index(count):
    """Samples whose pixels and labels are their index."""
    values = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((40, 40), np.uint8)
    return ArraySamples(np.repeat(values[..., None], 3, axis=-1), values)


_PLAIN = dataclasses.replace(SMALL, photometric=False, num_labels=255)


def _labels_of(batches, count):
    """The label of each example of the next batches; images have the same."""
    found = []
    for images, labels in (next(batches) for _ in range(count)):
        assert images.shape == (8, 32, 32, 3) and images.dtype == np.float32
        np.testing.assert_allclose(images[:, 0, 0, 0] * 127.5 + 127.5, labels[:, 0, 0], atol=1e-3)
        found += labels[:, 0, 0].tolist()
    return found


def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order():
    shown = _labels_of(load_batches(_PLAIN, _show_index(24), 0), 6)
    assert sorted(shown[:24]) == sorted(shown[24:]) == [*range(24)]
    assert shown[:24] != shown[24:]


def test_batches_follow_from_the_seed():
    first, again, other = (load_batches(SMALL, squares(16), seed) for seed in (0, 0, 1))
    one, two = next(first), next(first)
    jax.tree.map(np.testing.assert_array_equal, (next(again), next(again)), (one, two))
    assert not np.array_equal(one[0], two[0])
    assert not np.array_equal(one[0], next(other)[0])


def test_a_sample_is_augmented_in_another_way_in_every_epoch():
    config = dataclasses.replace(SMALL, batch_size=1)
    batches = load_batches(config, squares(1), 0)
    images = [next(batches)[0] for _ in range(4)]
    assert len({image.tobytes() for image in images}) == 4


def test_the_state_of_an_iterator_leads_to_the_batches_that_follow():
    straight, stopped = (load_batches(SMALL, squares(24), 5) for _ in range(2))
    for _ in range(4):
        next(straight)
        next(stopped)
    state = json.loads(json.dumps(stopped.get_state()))
    resumed = load_batches(SMALL, squares(24), 5)
    resumed.set_state(state)
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, next(resumed), next(straight))


# Training and predictions


@pytest.fixture(scope="module")
def trained():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return LEARNING, trainer.train(LEARNING, squares(64), devices=ONE)


@pytest.mark.slow
def test_a_trained_segmenter_finds_what_it_has_not_seen(trained, standard_promotion):
    config, variables = trained
    tests = squares(80)
    tests = ArraySamples(tests.images[64:], tests.labels[64:])
    assert mean_iou(evaluate(config, variables, tests)) > 0.8
    allowed = np.array([[True, True, False]] * 16)
    assert set(np.unique(predict(config, variables, tests.images, allowed))) <= {0, 1}


def test_images_of_any_size_get_label_maps_of_their_size(trained, standard_promotion):
    config, variables = trained
    rng = np.random.default_rng(0)
    for shape in ((33, 47), (16, 16)):
        image = rng.integers(0, 256, (1, *shape, 3)).astype(np.uint8)
        assert predict(config, variables, image).shape == (1, *shape)
    scaled = dataclasses.replace(config, test_side=32)
    large = np.repeat(np.repeat(squares(2).images, 3, axis=1), 3, axis=2)
    found = predict(scaled, variables, large)
    expected = predict(config, variables, squares(2).images)
    # Scaling up and down moves edges by a pixel of the small image at most.
    assert (found[:, 1::3, 1::3] == expected).mean() > 0.95


# Checkpoints


def _run_and_kill(folder, reads):
    """Trains in another process, which kills itself before it reads so many samples."""
    program = [sys.executable, "-m", "tests.helpers.segmenter_runs", str(folder), str(reads)]
    done = subprocess.run(
        program,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_training_run_resumes_to_the_identical_result(tiny, tmp_path):
    config = dataclasses.replace(tiny, steps=30)
    straight = trainer.train(config, squares(64), devices=ONE)
    path = tmp_path / "checkpoints"
    _run_and_kill(path, 20 * SMALL.batch_size)
    assert 5 < read_last_step(path) < 20
    # What a kill leaves of a checkpoint that was being written.
    (path / "19.orbax-checkpoint-tmp").mkdir()
    for _ in range(2):  # the second time, nothing is left to do
        resumed = trainer.train(config, squares(64), path, devices=ONE)
        jax.tree.map(np.testing.assert_array_equal, resumed, straight)
        assert read_last_step(path) == 30
    assert not list(path.glob("*tmp*"))


def test_checkpoints_and_weights_of_another_network_are_refused(tiny, tmp_path):
    config = dataclasses.replace(tiny, steps=1)
    path = tmp_path / "checkpoints"
    variables = trainer.train(config, squares(8), path, devices=ONE)
    other = dataclasses.replace(config, num_labels=5)
    with pytest.raises(UserError, match=r"checkpoints is a checkpoint of another network: .*\[3\]"):
        trainer.train(other, squares(8), path, devices=ONE)
    path = tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match="weights.safetensors is missing; a training run writes it"):
        read_weights(path, variables)
    write_weights(path, variables)
    jax.tree.map(np.testing.assert_array_equal, read_weights(path, variables), variables)
    with pytest.raises(UserError, match=r"the weights of another network: .*\[3\], expected \[5\]"):
        read_weights(path, trainer.variable_shapes(other))
    with pytest.raises(UserError, match="is not the folder of a training run"):
        load_run(tmp_path)
    (tmp_path / "settings.json").write_text('{"model": "stickers"}')
    with pytest.raises(UserError, match="settings.json lacks reproduces; another version"):
        load_run(tmp_path)


# Devices and dtypes


def test_eight_devices_train_as_one_does(tiny):
    one, eight = (
        trainer.train(tiny, squares(16), devices=jax.devices()[:count]) for count in (1, 8)
    )
    start = trainer.init_variables(tiny, 0)
    # Rounding of sums in another order, after three steps. Were the statistics of a norm those of
    # one image, running variances would differ by a tenth.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), one, eight)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, dict(start))
    assert max(jax.tree.leaves(moved["params"])) > 1e-3
    assert min(jax.tree.leaves(moved["batch_stats"])) > 1e-3


def test_a_batch_that_devices_cannot_share_is_refused():
    config = dataclasses.replace(SMALL, batch_size=9)
    with pytest.raises(UserError, match="batch_size=9 is not a multiple of the 8 devices"):
        trainer.train(config, squares(8))


def test_bfloat16_computes_in_it_and_keeps_weights_and_statistics_in_float32(tiny):
    half = dataclasses.replace(tiny, dtype="bfloat16")
    variables = trainer.init_variables(half, 0)
    params, stats = variables["params"], {"batch_stats": variables["batch_stats"]}
    images, labels = (jnp.asarray(part) for part in next(load_batches(half, squares(16), 0)))
    arguments = (params, stats, jax.random.key(0), images, labels)
    found, new_stats = jax.jit(trainer.make_loss(half))(*arguments)
    expected, _ = jax.jit(trainer.make_loss(tiny))(*arguments)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0.02)  # 8 bits of mantissa
    assert float(found) != float(expected)
    for leaf in jax.tree.leaves((new_stats, trainer.train(half, squares(16)))):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all()


def test_all_convolutions_of_deeplab_are_in_bfloat16(standard_promotion):
    half = dataclasses.replace(DATASET_DIFFUSION, dtype="bfloat16", crop=64)
    shapes = dict(trainer.variable_shapes(half))
    params = shapes.pop("params")
    image, label = (jax.ShapeDtypeStruct((1, 64, 64, *c), t) for c, t in (((3,), "f4"), ((), "u1")))
    loss = jax.eval_shape(trainer.make_loss(half), params, shapes, jax.random.key(0), image, label)
    assert loss[0].dtype == jnp.float32
    arguments = (params, shapes, jax.random.key(0), image, label)
    program = str(jax.make_jaxpr(trainer.make_loss(half))(*arguments))
    results = re.findall(r"(\w+):(\w+)\[[\d,]*\] = conv_general_dilated", program)
    assert len(results) > 60 and {dtype for _, dtype in results} == {"bf16"}


# Self-training


def test_a_teacher_corrects_masks_and_leaves_out_what_it_is_not_sure_of(
    trained, tmp_path, standard_promotion, monkeypatch
):
    config, variables = trained
    truth = squares(24)
    wrong = ArraySamples(truth.images, np.zeros_like(truth.labels))
    arguments = (config, variables, wrong)
    samples = pseudo_labels.write_pseudo_labels(*arguments, tmp_path / "all", 0.0)
    assert len(samples) == 24
    known = truth.labels != 255
    found = np.stack([samples.read(k)[1] for k in range(24)])
    assert (found[known] == truth.labels[known]).mean() > 0.9
    assert set(np.unique(found)) <= {0, 1, 2}
    np.testing.assert_array_equal(samples.read(3)[0], truth.images[3])
    sure = pseudo_labels.write_pseudo_labels(*arguments, tmp_path / "sure", 0.9)
    kept = np.stack([sure.read(k)[1] for k in range(24)])
    assert 0 < (kept == 255).mean() < 0.5
    np.testing.assert_array_equal(kept[kept != 255], found[kept != 255])
    assert (kept == truth.labels)[known & (kept != 255)].mean() >= (
        found == truth.labels
    )[known].mean()  # fmt: skip
    # A run that was stopped predicts the rest alone.
    (tmp_path / "all" / "000007.png").unlink()
    asked = []
    monkeypatch.setattr(
        pseudo_labels, "predict_logits",
        lambda c, v, images: asked.append(len(images)) or np.zeros((*images.shape[:3], 3)),
    )  # fmt: skip
    again = pseudo_labels.write_pseudo_labels(*arguments, tmp_path / "all", 0.0)
    assert asked == [1] and not again.read(7)[1].any()
