"""Several mask methods in one run: one sampling, and the masks of each are those of it alone."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.pictures import MARGIN, overlay
from seediff_jax.dataset.settings_file import read_settings
from seediff_jax.driver.verify import verify_folder
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.masks.config import MaskConfig
from tests.helpers.small_runs import command, error_line

METHODS = ("seediff", "cross_attention", "exponentiation")
# Four steps of a random walk on the flat attention of random weights, the published number, end in
# a field that varies by 1e-4, and min-max makes 0.02 of the rounding of float32.
POWER = "--power=2"


@pytest.fixture(scope="module")
def together(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "together"
    methods = f"--mask_method={','.join(METHODS)}"
    options = ("--format=files,webdataset", "--keep_attention", methods, POWER, "--soft_masks=npz")
    assert main(command(inputs, folder, *options, "--strips")) == 0
    return folder


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    """A run of the last method."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    options = (f"--mask_method={METHODS[2]}", POWER, "--soft_masks=npz")
    assert main(command(inputs, folder, *options)) == 0
    return folder


def records_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def enlarged(image):
    return image.repeat(256 // len(image), axis=0).repeat(256 // len(image), axis=1)


def assert_equal_where_clear(mask, wanted, folder, record, method):
    """Compares class ids but for pixels that rounding may move.

    One program of several methods may round otherwise than one of each: soft masks of two programs
    differed by up to 1e-4 (test_remask), and no pixel did.
    """
    soft = np.load(folder / "soft" / f"{record['index']:06d}.npz")["soft_masks"]
    threshold = MaskConfig(method=method).thresholds.threshold
    second, first = np.sort([np.zeros_like(soft[0]), *soft], axis=0)[-2:]
    is_clear = (np.abs(first - threshold) > 3e-4) & ((first < threshold) | (first - second > 6e-4))
    np.testing.assert_array_equal(mask[is_clear], wanted[is_clear])
    assert np.mean(is_clear) > 0.95


def test_masks_and_facts_of_a_method_are_those_of_a_run_of_its_own(together, alone):
    for record, wanted in zip(records_of(together), records_of(alone), strict=True):
        assert record["sha256"]["image.png"] == wanted["sha256"]["image.png"]
        assert list(record["other_methods"]) == list(METHODS[1:])
        masks = pixels(together / record["methods"]).reshape(2, 16, 16)
        own = pixels(alone / wanted["mask"])
        assert_equal_where_clear(masks[1], own, alone, wanted, METHODS[2])
        facts = record["other_methods"][METHODS[2]]
        np.testing.assert_allclose(facts["scores"], wanted["scores"], atol=1e-3)
        for mask, each in zip(masks, record["other_methods"].values(), strict=True):
            areas = [(mask == class_id).mean() for class_id in record["class_ids"]]
            assert each["area_fractions"] == areas
        main_mask = pixels(together / record["mask"])
        assert not any(np.array_equal(main_mask, mask) for mask in masks)


def test_settings_name_all_methods_and_leave_each_its_own_threshold(together):
    settings = read_settings(open_folder(together))
    assert settings["mask_method"] == list(METHODS)
    assert (settings["threshold"], settings["power"]) == (None, 2)


def test_webdataset_has_the_same_masks(together):
    with tarfile.open(together / "webdataset/shard-00000.tar") as tar:
        content = tar.extractfile("000002.methods.png").read()
    assert content == (together / "methods/000002.png").read_bytes()
    assert pixels(io.BytesIO(content)).shape == (32, 16)


def test_strips_show_the_levels_of_each_class_in_a_row(together):
    for record in records_of(together):
        with np.load(together / record["attention"]) as maps:
            levels = [name for name in maps.files if name.startswith("self_attention")]
        count = 3 + len(levels)  # the image, its seeds, the soft mask of each level, and the mask
        strips = pixels(together / record["strips"])
        image, mask = (pixels(together / record[name]) for name in ("image", "mask"))
        rows = np.split(strips, len(record["classes"]))
        for strip, class_id in zip(rows, record["class_ids"], strict=True):
            tiles = [strip[2 * 18 :, k * (256 + MARGIN) :][:256, :256] for k in range(count)]
            assert all(tile.shape == (256, 256, 3) and np.ptp(tile) for tile in tiles)
            np.testing.assert_array_equal(tiles[0], enlarged(image))
            own = overlay(image, np.where(mask == class_id, mask, np.uint8(0)))
            np.testing.assert_array_equal(tiles[-1], enlarged(own))
            beyond = strip[2 * 18 :, count * (256 + MARGIN) :]
            assert len(np.unique(beyond[:256, 0], axis=0)) > 100, "the colour bar comes next"


def test_other_commands_know_the_masks_of_all_methods(together, tmp_path, capsys):
    assert verify_folder(open_folder(together), repairs=False) == 0
    assert main(["seediff", "regenerate", str(together), "1", "--compilation_cache="]) == 0
    assert "sample 1 is the same to the byte" in capsys.readouterr().out
    arguments = ["--min_score=0", f"--output={tmp_path / 'new'}"]
    assert main(["seediff", "filter", str(together), *arguments]) == 0
    for part in ("methods", "strips"):
        copied = (tmp_path / f"new/{part}/000001.png").read_bytes()
        assert copied == (together / part / "000001.png").read_bytes()
    assert (
        main(["seediff", "filter", str(together), f"--output={tmp_path / 'voc'}", "--format=voc"])
        == 0
    )
    settings = read_settings(open_folder(tmp_path / "voc"))
    assert settings["mask_method"] == "seediff"
    assert settings["keep_attention"] is settings["strips"] is False
    assert verify_folder(open_folder(tmp_path / "voc"), repairs=False) == 0


def test_remask_takes_several_methods_too(together, tmp_path):
    methods = ("exponentiation", "cross_attention")
    folders = {name: tmp_path / name for name in (*methods, ",".join(methods))}
    for name, folder in folders.items():
        arguments = [f"--mask_method={name}", f"--output={folder}"]
        arguments += [POWER] if "exponentiation" in name else []
        assert main(["seediff", "remask", str(together), *arguments]) == 0
    first, second, both = folders.values()
    for record, *alone in zip(*map(records_of, (both, first, second)), strict=True):
        assert list(record["other_methods"]) == ["cross_attention"]
        made = pixels(both / record["mask"]), pixels(both / record["methods"])
        for mask, method, own in zip(made, methods, alone, strict=True):
            wanted = pixels(folders[method] / own["mask"])
            assert_equal_where_clear(mask, wanted, folders[method], own, method)
        assert np.mean(made[0] == made[1]) < 0.99


def test_remask_refuses_a_format_without_a_place_for_several_methods(together, tmp_path, capsys):
    arguments = ["--mask_method=seediff,exponentiation", f"--output={tmp_path / 'voc'}"]
    assert main(["seediff", "remask", str(together), *arguments, "--format=voc"]) == 2
    told = capsys.readouterr().err
    assert "--format=voc has no place for methods.png; add one of files" in told
    assert not (tmp_path / "voc").exists()


def test_the_sheet_has_an_overlay_of_each_method(together, alone):
    width = pixels(together / "contact_sheet.png").shape[1]
    narrow = pixels(alone / "contact_sheet.png").shape[1]
    assert width > 1.5 * narrow


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mask_method=seediff,seediff"], "must be at least one method, each once"),
        (["--mask_method=seediff,"], "--mask_method= is not one of"),
        (["--mask_method=seediff,exponentiation", "--format=voc"], "no place for methods.png"),
        (
            ["--mask_method=seediff,exponentiation", "--uncertain=0.55"],
            "--uncertain=0.55 must lie in 0..0.5, the threshold",
        ),
    ],
)
def test_bad_lists_are_refused_in_one_line(inputs, tmp_path, capsys, options, message):
    assert main(command(inputs, tmp_path / "set", *options)) == 2
    assert message in error_line(capsys)
