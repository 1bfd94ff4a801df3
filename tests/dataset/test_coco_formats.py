"""COCO's annotations as pycocotools and the arithmetic of panoptic pictures read them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from seediff_jax.dataset.encoding import encode
from seediff_jax.dataset.formats import FORMATS
from tests.helpers.format_runs import CLASS_NAMES, NO_CLASS, ONLY_IGNORED, SAMPLES, write_run

INSTANCES = "coco/annotations/instances.json"
PANOPTIC = "coco_panoptic/annotations/panoptic.json"

# pycocotools decodes by a way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco") / "run"
    write_run("coco", folder)
    return write_run("coco_panoptic", folder)


@pytest.fixture(scope="module")
def coco(folder):
    return COCO(folder / INSTANCES)


@pytest.fixture(scope="module")
def panoptic(folder):
    return json.loads((folder / PANOPTIC).read_bytes())


def box(region):
    """x, y, width, height of the True pixels."""
    rows, columns = np.nonzero(region)
    top, left = rows.min(), columns.min()
    return [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_annotations_are_the_mask_class_by_class(coco):
    assert sorted(coco.imgs) == sorted(SAMPLES)
    for index, sample in SAMPLES.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        mask = np.zeros_like(sample.mask)
        for annotation in annotations:
            region = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(region, sample.mask == annotation["category_id"])
            assert annotation["area"] == region.sum() > 0
            assert annotation["bbox"] == box(region)
            assert annotation["iscrowd"] == 0
            mask[region] = annotation["category_id"]
        np.testing.assert_array_equal(mask, np.where(sample.mask == 255, 0, sample.mask))
    assert coco.getAnnIds(imgIds=[NO_CLASS]) == coco.getAnnIds(imgIds=[ONLY_IGNORED]) == []


def test_ignored_pixels_are_a_region_of_the_image_entry(coco):
    for index, sample in SAMPLES.items():
        image = coco.imgs[index]
        if index == NO_CLASS:
            assert "ignore" not in image
        else:
            np.testing.assert_array_equal(rle_masks.decode(image["ignore"]), sample.mask == 255)


def test_categories_have_the_ids_of_the_run(coco):
    names = {k: category["name"] for k, category in coco.cats.items()}
    assert names == dict(enumerate(CLASS_NAMES, 1))


@pytest.mark.parametrize("name", ["coco", "coco_panoptic"])
def test_images_are_jpeg_files_of_the_stated_size(folder, name):
    path = INSTANCES if name == "coco" else PANOPTIC
    for entry in json.loads((folder / path).read_bytes())["images"]:
        sample = SAMPLES[entry["id"]]
        content = (folder / name / "images" / entry["file_name"]).read_bytes()
        assert content == encode(sample, ["image.jpg"]).files["image.jpg"]
        assert (entry["height"], entry["width"]) == sample.mask.shape
        assert entry["prompt"] == sample.record["prompt"]


def test_annotations_score_perfectly_against_themselves(coco):
    results = [annotation | {"score": 1.0} for annotation in coco.anns.values()]
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1, abs=1e-9)  # mean average precision


def test_segments_of_panoptic_pictures_are_the_mask_with_ignored_pixels_void(folder, panoptic):
    assert [annotation["image_id"] for annotation in panoptic["annotations"]] == sorted(SAMPLES)
    for annotation in panoptic["annotations"]:
        with Image.open(folder / "coco_panoptic/panoptic" / annotation["file_name"]) as picture:
            colours = np.asarray(picture, np.uint32)
        ids = colours[..., 0] + 256 * colours[..., 1] + 256**2 * colours[..., 2]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        assert set(segments) == set(np.unique(ids).tolist()) - {0}
        mask = np.full(ids.shape, 255, np.uint8)
        for segment_id, segment in segments.items():
            region = ids == segment_id
            mask[region] = segment["category_id"]
            assert (segment["area"], segment["bbox"]) == (region.sum(), box(region))
            assert segment["iscrowd"] == 0
        np.testing.assert_array_equal(mask, SAMPLES[annotation["image_id"]].mask)


def test_background_and_classes_are_categories_of_the_panoptic_format(panoptic):
    names = {category["id"]: category["name"] for category in panoptic["categories"]}
    assert names == dict(enumerate(("background", *CLASS_NAMES)))
    assert {category["isthing"] for category in panoptic["categories"]} == {0}


@pytest.mark.parametrize(("name", "path"), [("coco", INSTANCES), ("coco_panoptic", PANOPTIC)])
def test_annotations_do_not_depend_on_the_size_of_shards(folder, tmp_path, name, path):
    other = write_run(name, tmp_path / "run", shard_size=5)
    assert (other / path).read_bytes() == (folder / path).read_bytes()


@pytest.mark.parametrize("name", ["coco", "coco_panoptic"])
def test_a_run_without_a_sample_has_an_empty_list_of_images(tmp_path, name):
    form = FORMATS[name](CLASS_NAMES)
    (path,) = form.write_run(lambda: iter(()), lambda _, path: b"", [], tmp_path).values()
    content = json.loads(path.read_bytes())
    assert content["images"] == content["annotations"] == []
    assert len(content["categories"]) >= len(CLASS_NAMES)


def test_write_run_reads_the_lines_of_each_shard_once_and_leaves_one_file(tmp_path):
    form = FORMATS["coco"](CLASS_NAMES)
    shard = [encode(SAMPLES[0], form.shard_parts)]
    (lines,) = form.write_shard(0, iter(shard), tmp_path / "shard").values()
    seen = []

    def read(shard, path):
        seen.append((shard, path))
        return lines.read_bytes()

    made = form.write_run(lambda: iter(()), read, [0, 7], tmp_path / "closing")
    assert seen == [(0, "coco/parts/00000.jsonl"), (7, "coco/parts/00007.jsonl")]
    files = [path for path in (tmp_path / "closing").rglob("*") if path.is_file()]
    assert files == list(made.values())
