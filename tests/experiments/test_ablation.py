"""The ablation: rows share what they can, resume, and the table and plot say what was measured."""

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation
from experiments.ablation import Row, Sampling
from experiments.stickers.scenes import TrainingRenderer, read_sprites, render_scene
from experiments.stickers.sprites import CLASSES, TRAINING_SETS
from experiments.training.attention import with_seeds
from experiments.training.plots import Bar, draw_bars
from seediff_jax import MaskConfig
from seediff_jax.schedulers.registry import SCHEDULERS
from tests.helpers.sticker_runs import SIDE, draw_pairs, make_small_model, write_sprites

DOCS = Path(__file__).parents[2] / "docs"

_ROWS = (
    Row("published", "published"),
    Row("method", "cross", MaskConfig(method="cross_attention")),
    Row("levels", "coarse", levels=1),
    Row("steps", "half", sampling=Sampling(1, 1.0, "euler", (0.0, 0.5), (0.2, 0.8))),
)


@pytest.mark.parametrize("name", ["ablation", "ablation_shapes"])
def test_the_published_tables_and_plots_are_those_of_the_published_figures(name):
    rows = json.loads((DOCS / f"{name}.json").read_text())
    assert ablation.render_table(rows) in (DOCS / "research.md").read_text()
    assert ablation.render_plot(rows) == (DOCS / f"{name}.svg").read_text()


