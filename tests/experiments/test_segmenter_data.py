"""The folders that a segmenter reads: VOC, COCO, and datasets of this project in any format."""

import json
import re

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as rle_masks
from pycocotools.coco import COCO

from experiments.segmenter.data import ArraySamples, VocSamples, require_labels
from experiments.segmenter.folders import open_samples, require_labels_of
from seediff_jax.dataset.encoding import encode_mask
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.formats.voc import split_indices
from seediff_jax.errors import UserError
from tests.helpers import stored_runs
from tests.helpers.format_runs import make_sample

# pycocotools: NumPy 1's way to copy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


# VOC


def _write_voc(folder, labels, image_size=(6, 5), names=("a",), split="train", masks="Class"):
    for part in ("JPEGImages", f"Segmentation{masks}", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", image_size, (9, 9, 9)).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = folder / f"Segmentation{masks}" / f"{name}.png"
        mask.write_bytes(encode_mask(np.asarray(labels, np.uint8)))
    lists = folder / "ImageSets" / "Segmentation"
    (lists / f"{split}.txt").write_text("\n".join(names) + "\n")


def test_a_voc_folder_is_read_as_it_is(tmp_path):
    labels = np.arange(30).reshape(5, 6) % 3
    labels[0, 0] = 255
    _write_voc(tmp_path, labels, names=("2007_000032", "2007_000039"))
    samples = VocSamples(tmp_path)
    assert len(samples) == 2 and samples.name(1).endswith("SegmentationClass/2007_000039.png")
    assert samples.label_names[:2] == ("background", "aeroplane") and len(samples.label_names) == 21
    image, read = samples.read(1)
    assert image.shape == (5, 6, 3)
    np.testing.assert_array_equal(read, labels)
    require_labels(samples, 3)
    (tmp_path / "labels.txt").write_text("background\ncat\n")
    assert VocSamples(tmp_path).label_names == ("background", "cat")


@pytest.mark.parametrize("above", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_where_its_archive_puts_it(tmp_path, above):
    _write_voc(tmp_path / above, np.zeros((5, 6)), split="val")
    assert open_samples(tmp_path, "val").folder == tmp_path / above


def test_the_extra_annotations_have_masks_of_their_own(tmp_path):
    _write_voc(tmp_path, np.ones((5, 6)), split="trainaug", masks="ClassAug")
    _, labels = open_samples(tmp_path, "trainaug").read(0)
    np.testing.assert_array_equal(labels, 1)


def test_bad_samples_are_refused_before_work_with_file_and_reason(tmp_path):
    with pytest.raises(UserError, match="train.txt is missing; .* is not a folder in VOC's layout"):
        VocSamples(tmp_path)
    _write_voc(tmp_path / "ids", np.full((5, 6), 7))
    with pytest.raises(
        UserError, match="ids/SegmentationClass/a.png has label 7; labels are 0 to 2, and 255"
    ):
        require_labels(VocSamples(tmp_path / "ids"), 3)
    _write_voc(tmp_path / "size", np.zeros((6, 6)))
    with pytest.raises(UserError, match="Class/a.png is 6 x 6, but its image is 5 x 6"):
        require_labels(VocSamples(tmp_path / "size"), 3)
    _write_voc(tmp_path / "rgb", np.zeros((5, 6)))
    Image.new("RGB", (6, 5)).save(tmp_path / "rgb" / "SegmentationClass" / "a.png")
    with pytest.raises(UserError, match="a.png has pixels of the kind RGB; a mask has one byte"):
        require_labels(VocSamples(tmp_path / "rgb"), 3)
    (tmp_path / "rgb" / "SegmentationClass" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="a.png cannot be read as an image"):
        require_labels(VocSamples(tmp_path / "rgb"), 3)
    (tmp_path / "rgb" / "JPEGImages" / "a.jpg").unlink()
    with pytest.raises(UserError, match="lacks JPEGImages/a.jpg, which train.txt lists"):
        VocSamples(tmp_path / "rgb")
    with pytest.raises(UserError, match=r"\[1, 4, 4, 3\] do not match .* \[1, 4, 5\]"):
        ArraySamples(np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4, 5), np.uint8))


