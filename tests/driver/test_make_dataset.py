"""A run of the driver from command line to folder, with a small random model and few steps."""

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys

import datasets
import jax
import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.formats import FORMATS
from seediff_jax.driver import make_dataset
from seediff_jax.main import main
from seediff_jax.pipeline import programs
from seediff_jax.prompts.class_lists import VOC_CLASSES
from tests.helpers.format_readers import READERS, pixels, read_files
from tests.helpers.small_runs import PROMPTS, command, error_line, rows, tree

CAT, COW, DOG = 8, 10, 12  # in PASCAL VOC


@pytest.fixture(scope="module")
def by_console(inputs, tmp_path_factory):
    """The same run in batches of 3 by another process: its folder, its cache, its stderr."""
    folder, cache = tmp_path_factory.mktemp("console") / "out", tmp_path_factory.mktemp("cache")
    options = command(inputs, folder, "--batch_size=3", f"--compilation_cache={cache}")[1:]
    program = [sys.executable, "-m", "seediff_jax.main", *options]
    ended = subprocess.run(program, capture_output=True, text=True, check=True)
    return folder, cache, ended.stderr


def test_a_run_writes_every_part_of_every_image(made):
    names = [f"{part}/{i:06d}.png" for part in ("image", "mask", "overlay") for i in range(5)]
    names += ["settings.json", "classes.txt", "manifest.jsonl", "contact_sheet.png", "strip.png"]
    # A longer run would add to the only shard, so it keeps its journal.
    kept = ["00000.journal/000000+5", "00000.jsonl", "00000.open.json", "closed.json"]
    kept.append("settings.json")
    assert tree(made).keys() == {*names, *(f"shards/{name}" for name in kept)}


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
        assert len(row["seed_counts"]) == len(row["classes"]) == len(row["scores"])
        assert all(
            0.5 < score <= 1 or not area for score, area in zip(row["scores"], areas, strict=True)
        )
        assert all(0 < count < 64 for count in row["seed_counts"])


@pytest.fixture(scope="module")
def in_every_format(inputs, tmp_path_factory):
    """The folder of a run in all formats at once, and what its plain files have of each sample."""
    folder = tmp_path_factory.mktemp("formats") / "out"
    formats = ["--soft_masks=npz", "--seed_maps", f"--format={','.join(FORMATS)}"]
    assert main(command(inputs, folder, *formats, "--uncertain=0.45", "--shard_size=2")) == 0
    return folder, read_files(folder)