def test_seeds_of_two_levels_are_read_from_both_by_the_same_levels_of_self_attention(tmp_path):
    model = make_small_model(tmp_path / "model")
    both = with_seeds(model, "two_levels").capture
    assert both.self_layers == model.capture.self_layers
    more = [name for name in both.cross_layers if name not in model.capture.cross_layers]
    assert more == ["mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert with_seeds(model, None) is model


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A model whose images and noised scenes have perfect attention; counts what is sampled."""
    path = write_sprites(tmp_path / "sprites.npz")
    drawings = read_sprites(path, TRAINING_SETS)
    model = make_small_model(tmp_path / "model")
    sampled, scenes_of = [], {}

    def generate(model, prompts, names, *, rng_seed, first_index, sampling):
        def render(index, classes):
            return render_scene(first_index + index, drawings, side=SIDE, classes=classes)

        config = (model.scheduler_config.kind, model.capture.calls, sampling)
        sampled.append((config, first_index, len(prompts)))
        pairs = draw_pairs(render, prompts, names)
        for index, of_image in enumerate(names):
            scene = render(index, tuple(of_image))
            scenes_of[scene.image.tobytes()] = scene.label_map
        return pairs

    def capture(model, scenes, timestep, first_index):
        names = [scene.classes for scene in scenes]
        return draw_pairs(lambda i, _: scenes[i], [""] * len(scenes), names).attention_maps

    def read_truth(images, names):
        return [scenes_of[np.asarray(image).tobytes()] for image in images]

    ground = ablation.Ground(CLASSES, TrainingRenderer(path), read_truth)
    monkeypatch.setattr(ablation, "load_model", lambda name: model)
    monkeypatch.setattr(ablation, "generate", generate)
    monkeypatch.setattr(ablation, "capture_attention", capture)
    monkeypatch.setattr(ablation, "make_ground", lambda settings, side: ground)
    settings = ablation.Settings(run_dir=str(tmp_path / "run"), num_images=5, batch_size=4)
    return settings, sampled


def test_rows_share_images_and_are_not_measured_twice(world):
    settings, sampled = world
    results = ablation.run(settings, _ROWS)
    kinds = [(config[0], config[1], config[2].guidance_scale) for config, _, _ in sampled]
    plain, other = ("ddim", (0.0, 1.0), 7.5), ("euler", (0.0, 0.5), 1.0)
    assert kinds == [plain] * 2 + [other] * 2  # five images in two batches, once per sampling
    assert sampled[-1][0][2].num_steps == 1
    assert sampled[-1][0][2].guidance_interval == (0.2, 0.8)
    assert [(first, count) for _, first, count in sampled[:2]] == [(0, 4), (4, 1)]
    published, cross, coarse, half = results
    assert published["generated"]["objects"] == published["rendered"]["objects"] == 5
    assert published["generated"]["iou"] > coarse["generated"]["iou"]  # cells of 4 and 8 pixels
    assert half["rendered"] is None
    assert ablation.run(settings, _ROWS) == results and len(sampled) == 4
    more = (*_ROWS, Row("threshold", "low", MaskConfig(threshold=0.2)))
    longer = ablation.run(settings, more)
    assert len(sampled) == 6  # only the group that grew
    assert longer[1]["generated"]["iou"] == cross["generated"]["iou"]


def test_rendered_scenes_alone_need_no_sampling(world):
    settings, sampled = world
    results = ablation.run(dataclasses.replace(settings, sets=("rendered",)), _ROWS)
    assert [row["name"] for row in results] == ["published", "cross", "coarse"] and not sampled
    assert results[0]["rendered"]["objects"] == 5 and results[0]["generated"] is None
    table = ablation.render_table(results).splitlines()
    assert len(table) == 5 and table[2].count("|") == 6
    plot = ablation.render_plot(results)
    assert "rendered scenes" in plot and "generated images" not in plot


def test_the_error_is_that_of_the_mean_and_the_first_batch_does_not_count():
    values, seconds = [0.2, 0.4, 0.9], [9.0, 0.1, 0.3]
    figures = ablation.Measured(values, seconds).figures()
    assert figures["iou"] == pytest.approx(0.5)
    assert figures["error"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))
    assert figures["mask s"] == pytest.approx(0.2)
    assert ablation.Measured([0.5], [9.0]).figures()["mask s"] == 9.0


def test_groups_choose_rows():
    assert ablation.Settings().rows == list(ablation.ROWS)
    names = [row.name for row in ablation.Settings(groups=("levels", "power")).rows]
    levels = ["seed level alone", "seeds of two levels"]
    assert names == ["cosine, power 2", "cosine, power 4", *levels]


def test_every_row_has_a_name_of_its_own_and_a_sampler_that_exists():
    names = [row.name for row in ablation.ROWS]
    assert len({*names}) == len(names)
    kinds = {row.sampling.scheduler for row in ablation.ROWS} - {None}
    assert kinds <= set(SCHEDULERS)


def _result(name, group, rendered, generated):
    def figures(iou):
        return {"iou": iou, "error": 0.01, "objects": 5, "mask s": 0.002, "sampling s": 0.5}

    sets = {"rendered": rendered, "generated": generated}
    return {"name": name, "group": group} | {
        k: None if v is None else figures(v) for k, v in sets.items()
    }


def test_the_table_has_one_line_per_row():
    results = [_result("a", "x", 0.8, 0.7), _result("b", "y", None, 0.6)]
    assert ablation.render_table(results).splitlines()[2:] == [
        "| a | 0.800 ± 0.010 | 0.700 ± 0.010 | 0.500 | 0.0020 |",
        "| b |  | 0.600 ± 0.010 | 0.500 | 0.0020 |",
    ]


def test_the_plot_is_svg_whose_bars_are_as_long_as_their_values():
    svg = draw_bars([Bar("g", "a < b", (0.5, None), (0.1, 0.0))], ("one", "two"), "IoU")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert "a < b" in texts and "IoU" in texts
    ticks = [float(node.get("x1")) for node in root.iter(f"{space}line")][:6]
    bars = [r for r in root.iter(f"{space}rect") if float(r.get("x", 0)) == ticks[0]]
    (bar,) = [r for r in bars if r.get("height") != "10"]
    assert float(bar.get("width")) == pytest.approx((ticks[-1] - ticks[0]) / 2)
    (error,) = [n for n in root.iter(f"{space}line") if n.get("stroke") == "black"]
    ends = [float(error.get(name)) for name in ("x1", "x2")]
    expected = np.interp([0.4, 0.6], [0, 1], [ticks[0], ticks[-1]])
    np.testing.assert_allclose(ends, expected, atol=0.1)


@pytest.mark.parametrize("group", ["threshold", "affinity", "power"])
def test_a_plot_of_all_rows_is_well_formed(group):
    results = [_result(row.name, row.group, 0.5, 0.4) for row in ablation.ROWS]
    root = ElementTree.fromstring(ablation.render_plot(results))
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert all(row.name in texts for row in ablation.ROWS if row.group == group)