def _save_frames(path, kind):
    frames = [Image.new("L", (6, 5), k) for k in range(3)]
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
@pytest.mark.parametrize("file", ["JPEGImages/a.jpg", "SegmentationClass/a.png"])
def test_files_of_several_frames_are_refused(tmp_path, file, kind):
    _write_voc(tmp_path, np.zeros((5, 6)))
    _save_frames(tmp_path / file, kind)
    with pytest.raises(UserError, match=f"{file} has 3 frames or pages; save the one to use"):
        require_labels(VocSamples(tmp_path), 3)


def test_images_of_more_than_8_bits_are_refused(tmp_path):
    _write_voc(tmp_path, np.zeros((5, 6)))
    Image.fromarray(np.full((5, 6), 700, np.uint16)).save(tmp_path / "JPEGImages/a.jpg", "PNG")
    with pytest.raises(UserError, match="a.jpg has pixels of the kind I;16; 8 bits"):
        require_labels(VocSamples(tmp_path), 3)


def _save_turned(path, pixels):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(path, quality=100, subsampling=0, exif=exif)


@pytest.mark.parametrize("mask", ["stored", "upright"])
def test_images_and_their_masks_are_upright(tmp_path, mask):
    labels = np.repeat(np.repeat([[0, 1, 2], [2, 1, 1]], 8, axis=0), 8, axis=1).astype(np.uint8)
    upright = np.rot90(labels, -1)
    _write_voc(tmp_path, labels if mask == "stored" else upright)
    _save_turned(tmp_path / "JPEGImages" / "a.jpg", np.stack([100 * labels] * 3, axis=-1))
    image, read = VocSamples(tmp_path).read(0)
    np.testing.assert_array_equal(read, upright)
    assert np.abs(image - 100.0 * upright[..., None]).max() <= 16  # JPEG


def test_the_first_fault_ends_the_check_of_many_samples(tmp_path):
    _write_voc(tmp_path, np.zeros((5, 6)), names=[f"{k:03d}" for k in range(60)])
    (tmp_path / "JPEGImages" / "007.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"007.jpg cannot be read"):
        require_labels(VocSamples(tmp_path), 3)


def test_folders_of_no_layout_are_refused(tmp_path):
    with pytest.raises(UserError, match="has neither ImageSets/Segmentation .VOC. nor annotations"):
        open_samples(tmp_path, "train")
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_samples(tmp_path / "nowhere", "train")


def test_other_classes_are_named(tmp_path):
    _write_voc(tmp_path, np.zeros((5, 6)))
    (tmp_path / "labels.txt").write_text("background\ncat\n")
    samples = VocSamples(tmp_path)
    require_labels_of(samples, ("background", "cat"), "here")
    with pytest.raises(UserError, match=f"label 1 is 'cat' in {tmp_path} and 'dog' in here"):
        require_labels_of(samples, ("background", "dog"), "here")
    with pytest.raises(UserError, match="label 2 is missing in .* and 'dog' in here"):
        require_labels_of(samples, ("background", "cat", "dog"), "here")


# COCO

_POLYGON = [[1.0, 1.0, 9.0, 1.0, 9.0, 6.0, 1.0, 6.0], [10.0, 8.0, 13.0, 8.0, 12.0, 10.0]]


def _rle(rows, columns, compressed):
    region = np.zeros((12, 16), np.uint8)
    region[rows, columns] = 1
    if compressed:
        rle = rle_masks.encode(np.asfortranarray(region))
        return {"size": [12, 16], "counts": rle["counts"].decode()}
    flat = region.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [12, 16], "counts": counts if flat[0] == 0 else [0, *counts]}


def _annotation(number, image_id, category_id, segmentation, iscrowd=0):
    return {
        "id": number, "image_id": image_id, "category_id": category_id, "iscrowd": iscrowd,
        "segmentation": segmentation, "area": 1, "bbox": [0, 0, 1, 1],
    }  # fmt: skip


