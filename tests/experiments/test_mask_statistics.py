"""Statistics of masks: rank measures against their definitions, and the tables of results."""

import json

import jax
import numpy as np
import pytest

from experiments.stickers import looked_for, mask_statistics
from experiments.stickers.mask_statistics import auc, found_shares, rank_correlation, render_tables
from experiments.stickers.scenes import TrainingRenderer
from experiments.stickers.sprites import CLASSES
from seediff_jax import SamplingConfig
from tests.helpers.sticker_runs import SIDE, draw_pairs, make_small_model, write_sprites


@pytest.mark.parametrize("ties", [False, True])
def test_rank_measures_follow_from_their_definitions(ties):
    rng = np.random.default_rng(0)
    draw = (lambda n: rng.integers(0, 5, n).astype(float)) if ties else rng.random
    first, second = draw(40), draw(40)
    ranks = [
        [sum(other < each for other in values) + sum(values == each) / 2 for each in values]
        for values in (first, second)
    ]
    expected = np.corrcoef(*ranks)[0, 1]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)
    present, absent = draw(30) + 0.5, draw(20)
    wins = sum((a > b) + (a == b) / 2 for a in present for b in absent)
    np.testing.assert_allclose(auc(present, absent), wins / 600, atol=1e-12)


def test_rank_measures_of_nothing_are_undefined():
    some, nothing = np.arange(3.0), np.zeros(0)
    assert auc(some, nothing) is auc(nothing, some) is rank_correlation(nothing, nothing) is None
    assert rank_correlation(some, np.ones(3)) is None


def test_tables_have_a_row_for_each_statistic_and_threshold():
    results = {
        "statistics": {"score": {"listed": 0.5, "IoU": -0.25}},
        "presence at": {"0.8": {"listed": [0.984, 0.3333], "generated": [1.0, None]}},
    }
    assert render_tables(results).split("\n") == [
        "| statistic | listed | IoU |",
        "|---|---|---|",
        "| score | 0.500 | -0.250 |",
        "",
        "| presence | listed | generated |",
        "|---|---|---|",
        "| 0.8 | 98% / 33% | 100% / - |",
        "",
    ]


@pytest.fixture
def sprites(tmp_path):
    return write_sprites(tmp_path / "sprites.npz")


def test_what_a_generated_image_shows_is_what_the_judge_finds(sprites, tmp_path, monkeypatch):
    model, render = make_small_model(tmp_path / "model"), TrainingRenderer(sprites)
    scenes, names = [], []

    def draw_one_object(model, prompts, lists, **options):
        assert all(prompt.startswith("a photo of a") for prompt in prompts)
        names[:] = [(*a, *b) for a, b in zip(lists.named, lists.unnamed, strict=True)]
        for of_image in names:
            seeds = range(100)  # until the object is the first one of the prompt
            made = (render(seed, side=SIDE, num_objects=1) for seed in seeds)
            scenes.append(next(scene for scene in made if scene.classes == of_image[:1]))
        return draw_pairs(lambda i, _: scenes[i], prompts, names)

    def judge(images):
        np.testing.assert_array_equal(images, np.stack([scene.image for scene in scenes]))
        return np.stack([scene.label_map for scene in scenes])

    monkeypatch.setattr(looked_for, "generate", draw_one_object)
    rng = np.random.default_rng(0)
    looked = looked_for.look_generated(model, range(4, 7), rng, judge, SamplingConfig())
    assert [of_image[0] for of_image in names] == [*CLASSES[4:7]]
    assert all(len({*of_image}) == 4 for of_image in names)
    for k, each in enumerate(looked):
        scene, place = scenes[k // 4], k % 4
        assert each.of == "generated" and each.is_named == (place < 2)
        drawn = scene.label_map > 0 if place == 0 else np.zeros((SIDE, SIDE), bool)
        np.testing.assert_array_equal(each.truth, drawn)
        assert each.cross_attention.any() == (place == 0)


def test_specks_are_no_objects():
    label_map = np.zeros((1, 20, 20), np.uint8)
    label_map[0, :2, :2], label_map[0, 5, 5:8] = 3, 7  # 1 % and less
    found = looked_for.without_specks(label_map)
    assert set(np.unique(found)) == {0, 3}
    np.testing.assert_array_equal(found == 3, label_map == 3)


def test_a_judge_is_judged_by_scenes(sprites, tmp_path):
    model, render = make_small_model(tmp_path / "model"), TrainingRenderer(sprites)
    scenes = [render(k, side=SIDE, num_objects=2) for k in range(3)]

    def first_object_and_a_cat(images):
        maps = np.stack([scene.label_map.copy() for scene in scenes])
        for label_map, scene in zip(maps, scenes, strict=True):
            label_map[label_map == CLASSES.index(scene.classes[1]) + 1] = 0
            label_map[:3] = CLASSES.index("cat") + 1
        return maps

    shows_cat = [
        names.index("cat") if "cat" in names else 2 for names in (s.classes for s in scenes)
    ]
    shown, others = found_shares(model, first_object_and_a_cat, scenes)
    # Each scene shows 2 of the classes; "cat" is found everywhere.
    assert shown == pytest.approx((3 + shows_cat.count(1)) / 6)
    assert others == pytest.approx(shows_cat.count(2) / (3 * (len(CLASSES) - 2)))


@pytest.mark.slow
def test_all_sets_are_measured_and_written(sprites, tmp_path, monkeypatch, capsys):
    model = make_small_model(tmp_path / "model")
    monkeypatch.setattr(mask_statistics, "load_model", lambda name: model)
    output = tmp_path / "results.json"
    argv = ["mask_statistics", f"--sprites={sprites}", f"--output={output}", "--num_images=2"]
    argv += ["--generated=3", "--num_steps=2", "--judge_steps=2", "--judge_scenes=8"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert mask_statistics.main(argv) == 0
    results = json.loads(output.read_text())
    groups = results["presence at"]["presence by attention, 0.8"]
    assert {name for name in groups if "generated" in name} == {
        "generated, named: drawn against not drawn",
        "generated: drawn against not drawn",
    }
    assert all(0 <= share <= 1 for share in results["judge"])
    assert "the judge finds" in capsys.readouterr().out
