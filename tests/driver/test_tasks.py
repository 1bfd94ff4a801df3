"""Verify, repair, regenerate, plan and rehearse: on a small run, damaged in every way."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.checksums import add_checksum, json_line, json_with_checksum
from seediff_jax.driver import estimate, make_dataset
from seediff_jax.driver.plan import RECORD_BYTES
from seediff_jax.driver.verify import DIFFERENT
from seediff_jax.main import main
from tests.helpers.small_runs import command, error_line

OWN_PARTS = ("image", "mask", "overlay")


@pytest.fixture(scope="module")
def made(inputs, tmp_path_factory):
    """Folder of a complete run with a full shard of 3 and one of 2; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "out"
    assert main(run(inputs, folder)) == 0
    return folder


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def run(inputs, folder, *more):
    return command(inputs, folder, "--format=files,webdataset", "--shard_size=3", *more)


def tree(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def overwrite(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size - 5)


def test_a_folder_as_it_was_written_is_found_so_without_a_model(made, capsys):
    before = tree(made)
    assert main(["seediff", "--verify", f"--output={made}"]) == 0
    assert capsys.readouterr().out == f"{made}: all is as it was written\n"
    assert tree(made) == before


@pytest.mark.parametrize(
    ("name", "damage", "text"),
    [
        ("image/000001.png", overwrite, "has changed since it was written"),
        ("mask/000004.png", os.unlink, "missing"),
        ("overlay/000003.png", cut, "has changed since it was written"),
        ("webdataset/shard-00000.tar", cut, "bytes instead of"),
        ("webdataset/shard-00001.tar", os.unlink, "missing"),
        ("shards/00000.jsonl", overwrite, "has changed"),
        ("shards/00000.json", cut, "cannot be read"),
        ("shards/00001.open.json", cut, "cannot be read"),
        ("shards/00001.journal/000003+2", overwrite, "has changed since it was written"),
        ("shards/closed.json", cut, "cannot be read"),
        ("manifest.jsonl", cut, "bytes instead of"),
        ("contact_sheet.png", overwrite, "has changed"),
        ("classes.txt", overwrite, "has changed"),
        ("settings.json", os.unlink, "missing"),
        ("settings.json", cut, "bytes instead of"),
        ("settings.json", overwrite, "has changed"),
        ("shards/settings.json", cut, "bytes instead of"),
        ("shards/settings.json", overwrite, "has changed"),
        ("shards/settings.json", os.unlink, "missing"),
    ],
)
def test_damage_is_told_and_nothing_changed_then_repaired_by_the_same_command(
    inputs, made, copy, capsys, name, damage, text
):
    damage(copy / name)
    before = tree(copy)
    assert main(["seediff", "--verify", f"--output={copy}"]) == DIFFERENT
    told = capsys.readouterr().out.splitlines()
    assert any(line.startswith(name.split("/0000")[0]) and text in line for line in told), told
    assert tree(copy) == before
    assert main(["seediff", "--repair", f"--output={copy}"]) == DIFFERENT
    assert main(run(inputs, copy)) == 0
    assert tree(copy) == tree(made)


def test_a_changed_setting_is_told_and_put_back(copy, capsys):
    path = copy / "settings.json"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"guidance_scale": 7.5', b'"guidance_scale": 3.0'))
    assert main(["seediff", "--repair", f"--output={copy}"]) == DIFFERENT
    told = capsys.readouterr().out
    assert "settings.json: has changed" in told and told.endswith("restored settings.json\n")
    assert path.read_bytes() == content


def test_every_damage_of_a_shard_is_told(copy, capsys):
    cut(copy / "webdataset/shard-00000.tar")
    (copy / "image/000001.png").unlink()
    (copy / "shards/00001.open.json").write_text("[]")
    overwrite(copy / "mask/000004.png")
    assert main(["seediff", "--verify", f"--output={copy}"]) == DIFFERENT
    told = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(told) == [
        "image/000001.png",
        "mask/000004.png",
        "shards/00001.open.json",
        "webdataset/shard-00000.tar",
    ]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("shards/00000.json", cut),
        (
            "shards/00000.json",
            lambda path: path.write_bytes(path.read_bytes().replace(b".jsonl", b"")),
        ),
        ("shards/00000.jsonl", cut),
        ("shards/00000.jsonl", os.unlink),
        ("image/000002.png", overwrite),  # the contact sheet shows it
        ("settings.json", cut),
        ("settings.json", os.unlink),
    ],
)
def test_a_run_that_meets_damage_names_it_and_the_way_out(inputs, made, copy, capsys, name, damage):
    damage(copy / name)
    (copy / "shards/closed.json").unlink()
    assert main(run(inputs, copy)) == 2
    line = error_line(capsys)
    assert name in line and f"--repair --output={copy}" in line
    assert main(["seediff", "--repair", f"--output={copy}"]) == DIFFERENT
    assert main(run(inputs, copy)) == 0
    assert tree(copy) == tree(made)


