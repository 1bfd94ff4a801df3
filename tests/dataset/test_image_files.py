"""Folders of images and of their truth: what is read, and what is refused before a run."""

import io
import json
import unicodedata

import numpy as np
import pytest
from PIL import ExifTags, Image

from seediff_jax.dataset.formats.metrics_json import Metrics, label_counts
from seediff_jax.dataset.image_files import ImageFiles
from seediff_jax.dataset.iou import confusion_matrix
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def save(path, pixels=PIXELS, **options):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "images/b.png")
    save(tmp_path / "images/a.jpg", quality=95)
    (tmp_path / "images/.hidden").write_text("not an image")
    for name, label in (("a", 2), ("b", 255), ("c", 77)):
        save(tmp_path / f"truth/{name}.png", np.full((6, 9), label, np.uint8))
    return tmp_path


def files_of(folder, chosen=None, truth=True):
    truth = open_folder(folder / "truth") if truth else None
    return ImageFiles(open_folder(folder / "images"), truth, chosen)


def test_images_come_in_the_order_of_their_names_with_their_truth(folder):
    files, seen = files_of(folder), []
    assert files.names == ("a.jpg", "b.png") and len(files) == 2
    files.check(3, seen.append)
    assert seen == [1, 1]
    np.testing.assert_array_equal(files.read(1), PIXELS)
    assert (files.read_pair(0, 3)[1] == 2).all()
    assert files.sizes == [(6, 9), (6, 9)]


def test_some_can_be_chosen_with_and_without_their_endings(folder):
    assert files_of(folder, ("b",)).names == files_of(folder, ("b.png", "b")).names == ("b.png",)
    with pytest.raises(UserError, match="has no image c, d.png"):
        files_of(folder, ("c", "b", "d.png"))


def test_a_name_is_the_same_in_any_form_of_unicode(folder):
    composed, split = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    save(folder / f"images/{split}.png")
    save(folder / f"truth/{composed}.png", np.ones((6, 9), np.uint8))
    files = files_of(folder, (composed,))
    assert files.names == files_of(folder, (f"{composed}.png",)).names == (f"{split}.png",)
    assert (files.read_pair(0, 2)[1] == 1).all()


def test_settings_change_with_the_content_of_files_of_the_same_size(folder):
    save(folder / "images/c.bmp")
    before = files_of(folder).settings
    size = (folder / "images/c.bmp").stat().st_size
    save(folder / "images/c.bmp", PIXELS[::-1])
    assert (folder / "images/c.bmp").stat().st_size == size
    assert files_of(folder).settings["images_sha256"] != before["images_sha256"]


def test_settings_change_with_the_names_and_sizes_of_the_files(folder):
    before = files_of(folder).settings
    assert files_of(folder).settings == before
    assert files_of(folder, truth=False).settings == before | {"truth_sha256": None}
    assert files_of(folder, ("a",)).settings["images_sha256"] != before["images_sha256"]
    save(folder / "truth/a.png", np.zeros((60, 90), np.uint8))
    after = files_of(folder).settings
    assert after["images_sha256"] == before["images_sha256"]
    assert after["truth_sha256"] != before["truth_sha256"]


def test_photos_are_turned_upright_and_have_three_colours(folder):
    exif = Image.Exif()
    exif[0x112] = 6  # to be turned by 90 degrees clockwise
    save(folder / "images/a.jpg", quality=100, subsampling=0, exif=exif)
    grey = PIXELS[..., 0]
    save(folder / "images/b.png", grey)
    files = files_of(folder, truth=False)
    turned = np.rot90(PIXELS, -1).astype(int)
    assert np.abs(files.read(0).astype(int) - turned).max() <= 16  # JPEG
    np.testing.assert_array_equal(files.read(1), np.repeat(grey[..., None], 3, axis=-1))


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: np.rot90,
}
"""What each EXIF orientation asks for, of a field of pixels as it is stored."""


