"""The table of given images: one confusion matrix per cell, measured once."""

import types

import numpy as np
import pytest

from experiments.stickers import real_images
from experiments.stickers.real_images import Calls
from experiments.stickers.scenes import UnseenRenderer
from experiments.stickers.sprites import CLASSES
from seediff_jax import MaskConfig, SegmentConfig
from tests.helpers.sticker_runs import SIDE, draw_pairs, make_small_model, write_sprites

ROWS = {"SeeDiff": MaskConfig(), "exponentiation": MaskConfig(method="exponentiation")}
CALLS = {
    "100": Calls(SegmentConfig()),
    "50, 200": Calls(SegmentConfig(timesteps=(50, 200), mirror=True)),
}


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Scenes whose attention is perfect; counts what is attended."""
    sprites = write_sprites(tmp_path / "sprites.npz")
    model, render, attended = make_small_model(tmp_path / "model"), UnseenRenderer(sprites), []

    def attend(model, images, prompts, names, indices, *, config):
        scenes = [render(real_images._FIRST_SCENE + index, side=SIDE) for index in indices]
        assert [f"a photo of {_listed(scene.classes)}" for scene in scenes] == prompts
        attended.append((config.timesteps, [*indices]))
        return types.SimpleNamespace(
            attention_maps=draw_pairs(lambda i, _: scenes[i], prompts, names).attention_maps
        )

    monkeypatch.setattr(real_images, "load_model", lambda name: model)
    monkeypatch.setattr(real_images, "attend_images", attend)
    settings = real_images.Settings(
        run_dir=str(tmp_path / "run"), sprites=str(sprites), num_images=5, batch_size=3
    )
    return settings, attended, render


def _listed(names):
    return " and ".join(f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names)


def test_cells_are_measured_once_and_rows_and_calls_can_be_added(world):
    settings, attended, _ = world
    results = real_images.run(settings, ROWS, CALLS)
    assert [steps for steps, _ in attended] == [(100,)] * 2 + [(50, 200)] * 2
    assert [indices for _, indices in attended[:2]] == [[0, 1, 2], [3, 4]]
    assert real_images.run(settings, ROWS, CALLS) == results and len(attended) == 4
    more = CALLS | {"400": Calls(SegmentConfig(timesteps=(400,)), "two_levels")}
    assert real_images.run(settings, ROWS, more)["100"] == results["100"]
    assert len(attended) == 6
    real_images.run(settings, ROWS | {"low": MaskConfig(threshold=0.3)}, CALLS)
    assert len(attended) == 10


def test_the_iou_of_a_cell_is_that_of_all_pixels_together(world):
    settings, _, render = world
    results = real_images.run(settings, ROWS, CALLS)
    scenes = [render(real_images._FIRST_SCENE + i, side=SIDE) for i in range(5)]
    shown = {name for scene in scenes for name in scene.classes}
    for figures in results["100"].values():
        ious = figures["IoU"]
        assert {name for name, iou in ious.items() if iou is not None} == {"background", *shown}
        found = [iou for iou in ious.values() if iou is not None]
        assert figures["mean IoU"] == pytest.approx(np.mean(found))
    # Perfect attention at 8 x 8 locations gives masks that are right but for their edges.
    assert results["100"]["SeeDiff"]["mean IoU"] > 0.6


def test_labels_become_ids_of_the_study_and_ignored_pixels_background():
    found = real_images._class_ids(np.array([[0, 1], [2, 255]], np.uint8), ("dog", "cat"))
    assert found.tolist() == [[0, CLASSES.index("dog") + 1], [CLASSES.index("cat") + 1, 0]]


def test_the_table_has_a_line_per_method_and_a_column_per_kind_of_calls():
    results = {
        "50": {"a": {"mean IoU": 0.5}, "b": {"mean IoU": 0.25}},
        "50, 100": {"a": {"mean IoU": 0.625}, "b": {"mean IoU": 0.75}},
    }
    assert real_images.render_table(results).splitlines() == [
        "| masks | 50 | 50, 100 |", "|---|---|---|", "| a | 50.0 | 62.5 |", "| b | 25.0 | 75.0 |"
    ]  # fmt: skip


def test_rows_and_calls_are_all_different():
    assert len({*real_images.ROWS.values()}) == len(real_images.ROWS)
    assert len({*real_images.CALLS.values()}) == len(real_images.CALLS)
