"""The converter's command line: any source becomes a folder that loads as the same model."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from seediff_jax.checkpoints.load import load_model
from seediff_jax.convert import define_flags, main
from tests.helpers.crashes import killed_at
from tests.helpers.small_runs import write_inputs

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs")) / "model"


@pytest.fixture
def lora(tmp_path):
    parts = {"lora_down": np.ones((1, 4, 3, 3)), "lora_up": np.ones((16, 1, 1, 1))}
    tensors = {f"lora_unet_conv_in.{k}.weight": v.astype(np.float32) for k, v in parts.items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def convert(source, *options):
    return main(["convert", f"--model={source}", *options])


@pytest.mark.parametrize("kind", ["orbax", "diffusers"])
def test_both_kinds_of_folder_hold_the_model_with_its_loras(source, tmp_path, lora, kind):
    output, given = tmp_path / "out", f"--lora={lora}:0.25"
    assert convert(source, f"--output={output}", f"--format={kind}", given) == 0
    assert (output / "params").is_dir() == (kind == "orbax")
    expected = load_model(source, loras=[(lora, 0.25)])
    got = load_model(output)
    assert got.weights_hash == expected.weights_hash != load_model(source).weights_hash
    assert got.config == expected.config
    kernel = np.asarray(load_model(source).params["unet"]["conv_in"]["kernel"])
    np.testing.assert_array_equal(got.params["unet"]["conv_in"]["kernel"], kernel + 0.25)


@pytest.mark.parametrize("kind", ["orbax", "diffusers"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_written_in_the_dtype(source, tmp_path, kind, dtype):
    output = tmp_path / "out"
    options = [f"--output={output}", f"--format={kind}", f"--dtype={dtype}"]
    options += ["--scheduler=dpmsolver_multistep"]
    options += ["--scheduler_options=use_karras_sigmas=true,timestep_spacing=trailing"]
    assert convert(source, *options) == 0
    kernel = np.asarray(load_model(source).params["unet"]["conv_in"]["kernel"])
    got = load_model(output)
    rounded = kernel.astype(load_model(source, dtype=dtype).dtype).astype(np.float32)
    np.testing.assert_array_equal(got.params["unet"]["conv_in"]["kernel"], rounded)
    scheduler = got.scheduler_config
    assert scheduler.kind == "dpmsolver_multistep" and scheduler.use_karras_sigmas
    assert scheduler.timestep_spacing == "trailing"
    if kind == "diffusers":
        assert {str(tensor.dtype) for tensor in load_file(output / UNET).values()} == {dtype}


@pytest.mark.parametrize("kind", ["orbax", "diffusers"])
def test_a_converted_folder_keeps_its_capture_unless_another_is_given(source, tmp_path, kind):
    layer = "up_blocks.1.attentions.1.transformer_blocks.0"
    chosen = {"cross_layers": [f"{layer}.attn2"], "self_layers": [f"{layer}.attn1"]}
    chosen["calls"] = [0.0, 0.5]
    (tmp_path / "own.json").write_text(json.dumps(chosen))
    own, published = tmp_path / "own", tmp_path / "published"
    options = [f"--output={own}", f"--format={kind}", f"--capture={tmp_path / 'own.json'}"]
    assert convert(source, *options) == 0
    assert json.loads((own / "capture.json").read_text()) == chosen
    capture = load_model(own).capture
    assert (capture.cross_layers, capture.calls) == ((f"{layer}.attn2",), (0.0, 0.5))
    options = [f"--output={published}", f"--format={kind}", "--capture=published"]
    assert convert(own, *options) == 0
    assert not (published / "capture.json").exists()
    assert load_model(published).capture == load_model(source).capture != capture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output= is missing"),
        (["--output={used}"], "exists; name a new folder"),
        (["--output={new}", "--format=ckpt"], "orbax"),
        (["--output={new}", "--lora=none.safetensors:1"], "none.safetensors does not exist"),
        (["--output={new}", "--lora=none.safetensors:much"], "'much' is not a number"),
        (["--output={new}", "--revision=main"], "only models of the hub have revisions"),
        (["--output={new}", "--capture=all"], "'all' is not one of published, coarse, "),
    ],
)
def test_a_bad_flag_gives_one_line_and_writes_nothing(source, tmp_path, capsys, options, message):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/notes.txt").write_text("mine")
    places = {"used": tmp_path / "used", "new": tmp_path / "new"}
    assert convert(source, *(option.format(**places) for option in options)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "new").exists()


def test_a_conversion_killed_at_any_call_leaves_nothing_or_a_whole_folder(source, tmp_path):
    output = tmp_path / "out"
    # Threads of orbax would wait for one another; real kills of it are in the slow test below.
    options = f"--output={output}", "--format=diffusers"
    for number in itertools.count(1):
        with killed_at(number) as calls:
            convert(source, *options)
        if calls[-1] != "killed":
            break
        assert not output.exists()
    assert number > 5  # else the calls were not seen
    assert load_model(output).weights_hash == load_model(source).weights_hash
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["orbax", "diffusers"])
def test_the_same_command_succeeds_after_a_conversion_was_killed(source, tmp_path, kind):
    output = tmp_path / "out"
    words = [sys.executable, "-m", "seediff_jax.convert", f"--model={source}"]
    words += [f"--output={output}", f"--format={kind}"]
    begin, random = time.monotonic(), np.random.default_rng(0)
    subprocess.run([*words[:-2], f"--output={tmp_path / 'whole'}", words[-1]], check=True)
    seconds = time.monotonic() - begin
    for _ in range(10):
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        # The start of Python is the longest part, and writes nothing.
        time.sleep(random.uniform(0.5, 1) * seconds)
        process.kill()
        process.wait()
        if output.exists():
            assert load_model(output).weights_hash == load_model(source).weights_hash
            shutil.rmtree(output)
    subprocess.run(words, check=True)
    assert load_model(output).weights_hash == load_model(source).weights_hash
    assert sorted(os.listdir(tmp_path)) == ["out", "whole"]


def test_partial_folders_of_live_processes_and_other_hosts_are_kept(source, tmp_path):
    live = tmp_path / f".out.{socket.gethostname()}.{os.getppid()}.partial"
    elsewhere = tmp_path / ".out.another-host.1.partial"
    dead = tmp_path / f".out.{socket.gethostname()}.{2**22 + 1}.partial"
    for folder in (live, elsewhere, dead):
        folder.mkdir()
    assert convert(source, f"--output={tmp_path / 'out'}") == 0
    assert sorted(os.listdir(tmp_path)) == sorted([live.name, elsewhere.name, "out"])


def test_help_lists_every_flag(capsys):
    assert main(["convert", "--help"]) == 0
    text = capsys.readouterr().out
    assert "python -m seediff_jax.convert" in text
    assert all(f"--{name}" in text for name in ("model", "output", "format", "lora"))
    assert set(define_flags()) >= {"model", "output", "format", "dtype", "lora", "revision"}
