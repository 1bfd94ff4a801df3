"""VOC and COCO in small: folders in their layouts, prompts, pairs, a segmenter, its mean IoU."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from experiments.coco import prompts as coco_prompts
from experiments.segmenter import evaluate, train
from experiments.segmenter.folders import open_samples
from experiments.stickers import real_layouts
from experiments.stickers.scenes import UnseenRenderer
from experiments.stickers.sprites import CLASSES
from experiments.training.scenes import Scene
from experiments.voc import prompts as voc_prompts
from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.errors import UserError
from seediff_jax.main import main as seediff
from seediff_jax.prompts.class_lists import COCO_CLASSES, VOC_CLASSES
from tests.helpers.sticker_runs import SIDE, make_small_model, write_sprites

# pycocotools: NumPy 1's way to copy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(autouse=True)
def as_in_a_program():
    # Optax multiplies Python scalars by the step count, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def sprites(tmp_path_factory):
    return write_sprites(tmp_path_factory.mktemp("sprites") / "sprites.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, sprites):
    """VOC and COCO of 40 scenes."""
    folder = tmp_path_factory.mktemp("layouts")
    argv = ["real_layouts", f"--output={folder}", f"--sprites={sprites}", f"--side={SIDE}"]
    assert real_layouts.main(argv) == 0
    return folder


@pytest.fixture(scope="module")
def scenes(sprites):
    return [UnseenRenderer(sprites)(96_000_000 + k, side=SIDE) for k in range(40)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a model of random weights."""
    folder = tmp_path_factory.mktemp("model")
    save_model(make_small_model(folder / "tokenizer"), folder / "export")
    return folder / "export"


def _voc_name(name):
    return {"potted plant": "pottedplant", "tv": "tvmonitor"}.get(name, name)


