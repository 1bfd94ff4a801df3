"""Cheaper sampling against the published one: rows are paired, resumed, and judged by both bars."""

import jax
import numpy as np
import pytest

from experiments import ablation, fast_settings
from experiments.ablation import Sampling
from experiments.fast_settings import PUBLISHED, Measured, Settings, compare, fast_rows
from experiments.stickers.scenes import TrainingRenderer
from experiments.stickers.sprites import CLASSES
from seediff_jax.errors import UserError
from tests.helpers.sticker_runs import make_small_model, write_sprites

_IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


def table_of(**rows):
    base = np.array([0.2, 0.9, 0.7, 0.8])
    measured = {PUBLISHED: Measured(_IMAGES, base, 900.0, 2.0)}
    measured |= {
        name: Measured(_IMAGES, base + shift, flops, 0.5) for name, (shift, flops) in rows.items()
    }
    return compare(measured, dict.fromkeys(measured, 1.0))


def test_rows_are_compared_image_by_image():
    shift = np.array([-0.02, 0.0, -0.02, 0.0])
    row, published = table_of(cheap=(shift, 300.0))
    assert (row["name"], published["name"]) == ("cheap", PUBLISHED)  # by cost
    assert row["fewer"] == 3 and row["difference"] == pytest.approx(-0.01)
    # Far below the error of either mean, 0.15: the images are the same.
    assert row["error"] == pytest.approx(0.02 / np.sqrt(12))
    assert (
        "| cheap | 0 | 3.00 | 2.00 | 0.640 | -0.010 ± 0.006 | 100% |"
        in fast_settings.render_table([row, published])
    )


def test_a_fast_row_saves_enough_and_loses_little():
    table = table_of(fast=(-0.009, 299.0), worse=(-0.02, 200.0), slow=(0.0, 301.0))
    assert fast_rows(table) == ["fast"]


def test_every_batch_is_full():
    with pytest.raises(UserError, match="num_images=10 must be a multiple of batch_size=8"):
        Settings(num_images=10)


@pytest.mark.slow
def test_rows_are_sampled_once_and_fewer_calls_cost_fewer_flops(tmp_path, monkeypatch):
    path, model = write_sprites(tmp_path / "sprites.npz"), make_small_model(tmp_path / "model")
    truth = np.zeros((model.config.image_side,) * 2, np.uint8)
    ground = ablation.Ground(CLASSES, TrainingRenderer(path), lambda x, _: [truth] * len(x))
    monkeypatch.setattr(fast_settings, "load_model", lambda name: model)
    monkeypatch.setattr(fast_settings, "make_ground", lambda settings, side: ground)
    options = {"num_images": 4, "batch_size": 2, "judge_steps": 1, "judge_scenes": 32}
    settings = Settings(run_dir=str(tmp_path / "run"), **options)
    rows = {PUBLISHED: Sampling(4), "half": Sampling(2), "part": Sampling(4, interval=(0.5, 1.0))}
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        table = fast_settings.run(settings, rows)
    assert [row["name"] for row in table] == ["half", "part", PUBLISHED]
    flops = {row["name"]: row["flops"] for row in table}
    # "half" saves two calls of both prompts, "part" one prompt of two calls; what a call does once,
    # such as recording, is a tenth here.
    saved = [flops[PUBLISHED] - flops[name] for name in ("half", "part")]
    assert 2 <= saved[0] / saved[1] < 2.3
    monkeypatch.setattr(fast_settings, "measure", None)
    with jax.numpy_dtype_promotion("standard"):
        assert fast_settings.run(settings, rows) == table