def test_settings_that_lack_what_is_needed_are_one_line(copy, capsys):
    for name in ("settings.json", "shards/settings.json"):
        content = json_with_checksum({"form": 2, "seediff_jax_version": "1", "class_names": []})
        (copy / name).write_bytes(content)
    assert main(["seediff", "--verify", f"--output={copy}"]) == 2
    assert "lack format, soft_masks" in error_line(capsys)


def test_a_lost_shard_of_a_complete_folder_is_told(copy, capsys):
    for path in [*copy.glob("shards/00000*")]:
        path.unlink()
    assert main(["seediff", "--verify", f"--output={copy}"]) == DIFFERENT
    assert "shards/00000.json: missing" in capsys.readouterr().out


def test_verifying_something_else_is_one_line(tmp_path, capsys):
    assert main(["seediff", "--verify", f"--output={tmp_path / 'no'}"]) == 2
    assert "is not a seediff dataset: it does not exist" in error_line(capsys)


# Of a full shard, and of the open one; with the batch size of the run, whatever is given.
@pytest.mark.parametrize(("index", "batch_size"), [(0, 2), (4, 3)])
def test_a_sample_is_made_again_to_the_byte(inputs, made, capsys, monkeypatch, index, batch_size):
    monkeypatch.setattr(make_dataset, "require_prompts_fit", None)  # the run has checked them
    before = tree(made)
    options = f"--regenerate={index}", f"--batch_size={batch_size}"
    assert main(run(inputs, made, *options)) == 0
    assert capsys.readouterr().out == f"sample {index} is the same to the byte\n"
    assert tree(made) == before


