"""`seediff remask`: masks of kept attention are those of a run that samples again."""

import functools
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.checkpoints.load import load_model
from seediff_jax.dataset.lock import LOCK, hold_lock
from seediff_jax.dataset.settings_file import COMMAND, FILTERS, read_settings
from seediff_jax.driver import remask
from seediff_jax.driver.signals import STOPPED
from seediff_jax.driver.verify import verify_folder
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.masks.config import MaskConfig
from seediff_jax.masks.label_maps import explained
from seediff_jax.masks.methods import class_soft_mask
from seediff_jax.pipeline.generate import generate
from seediff_jax.review import copies
from seediff_jax.sampling.config import SamplingConfig
from tests.helpers.format_runs import tree
from tests.helpers.random_models import quick_jit
from tests.helpers.small_runs import PROMPTS, command, error_line

THRESHOLD = 0.55
# Four steps of a random walk on the flat attention of random weights end in a field that varies by
# 1e-4, so that min-max makes 0.02 of the rounding of float32. After two steps it varies by 0.01.
POWER = 2
OTHER = ("--mask_method=exponentiation", f"--threshold={THRESHOLD}", f"--power={POWER}")

ROUNDING = 5e-3
"""By what soft masks of attention in float16 may differ from those of attention in float32.

Float16 rounds by up to 2^-11; random changes of that size moved these soft masks by up to 1e-3.
"""


def made_by_a_run(inputs, folder, *more):
    options = ("--format=files,webdataset", "--soft_masks=npz", "--seed_maps")
    assert main(command(inputs, folder, *options, *more)) == 0
    return folder


