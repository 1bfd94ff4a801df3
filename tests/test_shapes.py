"""The scenes, vocabulary and training loop of the embedded model."""

import json
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags
from absl.testing import flagsaver

from experiments.shapes import recipe, train
from experiments.shapes.render import class_hue, hsv_to_rgb, read_label_map, render_scene
from seediff_jax.prompts import SHAPES_CLASSES
from seediff_jax.tokenizer import class_token_mask, load_tokenizer


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("seed", range(12))
def test_colour_reading_of_a_scene_agrees_with_its_exact_mask(seed):
    scene = render_scene(seed)
    read = read_label_map(scene.image, scene.classes)
    for name in scene.classes:
        k = SHAPES_CLASSES.index(name) + 1
        # Only antialiased border pixels may differ: a thin crescent's border is 4 % of its area.
        assert _iou(read == k, scene.label_map == k) > 0.95


def test_a_scene_depends_on_its_seed_alone():
    np.testing.assert_array_equal(render_scene(5).image, render_scene(5).image)
    assert (render_scene(5).image != render_scene(6).image).any()


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_caption_names_exactly_the_objects_in_the_mask(count, seed):
    scene = render_scene(seed, num_objects=count)
    in_mask = {SHAPES_CLASSES[k - 1] for k in np.unique(scene.label_map) if k}
    assert in_mask == {word for word in scene.caption.split() if word in SHAPES_CLASSES}
    assert len(in_mask) == count


@pytest.mark.parametrize("name", SHAPES_CLASSES)
def test_every_shape_has_one_piece_inside_the_image(name):
    k = SHAPES_CLASSES.index(name)
    scene = next(
        s for s in (render_scene(i, num_objects=1) for i in range(200)) if s.classes == (name,)
    )
    mask = (scene.label_map == k + 1).astype(np.uint8)
    assert cv2.connectedComponents(mask)[0] == 2
    assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    # Between the thinnest small shape and the largest square that fits: 4 % and 45 % of the image.
    assert 0.04 < mask.mean() < 0.45


def test_hues_agree_with_opencv():
    hues = np.array([class_hue(k) for k in range(8)])
    ours = hsv_to_rgb(hues, np.full(8, 0.8), np.full(8, 0.7))
    hsv = np.stack([hues * 360, np.full(8, 0.8), np.full(8, 0.7)], -1).astype(np.float32)
    theirs = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_every_word_of_a_caption_is_one_token(tmp_path):
    recipe.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    captions = [render_scene(seed, side=32).caption for seed in range(100)]
    ids = tokenizer.encode(captions)
    end = json.loads((tmp_path / "vocab.json").read_text())["<|endoftext|>"]
    for caption, row in zip(captions, ids, strict=True):
        assert (row != end).sum() == 1 + len(caption.split())
    mask = class_token_mask(tokenizer, ["a photo of a ring and a cross"], [["cross", "ring"]])
    assert [np.flatnonzero(row).tolist() for row in mask[0]] == [[8], [5]]


def _fit_line(folder, steps):
    """Runs the training loop on a line through noisy points; returns the final state."""
    optimizer = optax.sgd(0.05, momentum=0.9)

    def loss(params, rng, x):
        noise = 0.1 * jax.random.normal(rng, x.shape)
        return jnp.mean((params["slope"] * x - 3 * x - noise) ** 2)

    def make_batch(step):
        return (np.random.default_rng(step).normal(size=8).astype(np.float32),)

    # Python scalars meet the step count there, which strict promotion refuses.
    train_step = train.make_train_step(loss, optimizer, ema_decay=0.9)
    state = train.init_state({"slope": jnp.zeros(())}, optimizer)
    with (
        flagsaver.flagsaver(steps=steps, batch_size=8, minutes=60.0),
        jax.numpy_dtype_promotion("standard"),
    ):
        return jax.device_get(train.run_steps(state, train_step, make_batch, folder))


@pytest.fixture
def parsed_flags():
    flags.FLAGS.mark_as_parsed()


def test_a_stopped_training_run_goes_on_to_the_identical_result(tmp_path, parsed_flags):
    straight = _fit_line(tmp_path / "straight", 12)
    _fit_line(tmp_path / "stopped", 5)
    resumed = _fit_line(tmp_path / "stopped", 12)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert int(resumed.step) == 12
    assert abs(float(straight.params["slope"])) > 0.5  # it did learn something


def test_shrinking_is_the_area_average_of_opencv():
    image = render_scene(3).image
    expected = cv2.resize(image.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(train.shrink(image[None], 64)[0], expected / 127.5 - 1, atol=1e-6)


def test_min_snr_weight_caps_easy_timesteps_of_a_spread_batch():
    # With a perfect prediction of zero velocity the loss is the weight times the mean square.
    schedule = train.schedulers.make_noise_schedule(train.scheduler_config(recipe.SCHEDULER_JSON))

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
    value = train.unet_loss(
        modules, schedule, {"unet": {}, "text_encoder": {}}, rng, latents, ids, ids[:1]
    )
    timesteps = modules["unet"].timesteps
    assert (timesteps // 250).tolist() == [0, 1, 2, 3]  # one in each quarter of the schedule
    alphas = np.asarray(schedule.alphas_cumprod)[timesteps][:, None, None, None]
    _, rng_noise, _ = jax.random.split(rng, 3)
    noise = np.asarray(jax.random.normal(rng_noise, latents.shape))
    velocity = np.sqrt(alphas) * noise - np.sqrt(1 - alphas)
    snr = alphas / (1 - alphas)
    expected = np.mean(np.minimum(snr, 5) / (snr + 1) * velocity**2)
    np.testing.assert_allclose(value, expected, rtol=1e-5)  # float32 mean of 64 terms
