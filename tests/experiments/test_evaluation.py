"""The evaluation of the embedded models, with images that are drawn instead of generated."""

import numpy as np
import pytest
from PIL import Image

from experiments.stickers import evaluate
from experiments.stickers.scenes import read_sprites, render_scene
from experiments.stickers.sprites import CLASSES, TRAINING_SETS
from experiments.training import evaluation
from experiments.training.mask_scores import METHODS, PUBLISHED
from seediff_jax import SamplingConfig
from tests.helpers.sticker_runs import SIDE, class_colour, draw_pairs, write_sprites

_SAMPLING = SamplingConfig(num_steps=1)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    path = write_sprites(tmp_path_factory.mktemp("stickers") / "sprites.npz")
    return read_sprites(path, TRAINING_SETS)


def _scene(drawings, index, names):
    return render_scene(index, drawings, side=SIDE, classes=tuple(names))


@pytest.fixture
def generated(drawings, monkeypatch):
    """Scenes of what is asked for, but a tv instead of every cat."""

    def generate(model, prompts, names, *, rng_seed, first_index, sampling):
        shown = [["tv" if name == "cat" else name for name in of_image] for of_image in names]
        return draw_pairs(
            lambda index, of_image: _scene(drawings, first_index + index, of_image), prompts, shown
        )

    monkeypatch.setattr(evaluation, "generate", generate)


def _classify(images):
    """The class whose colour most pixels of the middle have."""
    middle = images[:, SIDE // 2, SIDE // 2].astype(float)
    colours = np.array([class_colour(name) for name in CLASSES])
    return np.argmin(np.linalg.norm(middle[:, None] - colours, axis=-1), axis=-1)


def test_shares_of_recognised_images_are_those_of_the_classifier(drawings, generated):
    def read_truth(images, names):
        return [_scene(drawings, 0, of_image).label_map for of_image in names]

    options = {"classify": _classify, "read_truth": read_truth, "rng_seed": 1}
    result = evaluation.measure_generated(None, CLASSES, 20, 1, sampling=_SAMPLING, **options)
    shares = result["recognised"]
    assert shares["cat"] == 0 and shares["aeroplane"] == shares["tv"] == 1
    assert shares["mean"] == pytest.approx(19 / 20)  # aeroplane twice, every other class once
    assert set(result["iou"]) == set(METHODS)
    assert set(result["iou"][PUBLISHED]) == {"mean", *CLASSES}
    text = evaluation.report_recognised(result)
    assert text == "recognised: 0.950 of 20 images; classes below 0.7: cat 0.00"
    two = evaluation.measure_generated(None, CLASSES, 4, 2, sampling=_SAMPLING, **options)
    assert "recognised" not in two


def test_classes_come_in_turn_and_pairs_change():
    firsts = [evaluation.classes_in_turn(CLASSES, i, 2) for i in range(19 * 18)]
    assert len({*firsts}) == 19 * 18  # every ordered pair once
    assert [a for a, _ in firsts[:19]] == list(CLASSES)


def test_the_sheet_shows_images_without_order_and_the_answers_lie_beside_it(
    tmp_path, drawings, monkeypatch
):
    def generate_images(model, prompts, *, rng_seed, first_index, sampling):
        names = [next(n for n in CLASSES if prompt.endswith(f" {n}")) for prompt in prompts]
        scenes = [_scene(drawings, first_index + i, (name,)) for i, name in enumerate(names)]
        return np.stack([scene.image for scene in scenes])

    monkeypatch.setattr(evaluation, "generate_images", generate_images)
    path = tmp_path / "new" / "sheet.png"
    evaluation.write_sheet(path, None, CLASSES, _SAMPLING, count=44)
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (6 * SIDE, 8 * SIDE, 3)
    rows = [line.split(", ") for line in path.with_suffix(".txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [8] * 5 + [4]
    named = sum(rows, [])
    assert named[:19] != list(CLASSES) and min(named.count(name) for name in CLASSES) >= 2
    tiles = pixels.reshape(6, SIDE, 8, SIDE, 3).swapaxes(1, 2).reshape(48, SIDE, SIDE, 3)
    assert [CLASSES[k] for k in _classify(tiles[:44])] == named


def test_tables_have_all_figures_of_the_study(capsys):
    iou = {method: {"mean": 0.8} | dict.fromkeys(CLASSES, 0.7) for method in METHODS}
    result = {"images": 4, "iou": iou}
    single = result | {"recognised": {"mean": 0.9} | dict.fromkeys(CLASSES, 0.75)}
    results = {
        "rendered, one object": result, "rendered, two objects": result,
        "rendered, one object, unseen style": result, "rendered, two objects, unseen style": result,
        "generated, one": single, "generated, two": result, "classifier accuracy": 0.991,
        "classifier accuracy, unseen style": 0.881, "segmenter IoU": 0.951,
    }  # fmt: skip
    evaluate.print_tables(results)
    text = capsys.readouterr().out
    assert "recognised: 0.900 of 4 images; classes none below 0.7" in text
    assert all(f"| {method} | 0.800 |" in text for method in METHODS)
    assert all(f"| {name} | 0.75 | 0.70 |" in text for name in CLASSES)
    assert all(figure in text for figure in ("0.991", "0.881", "0.951"))


def test_the_round_trip_is_measured_against_exact_masks(drawings, monkeypatch):
    scenes = [_scene(drawings, i, (CLASSES[i],)) for i in range(10)]
    monkeypatch.setattr(evaluation, "encode_images", lambda model, images: images)
    monkeypatch.setattr(evaluation, "decode_latents", lambda model, latents: latents)
    exact = {scene.image.tobytes(): scene.label_map for scene in scenes}

    def read_truth(images, names):
        return [exact[image.tobytes()] for image in images]

    assert evaluation.round_trip_iou(None, scenes, CLASSES, read_truth) == 1

    def read_half(images, names):
        return [np.where(np.arange(SIDE) < SIDE / 2, m, 0) for m in read_truth(images, names)]

    assert 0.3 < evaluation.round_trip_iou(None, scenes, CLASSES, read_half) < 0.7