def _write_coco(folder, **changes):
    """Two images of COCO's val2017: polygons, RLE with and without compression, an overlap."""
    categories = [{"id": k, "name": n} for k, n in ((18, "dog"), (1, "person"), (17, "cat"))]
    content = {
        "categories": categories,
        "images": [
            {"id": 139, "file_name": "000000000139.jpg", "height": 12, "width": 16},
            {"id": 42, "file_name": "000000000042.jpg", "height": 12, "width": 16},
        ],
        "annotations": [
            _annotation(1, 139, 17, _POLYGON),
            _annotation(2, 139, 1, _rle(np.s_[4:9], np.s_[4:8], compressed=True)),
            _annotation(3, 139, 1, _rle(np.s_[7:10], np.s_[5:7], compressed=False), iscrowd=1),
        ],
    }  # fmt: skip
    stuff = {
        "categories": [{"id": 92, "name": "banner"}, {"id": 157, "name": "sky-other"},
                       {"id": 183, "name": "other"}],
        "images": content["images"],
        "annotations": [
            _annotation(9, 42, 157, _rle(np.s_[:6], np.s_[:], compressed=True)),
            _annotation(10, 139, 183, _rle(np.s_[4:9], np.s_[4:8], compressed=True)),
        ],
    }  # fmt: skip
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2017").mkdir()
    for name, value in (("instances", content | changes), ("stuff", stuff)):
        (folder / "annotations" / f"{name}_val2017.json").write_text(json.dumps(value))
    for entry in content["images"]:
        Image.new("RGB", (16, 12), (1, 2, 3)).save(folder / "val2017" / entry["file_name"])
    return folder


def test_label_maps_of_coco_are_those_of_pycocotools(tmp_path):
    folder = _write_coco(tmp_path / "coco")
    samples = open_samples(folder, "val")
    assert samples.label_names == ("background", "person", "cat", "dog")
    api = COCO(folder / "annotations" / "instances_val2017.json")
    for index in range(2):
        found = api.loadAnns(api.getAnnIds(imgIds=[samples.image_id(index)]))
        masks = {1: np.zeros((12, 16), bool), 17: np.zeros((12, 16), bool)}
        for each in found:
            masks[each["category_id"]] |= api.annToMask(each) == 1
        expected = np.select(
            [masks[1] & masks[17], masks[1], masks[17]], [255, 1, 2], 0
        )  # fmt: skip
        image, labels = samples.read(index)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(image[0, 0], (1, 2, 3), atol=2)  # JPEG
    assert set(np.unique(samples.read(0)[1])) == {0, 1, 2, 255}
    assert samples.class_names(0) == ["person", "cat"] and samples.class_names(1) == []


def test_stuff_follows_the_things_and_the_rest_is_unknown(tmp_path):
    samples = open_samples(_write_coco(tmp_path / "coco"), "val2017", stuff=True)
    assert samples.label_names[4:] == ("banner", "sky-other")
    _, labels = samples.read(1)
    np.testing.assert_array_equal(labels, np.where(np.arange(12)[:, None] < 6, 5, 255) + 0 * labels)
    assert set(np.unique(samples.read(0)[1])) == {1, 2, 255}


def test_annotations_of_a_photo_that_lies_on_its_side_are_turned_with_it(tmp_path):
    folder = _write_coco(tmp_path / "coco")
    _, stored = open_samples(folder, "val").read(0)
    _save_turned(folder / "val2017" / "000000000139.jpg", np.zeros((12, 16, 3), np.uint8))
    image, labels = open_samples(folder, "val").read(0)
    assert image.shape == (16, 12, 3)
    np.testing.assert_array_equal(labels, np.rot90(stored, -1))


