"""A run of the driver from command line to folder, with a small random model and few steps."""

import errno
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from small_runs import PROMPTS, command, error_line, write_inputs

from seediff_jax import make_dataset
from seediff_jax.main import main
from seediff_jax.prompts import VOC_CLASSES

CAT, COW, DOG = 8, 10, 12  # in PASCAL VOC


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """The folder of one complete run, not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    assert main(command(inputs, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def by_console(inputs, tmp_path_factory):
    """The same run in batches of 3 by another process: its folder, its cache, its stderr."""
    folder, cache = tmp_path_factory.mktemp("console") / "out", tmp_path_factory.mktemp("cache")
    options = command(inputs, folder, "--batch_size=3", f"--compilation_cache={cache}")[1:]
    program = [sys.executable, "-m", "seediff_jax.main", *options]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    return folder, cache, ended.stderr


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_run_writes_every_part_of_every_image(made):
    names = [f"{part}/{i:06d}.png" for part in ("image", "mask", "overlay") for i in range(5)]
    names += ["settings.json", "classes.txt", "manifest.jsonl", "contact_sheet.png", "strip.png"]
    assert tree(made).keys() == set(names)


def test_prompts_are_cycled_and_classes_have_their_official_ids(made):
    assert [row["prompt"] for row in rows(made)] == [PROMPTS[i % 3][0] for i in range(5)]
    ids = [row["class_ids"] for row in rows(made)]
    assert ids == [[DOG, CAT], [COW], [CAT, COW], [DOG, CAT], [COW]]
    assert (made / "classes.txt").read_text().splitlines() == list(VOC_CLASSES)


def test_masks_show_what_the_manifest_says(made):
    for row in rows(made):
        mask = pixels(made / row["mask"])
        assert mask.shape == (16, 16)
        assert set(np.unique(mask)) <= {0, *row["class_ids"]}
        areas = [(mask == class_id).mean() for class_id in row["class_ids"]]
        np.testing.assert_allclose(row["area_fractions"], areas)
        assert len(row["seed_counts"]) == len(row["classes"])
        assert all(0 < count < 64 for count in row["seed_counts"])


def test_images_of_one_prompt_differ(made):
    assert (pixels(made / "image/000000.png") != pixels(made / "image/000003.png")).any()


def test_the_manifest_pins_the_settings_down(made, inputs):
    settings = json.loads((made / "settings.json").read_text())
    expected = {"model": str(inputs / "model"), "num_steps": 2, "rng_seed": 0, "threshold": 0.5}
    expected |= {"scheduler": "pndm", "mask_method": "seediff", "power": 1, "uncertain": None}
    assert expected.items() <= settings.items()
    assert len(settings["weights_hash"]) == 32
    del settings["class_names"]
    assert all(settings == {name: row[name] for name in settings} for row in rows(made))


def test_the_same_command_again_changes_nothing(inputs, made, capsys):
    before = tree(made)
    assert main(command(inputs, made)) == 0
    assert tree(made) == before
    assert "5 of them there already" in capsys.readouterr().out


def test_the_closing_line_says_where_to_look(inputs, made, capsys):
    main(command(inputs, made))
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{made}/contact_sheet.png")


def test_batch_size_changes_no_image(made, by_console):
    folder, _, _ = by_console
    assert (folder / "settings.json").read_bytes() == (made / "settings.json").read_bytes()
    for row, other in zip(rows(made), rows(folder), strict=True):
        image, again = (pixels(f / row["image"]).astype(int) for f in (made, folder))
        # Another batch size is another program: sums are ordered differently, a level may tip.
        assert np.abs(image - again).max() <= 1
        assert row["class_ids"] == other["class_ids"]
        np.testing.assert_allclose(row["area_fractions"], other["area_fractions"], atol=2 / 256)


def test_the_console_program_shows_progress_and_keeps_compiled_programs(by_console):
    _, cache, progress = by_console
    assert "5/5" in progress and ("image/s" in progress or "s/image" in progress)
    assert any(cache.iterdir())


def test_a_run_can_grow(inputs, made, tmp_path):
    folder = tmp_path / "out"
    assert main(command(inputs, folder, "--num_images=1")) == 0
    assert [row["index"] for row in rows(folder)] == [0]
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


# Three files open a folder, then come the strip, and for each sample three files and its line.
@pytest.mark.parametrize(("writes", "samples"), [(3, 0), (5, 0), (7, 1), (9, 1)])
def test_a_run_that_was_stopped_ends_with_the_same_files(
    inputs, made, tmp_path, monkeypatch, writes, samples
):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(KeyboardInterrupt(), writes))
        assert main(command(inputs, folder)) == 130
    assert len(rows(folder)) == samples
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


def test_deleted_files_and_a_torn_manifest_are_made_again(inputs, made, tmp_path):
    folder = tmp_path / "out"
    assert main(command(inputs, folder)) == 0
    (folder / "mask/000003.png").unlink()
    (folder / "contact_sheet.png").unlink()
    os.truncate(folder / "manifest.jsonl", (folder / "manifest.jsonl").stat().st_size - 9)
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


def test_a_full_disk_is_one_line_and_the_run_can_go_on(inputs, made, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(full, 9))
        assert main(command(inputs, folder)) == 2
    assert error_line(capsys).endswith("png: No space left on device")
    assert main(command(inputs, folder)) == 0
    assert tree(folder) == tree(made)


def failing(error, calls_before):
    """Stands in for os.fsync, and raises from some call on."""
    calls = iter(range(10**6))

    def fsync(_):
        if next(calls) >= calls_before:
            raise error

    return fsync


def test_masks_of_other_methods_and_settings(inputs, tmp_path):
    options = ["--mask_method=exponentiation", "--scheduler=ddim", "--num_images=2", "--seed=7"]
    options += ["--refine_iterations=2", "--dilations=1,2", "--nobackground"]
    assert main(command(inputs, tmp_path / "out", *options)) == 0
    expected = {"threshold": 0.6, "uncertain": 0.5, "power": 4, "scheduler": "ddim"}
    expected |= {"rng_seed": 7, "dilations": [1, 2], "background": False}
    assert expected.items() <= json.loads((tmp_path / "out/settings.json").read_text()).items()
    assert not (tmp_path / "out/strip.png").exists()


def test_a_changed_setting_is_refused_before_any_model_work(inputs, made, capsys, monkeypatch):
    monkeypatch.setattr(make_dataset, "load_model", None)
    assert main(command(inputs, made, "--num_steps=9", "--seed=1")) == 2
    error = error_line(capsys)
    assert "rng_seed: 0 there, 1 now" in error and "num_steps: 2 there, 9 now" in error


def test_another_scheduler_is_refused(inputs, made, capsys):
    assert main(command(inputs, made, "--scheduler=ddim")) == 2
    assert 'scheduler: "pndm" there, "ddim" now' in error_line(capsys)


def test_missing_images_come_in_batches_at_fixed_places():
    assert make_dataset.batch_starts([0, 1, 2, 3, 4], 2) == [0, 2, 4]
    assert make_dataset.batch_starts([3, 9], 4) == [0, 8]
    assert make_dataset.batch_starts([], 4) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FloatingPointError("latents of sample 3 are not finite"), "latents of sample 3"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), "smaller --batch_size"),
    ],
)
def test_an_error_of_sampling_is_one_line(inputs, tmp_path, monkeypatch, capsys, error, message):
    def generate(*_, **__):
        raise error

    monkeypatch.setattr(make_dataset, "generate", generate)
    assert main(command(inputs, tmp_path / "out")) == 2
    assert message in error_line(capsys)


def test_a_cache_folder_that_cannot_be_made_stops_no_run(inputs, made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(inputs, made, f"--compilation_cache={tmp_path / 'file' / 'cache'}")) == 0
    assert "no compilation cache" in capsys.readouterr().err


def test_a_run_with_another_prediction_type_or_lora_is_refused(inputs, made, capsys):
    assert main(command(inputs, made, "--prediction_type=v_prediction")) == 2
    assert 'prediction_type: "epsilon" there, "v_prediction" now' in error_line(capsys)
    assert main(command(inputs, made, "--prediction_type=epsilon")) == 0
    capsys.readouterr()
    assert main(command(inputs, made, "--lora=style.safetensors:0.8")) == 2
    assert 'loras: [] there, [["style.safetensors", 0.8]] now' in error_line(capsys)