def turned_by(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("size", [(6, 9), (6, 6)])
@pytest.mark.parametrize("turn", UPRIGHT)
def test_a_mask_and_its_image_are_upright_in_the_same_way(tmp_path, turn, size, ending):
    stored = np.random.default_rng(turn).integers(0, 3, size, np.uint8)
    upright = UPRIGHT[turn](stored)
    masks = {"stored": (stored, {}), "own": (stored, {"exif": turned_by(turn)})}
    if upright.shape != stored.shape:
        masks["upright"] = (upright, {})
    for name, (labels, options) in masks.items():
        # The colours of the image tell the label.
        pixels = np.repeat(100 * stored[..., None], 3, axis=-1)
        save(tmp_path / f"images/{name}.{ending}", pixels, exif=turned_by(turn))
        save(tmp_path / f"truth/{name}.png", labels, **options)
    files = files_of(tmp_path)
    files.check(3)
    for k in range(len(masks)):
        image, truth = files.read_pair(k, 3)
        np.testing.assert_array_equal(image[..., 0], 100 * upright)
        np.testing.assert_array_equal(truth, upright)


def test_a_mask_is_turned_by_its_own_orientation_if_its_image_has_none(folder):
    labels = np.random.default_rng(1).integers(0, 3, (9, 6), np.uint8)
    save(folder / "truth/b.png", labels, exif=turned_by(6))
    np.testing.assert_array_equal(files_of(folder).read_pair(1, 3)[1], np.rot90(labels, -1))
    save(folder / "truth/b.png", labels.T, exif=turned_by(6))
    message = "b.png is 9 x 6 upright, but its image is 6 x 9 upright"
    with pytest.raises(UserError, match=message):
        files_of(folder).read_pair(1, 3)


def save_frames(path, count):
    frames = [Image.fromarray(np.full((6, 9), 100 * k, np.uint8)) for k in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("ending", ["gif", "png", "tif", "webp"])
@pytest.mark.parametrize("place", ["images", "truth"])
def test_files_of_several_frames_are_refused(folder, place, ending):
    (folder / place / "b.png").unlink()
    save_frames(folder / place / f"b.{ending}", 3)
    message = f"{place}/b.{ending} has 3 frames or pages; save the one to use as a file of its own"
    with pytest.raises(UserError, match=message):
        files_of(folder).check(3)


@pytest.mark.parametrize("ending", ["gif", "tif"])
def test_files_of_one_frame_are_read_in_formats_that_may_have_several(folder, ending):
    labels = np.random.default_rng(2).integers(0, 3, (6, 9), np.uint8)
    for place in ("images", "truth"):
        (folder / place / "b.png").unlink()
        Image.fromarray(labels).save(folder / place / f"b.{ending}")
    image, truth = files_of(folder).read_pair(1, 3)
    np.testing.assert_array_equal(image, np.repeat(labels[..., None], 3, axis=-1))
    np.testing.assert_array_equal(truth, labels)


def test_the_preview_that_a_camera_adds_to_a_photo_is_no_second_frame(folder):
    photo, preview = Image.fromarray(PIXELS), Image.fromarray(PIXELS[::3, ::3])
    options = {"format": "MPO", "save_all": True, "append_images": [preview]}
    photo.save(folder / "images/a.jpg", quality=100, subsampling=0, **options)
    with Image.open(folder / "images/a.jpg") as stored:
        assert stored.n_frames == 2
    assert np.abs(files_of(folder).read(0).astype(int) - PIXELS).max() <= 16  # JPEG


def cut_short(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {
    "a text": (lambda f: (f / "images/x.txt").write_text("hi"), "x.txt cannot be read as an image"),
    "cut": (lambda f: cut_short(f / "images/b.png"), "b.png cannot be read as an image"),
    "16 bits": (
        lambda f: save(f / "images/b.png", PIXELS[..., 0].astype(np.uint16)),
        "b.png has pixels of the kind I;16; 8 bits per colour are needed",
    ),
    "size": (
        lambda f: save(f / "truth/b.png", np.zeros((9, 6), np.uint8)),
        "truth/b.png is 9 x 6, but its image is 6 x 9",
    ),
    "label": (
        lambda f: save(f / "truth/b.png", np.full((6, 9), 3, np.uint8)),
        "truth/b.png has label 3; labels are 0 to 2, and 255",
    ),
    "colours": (
        lambda f: save(f / "truth/b.png"),
        "truth/b.png has pixels of the kind RGB; a mask has one byte per pixel",
    ),
    "damaged truth": (lambda f: cut_short(f / "truth/b.png"), "truth/b.png cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_files_that_are_no_images_or_no_masks_are_refused(folder, name):
    damage, message = DAMAGES[name]
    damage(folder)
    if name == "a text":
        save(folder / "truth/x.png", np.zeros((6, 9), np.uint8))
    with pytest.raises(UserError, match=message):
        files_of(folder).check(3)


def test_a_folder_within_the_folder_is_refused(folder):
    (folder / "images/more").mkdir()
    with pytest.raises(OSError, match="more"):
        files_of(folder, truth=False).check(3)


def test_lists_that_do_not_fit_are_refused(folder):
    save(folder / "images/a.png")
    with pytest.raises(UserError, match="has a.jpg and a.png, which differ by their endings alone"):
        files_of(folder)
    (folder / "images/a.png").unlink()
    (folder / "truth/a.png").unlink()
    with pytest.raises(UserError, match="truth has no mask of a$"):
        files_of(folder)
    with pytest.raises(UserError, match="truth2 does not exist"):
        ImageFiles(open_folder(folder / "truth2"))
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no images"):
        ImageFiles(open_folder(folder / "empty"))


def test_images_in_a_bucket_are_read(folder):
    bucket = open_folder(f"memory://images-{folder.name}")
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    bucket.write("x.png", content.getvalue())
    np.testing.assert_array_equal(ImageFiles(bucket).read(0), PIXELS)


def test_the_mean_iou_is_that_of_one_matrix_over_all_records(tmp_path):
    truths = np.array([[[0, 1], [1, 255]], [[0, 0], [1, 0]]], np.uint8)
    found = np.array([[[0, 1], [0, 1]], [[0, 1], [1, 0]]], np.uint8)
    records = [
        {"label_counts": label_counts(confusion_matrix(truth, mask, 3))}
        for truth, mask in zip(truths, found, strict=True)
    ]
    assert records[0]["label_counts"] == [[0, 0, 1], [1, 0, 1], [1, 1, 1]]
    made = Metrics(["cat", "dog"]).write_run(lambda: iter(records), None, [0], tmp_path)
    first = {
        "mean_iou": pytest.approx((3 / 5 + 2 / 4) / 2),
        "iou": {"background": 3 / 5, "cat": 2 / 4, "dog": None},
    }
    assert json.loads(made["metrics.json"].read_text()) == {"images": 2, **first}

    for record, truth in zip(records, truths, strict=True):
        exact = label_counts(confusion_matrix(truth, truth, 3))
        record["other_methods"] = {"exact": {"label_counts": exact}}
    made = Metrics(["cat", "dog"], ["exact"]).write_run(lambda: iter(records), None, [0], tmp_path)
    other = {"mean_iou": 1, "iou": {"background": 1, "cat": 1, "dog": None}}
    found = {"images": 2, **first, "other_methods": {"exact": other}}
    assert json.loads(made["metrics.json"].read_text()) == found