@pytest.fixture(scope="module")
def source(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "kept"
    return made_by_a_run(inputs, folder, "--keep_attention")


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    return made_by_a_run(inputs, tmp_path_factory.mktemp("runs") / "again", *OTHER)


@pytest.fixture(scope="module")
def remasked(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "other"
    before = tree(source)
    assert main(["seediff", "remask", str(source), *OTHER, f"--output={folder}"]) == 0
    assert tree(source) == before
    return folder


def records_of(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_run_keeps_the_attention_of_each_sample(source, inputs):
    prompt, classes = PROMPTS[0]
    pairs = generate(
        load_model(inputs / "model"), [prompt], [classes], sampling=SamplingConfig(num_steps=2)
    )
    kept = AttentionMaps.load(source / "attention" / "000000.npz")
    assert kept.cross_attention.shape == (3, 64, 2) and kept.sides == (8,)
    made = pairs.attention_maps
    # Half a unit of float16, and sums in another order in the program of another batch.
    for got, wanted in (
        (kept.cross_attention, made.cross_attention[0]),
        (kept.self_attention[8], made.self_attention[8][0]),
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    cow = AttentionMaps.load(source / "attention" / "000001.npz")
    assert cow.cross_attention.shape == (3, 64, 1)  # without padding


def soft_masks(folder, record):
    return np.load(folder / "soft" / f"{record['index']:06d}.npz")["soft_masks"]


def test_masks_are_those_of_the_kept_attention(remasked, source):
    @quick_jit
    def one_class(cross_attention, self_attention):
        return class_soft_mask(
            cross_attention, self_attention, 16, MaskConfig(method="exponentiation", power=POWER)
        )

    for record in records_of(remasked):
        kept = AttentionMaps.load(source / "attention" / f"{record['index']:06d}.npz")
        soft = soft_masks(remasked, record)
        for k in range(len(record["class_ids"])):
            wanted = one_class(kept.cross_attention[..., k], kept.self_attention)
            # Two programs add 256 terms of float32 in other orders, and the stretching to [0, 1]
            # widens that: 2e-5 to 1e-4 was measured for these ten masks, here times three.
            np.testing.assert_allclose(soft[k], wanted, rtol=0, atol=3e-4)
        labels = np.where(soft.max(0) > THRESHOLD, np.array(record["class_ids"])[soft.argmax(0)], 0)
        np.testing.assert_array_equal(pixels(remasked / record["mask"]), labels)


def test_masks_equal_those_of_a_run_that_samples_again(remasked, expected):
    assert tree(remasked).keys() == tree(expected).keys()
    for record, wanted in zip(records_of(remasked), records_of(expected), strict=True):
        assert (
            pixels(remasked / record["image"]).tobytes()
            == pixels(expected / wanted["image"]).tobytes()
        )
        soft = soft_masks(expected, wanted)
        np.testing.assert_allclose(soft_masks(remasked, record), soft, rtol=0, atol=ROUNDING)
        # Pixels may differ only near the threshold, and where two classes are about equal.
        second, first = np.sort([np.zeros_like(soft[0]), *soft], axis=0)[-2:]
        is_equal = (first > THRESHOLD) & (first - second < 2 * ROUNDING)
        is_clear = (np.abs(first - THRESHOLD) > ROUNDING) & ~is_equal
        mask, wanted_mask = pixels(remasked / record["mask"]), pixels(expected / wanted["mask"])
        np.testing.assert_array_equal(mask[is_clear], wanted_mask[is_clear])
        assert np.mean(is_clear) > 0.9 and len(np.unique(wanted_mask[is_clear])) > 1
        np.testing.assert_allclose(record["scores"], wanted["scores"], atol=0.01)
        np.testing.assert_allclose(record["presence"], wanted["presence"], atol=0.01)
        changed = {"scores", "seed_counts", "area_fractions", "sha256", "crc32", "source_index"}
        changed |= {"ignored_fraction", "presence"}
        same = wanted.keys() - changed
        assert {name: record[name] for name in same} == {name: wanted[name] for name in same}


def test_settings_are_those_of_the_run_and_say_what_it_is_a_copy_of(remasked, expected, source):
    settings, wanted = (read_settings(open_folder(folder)) for folder in (remasked, expected))
    (copied,) = settings.pop(FILTERS)
    assert copied["source"] == str(source) and copied["mask_method"] == "exponentiation"
    assert settings | {COMMAND: None} == wanted | {COMMAND: None}
    assert settings["threshold"] == 0.55 and settings["keep_attention"] is False


def test_the_copy_is_sound_and_other_commands_read_it(remasked, capsys):
    assert verify_folder(open_folder(remasked), repairs=False) == 0
    assert main(["seediff", "filter", str(remasked), "--min_score=0"]) == 0
    assert "all: 5 of 5 kept" in capsys.readouterr().out
    assert main(["seediff", "report", str(remasked)]) == 0
    assert main(["seediff", "resume", str(remasked)]) == 2
    assert "is a copy, which no run made" in capsys.readouterr().err


def test_the_same_command_again_does_nothing_and_another_is_refused(source, remasked, capsys):
    def written():
        return {p: p.stat().st_mtime_ns for p in remasked.rglob("*") if p.is_file()}

    before = written()
    assert main(["seediff", "remask", str(source), *OTHER, f"--output={remasked}"]) == 0
    assert written() == before
    capsys.readouterr()
    assert main(["seediff", "remask", str(source), f"--output={remasked}"]) == 2
    assert "was made with other settings" in capsys.readouterr().err
    with jax.default_matmul_precision("bfloat16"):
        assert main(["seediff", "remask", str(source), *OTHER, f"--output={remasked}"]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_a_command_that_a_signal_ends_holds_no_lock(source, tmp_path, monkeypatch):
    folder, held = open_folder(f"memory://{tmp_path.name}/other"), []

    def stop(*_):
        held.append(folder.exists(LOCK))
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(20)
        pytest.fail("went on")

    monkeypatch.setattr(copies, "hold_lock", functools.partial(hold_lock, beat_seconds=0.02))
    monkeypatch.setattr(remask._Remasker, "copy", stop)
    assert main(["seediff", "remask", str(source), f"--output={folder.url}"]) == STOPPED
    assert held == [True] and not folder.exists(LOCK)


def test_without_an_output_the_new_folder_stands_beside_the_dataset(
    source, remasked, monkeypatch, capsys
):
    monkeypatch.chdir(source)
    assert main(["seediff", "remask", ".", *OTHER]) == 0
    beside = source.with_name(f"{source.name}_remasked")
    assert str(beside) in capsys.readouterr().out
    assert (beside / "manifest.jsonl").read_bytes() == (remasked / "manifest.jsonl").read_bytes()
    # The same name stands for one copy; other masks need another one.
    assert main(["seediff", "remask", "."]) == 2
    assert "was made with other settings" in capsys.readouterr().err


def test_masks_by_the_same_settings_are_those_that_are_there(source, tmp_path):
    assert main(["seediff", "remask", str(source), f"--output={tmp_path}", "--format=files"]) == 0
    for record in records_of(tmp_path):
        mask = f"mask/{record['index']:06d}.png"
        # Rounding to float16 may move Otsu's threshold by one of 256 levels, and a seed more or
        # less moves the soft masks, which are flat as weights are random.
        assert np.mean(pixels(tmp_path / mask) == pixels(source / mask)) >= 0.95
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        *("image", "mask", "overlay", "soft", "seeds", "shards")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output={new}", "--mask_method=json:none"], "--mask_method=json:none cannot be"),
        (["--output={new}", "--mask_method=json:dumps"], "the method json:dumps cannot be used"),
        (["--output={new}", "--threshold=2"], "--threshold=2.0 must be"),
        (["--output={source}/within"], "is within"),
    ],
)
def test_bad_input_is_refused_in_one_line(source, tmp_path, capsys, arguments, message):
    places = {"new": tmp_path / "new", "source": source}
    arguments = [argument.format(**places) for argument in arguments]
    assert main(["seediff", "remask", str(source), *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("seediff remask: ") and message in line and line.count("\n") == 1


def test_a_run_without_attention_is_refused(expected, tmp_path, capsys):
    assert main(["seediff", "remask", str(expected), f"--output={tmp_path / 'new'}"]) == 2
    assert "has no attention; only a run with --keep_attention" in capsys.readouterr().err


def test_a_format_without_a_place_for_attention_is_refused(inputs, tmp_path, capsys):
    assert main(command(inputs, tmp_path / "set", "--keep_attention", "--format=voc")) == 2
    assert "--format=voc has no place for attention.npz; add one of files" in error_line(capsys)


def test_a_plan_counts_the_bytes_of_attention(inputs, tmp_path, capsys):
    def sample_kib(*more):
        assert main(command(inputs, tmp_path / "set", "--plan", "--rate=1", *more)) == 0
        (line,) = (s for s in capsys.readouterr().out.splitlines() if " on disk, " in s)
        return float(line.split(" on disk, ")[1].split(" KiB")[0])

    # 64 x 64 of self-attention and 3 x 64 of each of 8 / 5 classes, two bytes each.
    expected = 2 * (64**2 + 3 * 64 * 8 / 5) / 1024
    assert sample_kib("--keep_attention") - sample_kib() == pytest.approx(expected, abs=0.11)


def test_presence_by_denoising_is_kept_with_the_attention(inputs, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"  # the text that names a class must fit as well
    prompts.write_text('{"prompt": "cat", "classes": ["cat"]}\n')
    folder, options = tmp_path / "run", ["--keep_attention", "--presence_draws=1"]
    made_by_a_run(inputs, folder, f"--prompts={prompts}", *options, "--min_presence=0")
    kept = [AttentionMaps.load(path) for path in sorted((folder / "attention").iterdir())]
    assert [maps.evidence.shape for maps in kept] == [(8, 8, 1, 2)] * 5
    for record, maps in zip(records_of(folder), kept, strict=True):
        soft = np.load(folder / "soft" / f"{record['index']:06d}.npz")["soft_masks"]
        wanted = explained(maps.evidence[:, :, 0], soft[0].astype(np.float32))
        # Evidence and soft masks in float16 or rounded to four digits.
        np.testing.assert_allclose(record["presence"], [wanted], atol=2e-3)
    others = ["--mask_method=cross_attention", "--min_presence=1", f"--output={tmp_path / 'other'}"]
    assert main(["seediff", "remask", str(folder), *others]) == 0
    for record in records_of(tmp_path / "other"):
        assert bool(record["empty"]) == (record["presence"][0] < 1)
