"""The benchmark of stickers: pairs, rows and table, with a model that draws perfect scenes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.stickers import benchmark, pairs
from experiments.stickers.scenes import read_sprites, render_scene
from experiments.stickers.sprites import CLASSES, TRAINING_SETS
from experiments.training.networks import MAX_TOKENS
from experiments.training.vocabulary import END, write_tokenizer
from seediff_jax import MaskConfig, SamplingConfig
from seediff_jax.errors import UserError
from seediff_jax.prompts.tokenizer import load_tokenizer
from tests.helpers.sticker_runs import SIDE, draw_pairs, make_small_model, write_sprites


@pytest.fixture(autouse=True)
def standard_promotion():
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def sprites_file(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("stickers") / "sprites.npz")


@dataclasses.dataclass
class Drawn:
    """Stands in for `generate`; counts its calls."""

    path: object
    calls: int = 0

    def __call__(self, model, prompts, lists, *, rng_seed, first_index, sampling):
        self.calls += 1
        drawings = read_sprites(self.path, TRAINING_SETS)

        def render(index, names):
            return render_scene(first_index + index, drawings, side=SIDE, classes=names)

        return draw_pairs(render, prompts, lists.named)


@pytest.fixture
def drawn(sprites_file, monkeypatch):
    generate = Drawn(sprites_file)
    monkeypatch.setattr(pairs, "generate", generate)
    return generate


METHODS = {"seediff": MaskConfig(), "cross": MaskConfig(method="cross_attention")}


def _load(folder, count, methods=METHODS):
    return pairs.load_pairs(None, folder, count, methods, SamplingConfig(num_steps=1), 4)


def test_images_are_sampled_once_for_all_methods_and_never_again(tmp_path, drawn):
    first = _load(tmp_path, 6)
    assert drawn.calls == 2
    assert first.images.shape == (6, SIDE, SIDE, 3)
    again = _load(tmp_path, 6)
    longer = _load(tmp_path, 9)
    assert drawn.calls == 3
    np.testing.assert_array_equal(again.labels["cross"], first.labels["cross"])
    np.testing.assert_array_equal(longer.images[:6], first.images)
    # A chunk that a kill cut short, or that lacks a method, is made again.
    path = tmp_path / "000000.npz"
    path.write_bytes(path.read_bytes()[:1000])
    _load(tmp_path, 4)
    assert drawn.calls == 4
    _load(tmp_path, 4, METHODS | {"plain": MaskConfig(background=False)})
    assert drawn.calls == 5


def test_labels_are_the_ids_of_the_classes_and_lie_on_the_objects(tmp_path, drawn):
    found = _load(tmp_path, 8)
    for index in range(8):
        _, names = pairs.prompt_of(index)
        ids = {CLASSES.index(name) + 1 for name in names}
        scene = render_scene(
            index, read_sprites(drawn.path, TRAINING_SETS), side=SIDE, classes=names
        )
        for labels in found.labels.values():
            assert set(np.unique(labels[index])) <= {0, *ids}
        truth = scene.label_map
        overlap = (found.labels["seediff"][index] == truth).mean()
        # Levels of 4 and 8 cells: the edges of an object are 4 pixels wide.
        assert overlap > 0.75
    assert found.scores["seediff"].min() > 0.5


def test_prompts_are_captions_that_the_model_can_spell_and_show_every_class(tmp_path):
    from experiments.stickers.recipe import WORDS

    vocabulary = write_tokenizer(tmp_path, WORDS, MAX_TOKENS)
    tokenizer = load_tokenizer(tmp_path)
    texts, names = zip(*map(pairs.prompt_of, range(100)), strict=True)
    for text, row in zip(texts, tokenizer.encode(texts), strict=True):
        assert (row != vocabulary[END]).sum() == 1 + len(text.split())
    counts = {name: sum(name in of_image for of_image in names) for name in CLASSES}
    assert min(counts.values()) >= 5
    assert 10 < sum(len(of_image) == 2 for of_image in names) < 45
    assert all(len({*of_image}) == len(of_image) for of_image in names)


def test_ignored_pixels_stay_ignored():
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    expected = [[0, CLASSES.index("tv") + 1, CLASSES.index("cat") + 1, 255]]
    np.testing.assert_array_equal(pairs.class_ids(labels, ("tv", "cat")), expected)


def test_the_score_filter_keeps_the_surest_images():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    labels = images[..., 0]
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.6], np.float32)
    pair_set = pairs.PairSet(images, {"seediff": labels}, {"seediff": scores})
    row = benchmark.Row("filtered", MaskConfig(), keep=0.6)
    kept = benchmark.generated_samples(row, pair_set, {"seediff": MaskConfig()})
    assert kept.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert kept.labels[:, 0, 0].tolist() == [0, 2, 3]


def test_rows_with_the_same_masks_share_them():
    methods = benchmark.mask_methods(benchmark.ROWS)
    assert methods["seediff"] == MaskConfig()
    assert "seediff_score_filter" not in methods
    assert len({*methods.values()}) == len(methods) == 6


def test_the_table_states_mean_spread_and_share_of_the_upper_bound():
    runs = {
        benchmark.BOUND.name: [0.8, 0.8, 0.8],
        "SeeDiff": [0.68, 0.72, 0.70],
        "one seed": [0.4],
    }
    rows = {
        name: [
            {"images": 7, benchmark.UNSEEN: {"mean IoU": v}, benchmark.KNOWN: {"mean IoU": v / 2}}
            for v in values
        ]
        for name, values in runs.items()
    }
    lines = benchmark.render_table(rows).splitlines()
    assert lines[2:] == [
        "| rendered scenes, exact masks | 7 | 3 | 80.0 ± 0.0 | 100% | 40.0 ± 0.0 | 100% |",
        "| SeeDiff | 7 | 3 | 70.0 ± 2.0 | 88% | 35.0 ± 1.0 | 88% |",
        "| one seed | 7 | 1 | 40.0 | 50% | 20.0 | 50% |",
    ]


def _settings(tmp_path, sprites_file, **changes):
    values = {
        "sprites": str(sprites_file), "run_dir": str(tmp_path / "run"), "num_pairs": 38,
        "batch_size": 19, "train_steps": 12, "train_batch_size": 8, "num_test": 38, "num_seeds": 2,
        "rows": ("rendered_scenes_exact_masks", "seediff"),
    }  # fmt: skip
    return benchmark.Settings(**(values | changes))


@pytest.mark.slow
def test_the_whole_benchmark_runs_and_resumes(tmp_path, sprites_file, drawn, monkeypatch):
    model = make_small_model(tmp_path / "model")
    monkeypatch.setattr(benchmark, "load_model", lambda name: model)
    trained = []
    measure = benchmark.measure
    monkeypatch.setattr(
        benchmark, "measure", lambda *args: trained.append(not args[3].exists()) or measure(*args)
    )
    results = benchmark.run(_settings(tmp_path, sprites_file))
    assert trained == [True] * 4 and drawn.calls == 2
    bound, seediff = results["rows"].values()
    assert {row["images"] for row in (*bound, *seediff)} == {38}
    # A few steps find the background; two seeds are not one.
    for test in (benchmark.UNSEEN, benchmark.KNOWN):
        assert min(row[0][test]["IoU"]["background"] for row in (bound, seediff)) > 0.2
        assert bound[0][test]["mean IoU"] != bound[1][test]["mean IoU"]
        assert len(bound[0][test]["IoU"]) == 20
    again = benchmark.run(_settings(tmp_path, sprites_file, num_seeds=1))
    assert trained[4:] == [False] * 2 and drawn.calls == 2
    assert again["rows"]["SeeDiff"][0] == seediff[0]
    assert not list((tmp_path / "run").glob("*.checkpoints"))  # none is left
    with pytest.raises(UserError, match=r"train_steps=12 \(now 61\)"):
        benchmark.run(_settings(tmp_path, sprites_file, train_steps=61))
    assert json.loads((tmp_path / "run" / "seediff-0.json").read_text()) == seediff[0]