def test_a_sample_that_differs_is_told_by_how_much(inputs, copy, capsys):
    path = copy / "mask/000001.png"
    with Image.open(path) as picture:
        mask, palette = np.array(picture), picture.getpalette()
    mask[0, :4] = 1 + mask[0, :4]
    changed = Image.fromarray(mask)
    changed.putpalette(palette)
    changed.save(path)
    lines = (copy / "shards/00000.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    record["sha256"]["mask.png"] = "0" * 64
    del record["crc32"]
    lines[1] = json_line(add_checksum(record)).decode().strip()
    (copy / "shards/00000.jsonl").write_text("\n".join(lines) + "\n")
    overwrite(copy / "image/000001.png")
    (copy / "overlay/000001.png").unlink()
    assert main(run(inputs, copy, "--regenerate=1")) == DIFFERENT
    share = f"{4 / mask.size:.4%}"
    assert capsys.readouterr().out.splitlines() == [
        f"mask/000001.png: {share} of the pixels have another class",
        "image/000001.png: has changed since it was written",
        "overlay/000001.png: missing",
    ]


def test_a_sample_that_is_not_there_cannot_be_made_again(inputs, made, capsys):
    assert main(run(inputs, made, "--regenerate=9", "--num_images=20")) == 2
    assert "does not have sample 9" in error_line(capsys)


def test_a_plan_is_told_and_nothing_written(inputs, tmp_path, capsys):
    assert main(run(inputs, tmp_path / "out", "--plan")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"5 images, of which 0 exist, in {tmp_path / 'out'}"
    assert re.fullmatch(r"about \d.* at .* images per second on each of 8", lines[4])
    assert re.fullmatch(r"about \S+ KiB on disk, \S+ KiB per sample, measured in .*", lines[5])
    assert re.fullmatch(r"about \S+ [KM]iB of memory on each device, according .*", lines[6])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def compiled(monkeypatch):
    """In place of compiling: sizes and dtypes of what would have been compiled."""
    calls = []

    def batch_bytes(model, settings, mesh, *sizes):
        calls.append((model.dtype.name, *sizes))
        return 3 * 2**30

    def load_model(*_, **__):
        raise AssertionError("a plan at a given rate needs no weights")

    monkeypatch.setattr(estimate, "batch_bytes", batch_bytes)
    monkeypatch.setattr(make_dataset, "load_model", load_model)
    return calls


def test_at_a_given_rate_time_disk_and_memory_are_told_without_weights(
    inputs, tmp_path, capsys, compiled
):
    flags = ["--plan", "--rate=0.5", "--dtype=bfloat16", "--num_images=16"]
    assert main(run(inputs, tmp_path / "out", *flags)) == 0
    # Images of 16 x 16: with files 3.61 and with webdataset 0.71 bytes a pixel, and a record.
    sample = (16 * 16 * 4.32 + RECORD_BYTES) / 1024
    assert capsys.readouterr().out.splitlines()[4:] == [
        "about 4 seconds at 0.5 images per second on each of 8",
        f"about {16 * sample:.1f} KiB on disk, {sample:.1f} KiB per sample, "
        "estimated for photographs",
        "about 3.0 GiB of memory on each device, according to its programs",
    ]
    assert compiled == [("bfloat16", 2, 2, False)]


def test_at_a_given_rate_disk_is_that_of_the_samples_that_are_there(inputs, made, capsys, compiled):
    before = tree(made)
    assert main(run(inputs, made, "--plan", "--rate=1", "--num_images=8")) == 0
    # The full shard of the first three samples.
    own = [len(before[f"{part}/{i:06d}.png"]) for part in OWN_PARTS for i in range(3)]
    shared = [len(before[n]) for n in ("webdataset/shard-00000.tar", "shards/00000.jsonl")]
    sample = (sum(own) + sum(shared)) / 3 / 1024
    told = f"about {3 * sample:.1f} KiB on disk, {sample:.1f} KiB per sample, measured on existing "
    told += "samples"
    lines = capsys.readouterr().out.splitlines()
    assert told in lines and lines[0] == f"8 images, of which 5 exist, in {made}"
    assert tree(made) == before


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--num_steps=2000", "num_steps=2000"),
        ("--revision=main", "revision='main' is given, but only models of the hub have revisions"),
        ("--capture=/x.json", "/x.json"),
        ("--lora=/no.safetensors:1", "/no.safetensors"),
        ("--height=15", "height=15"),
        ("--negative_prompt=more letters than fit", "token"),
        ("--model=/no/model", "/no/model"),
        ("--tokenizer=/no/tokenizer", "/no/tokenizer"),
    ],
)
def test_a_plan_at_a_given_rate_refuses_what_a_run_would(
    inputs, tmp_path, capsys, compiled, option, message
):
    assert main(run(inputs, tmp_path / "out", "--plan", "--rate=1", option)) == 2
    assert message in error_line(capsys) and not compiled


def test_a_dry_run_writes_everything_and_is_no_start_of_a_real_one(inputs, made, tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(run(inputs, folder, "--dry_run")) == 0
    assert tree(folder).keys() == tree(made).keys()
    for part in ("image", "mask"):
        content = (folder / part / "000000.png").read_bytes()
        assert content != (made / part / "000000.png").read_bytes()
    assert main(["seediff", "--verify", f"--output={folder}"]) == 0
    assert main(run(inputs, folder)) == 2
    assert "dry_run: true there, false now" in error_line(capsys)