def test_bad_annotations_are_refused_with_file_and_reason(tmp_path):
    folder = _write_coco(tmp_path / "category", annotations=[_annotation(7, 42, 99, _POLYGON)])
    with pytest.raises(UserError, match="val2017.json: annotation 7 has category 99, which is not"):
        open_samples(folder, "val")
    entry = {"id": 42, "file_name": "000000000042.jpg", "height": 12, "width": 17}
    folder = _write_coco(tmp_path / "size", images=[entry], annotations=[])
    with pytest.raises(UserError, match="annotation of .*0042.jpg is 12 x 17, but .* is 12 x 16"):
        require_labels(open_samples(folder, "val"), 4)
    folder = _write_coco(tmp_path / "file", images=[entry | {"file_name": "43.jpg"}])
    with pytest.raises(UserError, match=r"images that are missing: .*43.jpg"):
        open_samples(folder, "val")
    with pytest.raises(UserError, match=r"0 files instances_train\*.json, .* instances_val2017"):
        open_samples(folder, "train")
    (folder / "annotations" / "instances_val2017.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match="is not an annotation file of COCO"):
        open_samples(folder, "val")


# Datasets of this project

_INDICES = [k for k in range(stored_runs.NUM_IMAGES) if k != stored_runs.BAD]


@pytest.mark.parametrize("name", FORMATS)
def test_what_the_driver_writes_is_read_in_every_format(tmp_path, name):
    stored_runs.run(tmp_path / "run", [name])
    samples = open_samples(tmp_path / "run", "trainval")
    assert samples.label_names == ("background", "cat", "dog", "zebra")
    assert [samples.name(k) for k in range(len(samples))] == [
        f"sample {k} of {tmp_path / 'run'}" for k in _INDICES
    ]
    for position in (5, 0, 6, 3):
        image, labels = samples.read(position)
        expected = make_sample(_INDICES[position])
        np.testing.assert_array_equal(labels, expected.mask)
        # JPEG: the images are smooth.
        assert np.abs(image.astype(int) - expected.image).mean() < (1e-9 if name == "files" else 6)
    require_labels(samples, 4)


def _number(name):
    """The index of a sample in its name: that of a file, or in words."""
    return int(re.search(r"(?:sample |/)(\d+)(?:\.\w+\Z| of )", name)[1])


def test_every_format_has_the_split_of_the_lists(tmp_path):
    stored_runs.run(tmp_path / "run", ["voc", "coco", "webdataset"])
    for split in ("train", "val"):
        folders = ("run", "run/voc", "run/coco")
        voc, *others = (open_samples(tmp_path / folder, split) for folder in folders)
        assert len(voc)
        for samples in others:
            assert len(samples) == len(voc)
            assert all(_number(samples.name(k)) == _number(voc.name(k)) for k in range(len(voc)))
            for k in range(len(voc)):
                np.testing.assert_array_equal(samples.read(k)[1], voc.read(k)[1])


@pytest.mark.parametrize(
    ("count", "train", "val"),
    [
        (0, [], []),
        (1, [0], [0]),
        (2, [0], [1]),
        (5, [0, 1, 2, 3], [4]),
        (7, [0, 1, 2, 3, 4, 6], [5]),
    ],
)
def test_small_runs_have_a_val_set(count, train, val):
    splits = split_indices(np.arange(count))
    assert (splits["train"].tolist(), splits["val"].tolist()) == (train, val)
    assert splits["trainval"].tolist() == [*range(count)]


def test_damaged_and_unfinished_datasets_are_refused(tmp_path):
    folder = tmp_path / "run"
    stored_runs.run(folder, ["webdataset"], stop_at=5)
    with pytest.raises(UserError, match="is not complete"):
        open_samples(folder, "train")
    stored_runs.run(folder, ["webdataset"])
    with pytest.raises(UserError, match="split=test must be one of train, val, trainval"):
        open_samples(folder, "test")
    (path,) = folder.glob("webdataset/*0000.tar")
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)  # in the first image
    path.write_bytes(content)
    with pytest.raises(UserError, match="sample 0 of .* is damaged; `seediff verify"):
        require_labels(open_samples(folder, "trainval"), 4)