def test_the_fake_voc_has_its_ids_palette_lists_and_boundaries(folder, scenes):
    root = folder / "VOCdevkit" / "VOC2012"
    lists = {
        split: (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        for split in ("train", "val", "trainval")
    }
    assert len(lists["train"]) == len(lists["val"]) == 20
    assert sorted(lists["train"] + lists["val"]) == lists["trainval"]
    for index, scene in enumerate(scenes[:8]):
        name = f"2007_{index:06d}"
        with Image.open(root / f"SegmentationClass/{name}.png") as mask:
            assert mask.mode == "P"
            # The first colours of VOC's palette, and that of its boundaries.
            assert mask.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            assert mask.getpalette()[255 * 3 :] == [224, 224, 192]
            labels = np.asarray(mask)
        wanted = np.zeros_like(labels)
        for of_object in scene.classes:
            region = scene.label_map == CLASSES.index(of_object) + 1
            wanted[region] = VOC_CLASSES.index(_voc_name(of_object)) + 1
        known = labels != 255
        np.testing.assert_array_equal(labels[known], wanted[known])
        for y, x in np.argwhere(np.ones_like(labels)):
            around = wanted[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            assert known[y, x] == (np.unique(around).size == 1)


def test_the_fake_coco_is_read_by_pycocotools_and_has_its_category_ids(folder):
    for split in ("train", "val"):
        api = COCO(folder / "coco" / "annotations" / f"instances_{split}2017.json")
        names = {each["id"]: each["name"] for each in api.loadCats(api.getCatIds())}
        assert tuple(names.values()) == COCO_CLASSES
        # Of COCO's list: the last id, and two that follow gaps.
        assert (names[90], names[13], names[27]) == ("toothbrush", "stop sign", "backpack")
        samples = open_samples(folder / "coco", split)
        assert samples.label_names == ("background", *COCO_CLASSES) and len(samples) >= 10
        for index in range(len(samples)):
            image, labels = samples.read(index)
            assert image.shape == (SIDE, SIDE, 3)
            assert labels.any() and set(samples.class_names(index)) == {
                COCO_CLASSES[k - 1] for k in np.unique(labels) if k
            }


def _records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_of_voc_name_the_classes_of_every_training_image(folder, scenes, tmp_path, capsys):
    path = tmp_path / "voc.jsonl"
    argv = ["prompts", f"--data={folder / 'VOCdevkit'}", f"--output={path}"]
    assert voc_prompts.main(argv) == 0
    records = _records(path)
    assert capsys.readouterr().out == f"20 prompts in {path}\n"
    for record, scene in zip(records, scenes[::2], strict=True):
        assert set(record["classes"]) == {_voc_name(name) for name in scene.classes}
        assert record["prompt"].startswith("a photo of a")
        for name in scene.classes:
            assert f" {name}" in record["prompt"]


def test_prompts_of_coco_are_captions_with_the_classes_that_they_lack(folder, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "train2017").symlink_to(folder / "coco" / "train2017")
    for kind in ("instances", "captions"):
        name = f"annotations/{kind}_train2017.json"
        content = json.loads((folder / "coco" / name).read_text())
        if kind == "captions":
            texts = ["A very \n old thing. ", "the second caption"]
            first = content["annotations"][0]
            content["annotations"] = [
                *({**first, "caption": text} for text in texts),
                *content["annotations"][1:-1],  # the last image has none
            ]
        (root / name).write_text(json.dumps(content))
    samples = open_samples(root, "train")
    found = list(coco_prompts.make_prompts(root, "train"))
    names = samples.class_names(0)
    assert found[0] == (f"A very old thing; {' '.join(names)}", names)
    assert len(found) == len(samples) - 1
    for index, (prompt, classes) in enumerate(found[1:], 1):
        assert classes == samples.class_names(index)
        assert ";" not in prompt and not prompt.endswith(".")  # captions of scenes name all
    (root / "annotations" / "captions_train2017.json").write_text("[]")
    with pytest.raises(UserError, match="captions_train2017.json is not a file of COCO's captions"):
        list(coco_prompts.make_prompts(root, "train"))


def test_a_data_set_without_objects_gives_no_prompt_file(tmp_path, capsys):
    empty = np.zeros((SIDE, SIDE), np.uint8)
    scene = Scene(np.zeros((SIDE, SIDE, 3), np.uint8), empty, "nothing", ())
    real_layouts.write_voc(tmp_path / "VOC2012", [scene, scene])
    path = tmp_path / "prompts.jsonl"
    assert voc_prompts.main(["prompts", f"--data={tmp_path}", f"--output={path}"]) == 2
    assert "no image shows a class" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [tmp_path / "VOC2012"]


@pytest.mark.parametrize(
    ("name", "prompts", "data", "form"),
    [
        ("voc", voc_prompts, "VOCdevkit", "voc"),
        pytest.param("coco", coco_prompts, "coco", "array_record", marks=pytest.mark.slow),
    ],
)
def test_from_prompts_to_mean_iou_on_real_images(
    folder, model, tmp_path, capsys, name, prompts, data, form
):
    real, texts, pairs = folder / data, tmp_path / "prompts.jsonl", tmp_path / "pairs"
    assert prompts.main(["prompts", f"--data={real}", f"--output={texts}"]) == 0
    argv = ["seediff", f"--model={model}", f"--prompts={texts}", f"--classes={name}"]
    argv += ["--num_images=16", "--num_steps=2", "--batch_size=1", f"--format={form}"]
    assert seediff([*argv, f"--output={pairs}"]) == 0
    run_dir = tmp_path / "run"
    argv = ["train", f"--data={pairs}", f"--test_data={real}", f"--run_dir={run_dir}"]
    argv += ["--steps=2", "--batch_size=8"]
    assert train.main(argv) == 0
    capsys.readouterr()
    output = tmp_path / "figures.json"
    argv = ["evaluate", f"--run_dir={run_dir}", f"--data={real}", f"--output={output}"]
    assert evaluate.main(argv) == 0
    table, figures = capsys.readouterr().out, json.loads(output.read_text())
    assert figures == json.loads((run_dir / "results.json").read_text())
    labels = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}[name]
    assert list(figures["IoU"]) == ["background", *labels]
    found = [value for value in figures["IoU"].values() if value is not None]
    assert figures["mean IoU"] == pytest.approx(np.mean(found))
    assert f"| background | {100 * figures['IoU']['background']:.1f} |" in table
    # A second segmenter, trained on what the first one predicts.
    argv = ["train", f"--data={pairs}", f"--test_data={real}", f"--teacher={run_dir}"]
    argv += ["--steps=1", "--batch_size=8", "--min_confidence=0.1", f"--run_dir={tmp_path / 'two'}"]
    assert train.main(argv) == 0
    # The two data sets have other classes.
    other = folder / {"voc": "coco", "coco": "VOCdevkit"}[name]
    assert evaluate.main(["evaluate", f"--run_dir={run_dir}", f"--data={other}"]) == 2
    assert "label 1 is " in capsys.readouterr().err