def decoded_jpeg(image):
    """What JPEG in the best usual quality makes of an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return pixels(file)


# The readers' own: files that are left to the collector, and NumPy 1's way to copy.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("reader", READERS)
def test_a_run_in_every_format_has_the_pixels_of_its_plain_files(
    in_every_format, reader, monkeypatch
):
    folder, expected = in_every_format
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    got = READERS[reader](folder)
    assert sorted(got) == sorted(expected) == list(range(5))
    for index, sample in got.items():
        plain = expected[index]
        np.testing.assert_array_equal(sample["mask"], plain["mask"])
        np.testing.assert_array_equal(sample["image"], decoded_jpeg(plain["image"]))
        for name in sample.keys() & {"soft_masks", "seed_maps"}:
            np.testing.assert_array_equal(sample[name], plain[name])
        if "record" in sample:
            # Hashes of its own file cannot stand in it.
            hashes = {"sha256": plain["record"]["sha256"]}
            assert sample["record"] | hashes == plain["record"]
    assert {0, CAT, COW, DOG, 255} == set(np.unique([s["mask"] for s in expected.values()]))


def test_formats_are_those_that_readers_read(made, in_every_format):
    assert {name.partition(",")[0] for name in READERS} == set(FORMATS) - {"files"}
    # Other settings of masks, and the same images.
    for row in rows(made):
        np.testing.assert_array_equal(
            in_every_format[1][row["index"]]["image"], pixels(made / row["image"])
        )


def test_images_of_one_prompt_differ(made):
    assert (pixels(made / "image/000000.png") != pixels(made / "image/000003.png")).any()


def test_settings_json_pins_the_samples_down(made, inputs):
    settings = json.loads((made / "settings.json").read_text())
    expected = {"model": str(inputs / "model"), "num_steps": 2, "seed": 0, "threshold": 0.5}
    expected |= {"scheduler": "pndm", "mask_method": "seediff", "power": 1, "uncertain": None}
    assert expected.items() <= settings.items()
    assert len(settings["weights_hash"]) == 32


def test_a_line_of_the_manifest_holds_what_is_the_samples_own_and_no_setting(made):
    settings = json.loads((made / "settings.json").read_text())
    del settings["sha256"]  # of the file itself
    assert all(not row.keys() & settings.keys() for row in rows(made))
    assert {row["batch_size"] for row in rows(made)} == {2}
    assert max(map(len, (made / "manifest.jsonl").read_bytes().splitlines())) < 800


def test_the_manifest_tells_the_tokens_of_each_class_and_the_hash_of_each_file(made):
    first = rows(made)[0]  # "dog cat", a token a letter, after the start token
    assert first["classes"] == ["dog", "cat"] and first["token_positions"] == [[1, 2, 3], [4, 5, 6]]
    for row in rows(made):
        for part in ("image", "mask", "overlay"):
            content = (made / row[part]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == row["sha256"][f"{part}.png"]


def test_the_same_command_again_changes_nothing(inputs, made, capsys):
    before = tree(made)
    assert main(command(inputs, made)) == 0
    assert tree(made) == before
    assert "nothing to do" in capsys.readouterr().out


def test_prompts_are_checked_by_the_first_run_in_a_folder_alone(
    inputs, made, tmp_path, monkeypatch
):
    checked = []
    monkeypatch.setattr(make_dataset, "require_prompts_fit", lambda _, c: checked.append(c.output))
    assert main(command(inputs, made)) == 0 and not checked
    assert main(command(inputs, tmp_path / "new", "--num_images=1")) == 0
    assert main(command(inputs, tmp_path / "new", "--num_images=2")) == 0
    assert checked == [str(tmp_path / "new")]


def test_the_closing_line_says_where_to_look(inputs, made, tmp_path, capsys):
    folder = shutil.copytree(made, tmp_path / "made")
    (folder / "shards/closed.json").unlink()
    main(command(inputs, folder))
    made = folder
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"{made}/contact_sheet.png")


def test_batch_size_changes_no_image(made, by_console):
    folder, _, _ = by_console
    assert (folder / "settings.json").read_bytes() == (made / "settings.json").read_bytes()
    equal = []
    for row, other in zip(rows(made), rows(folder), strict=True):
        image, again = (pixels(f / row["image"]).astype(int) for f in (made, folder))
        # Another batch size is another program: sums are ordered differently, a level may tip.
        assert np.abs(image - again).max() <= 1
        assert row["class_ids"] == other["class_ids"]
        equal.append(pixels(made / row["mask"]) == pixels(folder / row["mask"]))
        np.testing.assert_allclose(row["area_fractions"], other["area_fractions"], atol=2 / 256)
    assert np.mean(equal) >= 0.999  # one of the 1280 pixels


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


def test_masks_of_other_methods_and_settings(inputs, tmp_path):
    options = ["--mask_method=exponentiation", "--scheduler=ddim", "--num_images=2", "--seed=7"]
    options += ["--refine_iterations=2", "--dilations=1,2"]
    assert main(command(inputs, tmp_path / "out", *options)) == 0
    expected = {"threshold": 0.6, "uncertain": 0.5, "power": 4, "scheduler": "ddim"}
    expected |= {"seed": 7, "dilations": [1, 2]}
    assert expected.items() <= json.loads((tmp_path / "out/settings.json").read_text()).items()
    assert not (tmp_path / "out/strip.png").exists()


def test_a_changed_setting_is_refused_before_any_model_work(inputs, made, capsys, monkeypatch):
    monkeypatch.setattr(make_dataset, "load_model", None)
    assert main(command(inputs, made, "--num_steps=9", "--seed=1")) == 2
    error = error_line(capsys)
    assert "seed: 0 there, 1 now" in error and "num_steps: 2 there, 9 now" in error


def test_another_scheduler_is_refused(inputs, made, capsys):
    assert main(command(inputs, made, "--scheduler=ddim")) == 2
    assert 'scheduler: "pndm" there, "ddim" now' in error_line(capsys)


def test_a_word_of_a_sub_class_gets_the_mask_of_its_class(inputs, tmp_path):
    kinds = tmp_path / "kinds.txt"
    kinds.write_text("dog: cur, pug\n")
    options = {"model": inputs / "model", "classes": "dog,cat", "subclasses": kinds}
    options |= {"template": "{subclass}", "num_steps": 2, "output": tmp_path / "out"}
    options |= {"images_per_prompt": 2, "num_images": 5, "compilation_cache": ""}
    line = ["seediff", *(f"--{name}={value}" for name, value in options.items())]
    assert main(line) == 0
    shown = [(row["prompt"], *row["class_ids"]) for row in rows(tmp_path / "out")]
    assert shown == [*[("cur", 1)] * 2, *[("pug", 1)] * 2, ("kitten", 2)]
    assert all(row["seed_counts"][0] > 0 for row in rows(tmp_path / "out"))
    kinds.write_text("dog: cur, tyke\n")
    assert main(line) == 2


def test_a_run_profiles_its_second_round(inputs, made, tmp_path):
    log = tmp_path / "log"
    # Two rounds of two images on each of eight devices.
    flags = ["--num_images=17", f"--log_dir={log}", "--profile"]
    assert main(command(inputs, tmp_path / "out", *flags)) == 0
    (trace,) = (log / "plugins/profile").rglob("*.xplane.pb")
    assert trace.stat().st_size


def test_running_out_of_device_memory_is_one_line(inputs, tmp_path, monkeypatch, capsys):
    def run(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(programs.PairPrograms, "__call__", run)
    assert main(command(inputs, tmp_path / "out")) == 2
    assert "smaller --batch_size" in error_line(capsys)


def test_a_commit_of_the_hub_with_the_same_weights_is_recorded_and_goes_on(
    inputs, made, tmp_path, monkeypatch
):
    load, folder = make_dataset.load_model, shutil.copytree(made, tmp_path / "out")
    commit = "0123456789" * 4

    def load_with_commit(*args, **options):
        model = load(*args, **options)
        return model.replace(provenance=dataclasses.replace(model.provenance, commit=commit))

    monkeypatch.setattr(make_dataset, "load_model", load_with_commit)
    assert main(command(inputs, folder, "--num_images=7")) == 0
    assert [row["commit"] for row in rows(folder)] == 5 * [None] + 2 * [commit]


def test_a_cache_folder_that_cannot_be_made_stops_no_run(inputs, made, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(inputs, made, f"--compilation_cache={tmp_path / 'file' / 'cache'}")) == 0
    assert "no compilation cache" in capsys.readouterr().err


def test_a_run_with_another_prediction_type_or_lora_is_refused(inputs, made, tmp_path, capsys):
    assert main(command(inputs, made, "--prediction_type=v_prediction")) == 2
    assert 'prediction_type: "epsilon" there, "v_prediction" now' in error_line(capsys)
    assert main(command(inputs, made, "--prediction_type=epsilon")) == 0
    capsys.readouterr()
    lora = tmp_path / "style.safetensors"
    assert main(command(inputs, made, f"--lora={lora}:0.8")) == 2
    assert f"{lora} does not exist" in error_line(capsys)  # before the settings are compared
    lora.write_bytes(b"")
    assert main(command(inputs, made, f"--lora={lora}:0.8")) == 2
    assert f'lora: [] there, [["{lora}", 0.8]] now' in error_line(capsys)
