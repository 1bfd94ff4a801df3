"""The command line: flags, help, and errors that name what is wrong before any work."""

import os
import subprocess
import sys

import jax
import pytest

from seediff_jax.driver import make_dataset
from seediff_jax.driver.config import default_output
from seediff_jax.driver.flag_parsers import parse_loras, parse_scheduler_options
from seediff_jax.main import define_flags, main, make_config, read_command_line
from tests.helpers.small_runs import command, error_line


@pytest.fixture
def no_model(monkeypatch):
    """Makes the first touch of a model a failure of the test."""

    def load_model(*_, **__):
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(make_dataset, "load_model", load_model)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch_size=0", "batch_size"),
        ("--num_images=0", "num_images"),
        ("--num_steps=many", "num_steps"),
        ("--dtype=float8", "--dtype=float8 is not one of float32, bfloat16, float16"),
        ("--mask_method=magic", "cross_attention"),
        ("--no_such_flag=1", "no_such_flag"),
        ("dog", "--prompt=dog and --prompts="),
        ("--prompts=missing.jsonl", "missing.jsonl"),
        ("--template=a {class}", "exclude each other; give one"),
        ("--subclasses=kinds.txt", "exclude each other; give one"),
        ("--classes=missing.txt", "missing.txt: no such file"),
        ("--images_per_prompt=0", "images_per_prompt"),
        (
            "--images_per_prompt=1",
            "--num_images=5 is more than 3 prompts have with --images",
        ),
        ("--shuffle_seed=1", "--shuffle_seed=1 needs --shuffle"),
        ("--threshold=1.5", "threshold"),
        ("--uncertain=0.7", "--uncertain=0.7 must lie in 0..0.5"),
        ("--dilations=1,x", "whole numbers"),
        ("--dilations=0", "--dilations=0 must be a whole number in 1..16384"),
        ("--guidance_scale=nan", "--guidance_scale=nan must be a finite number of at least 0"),
        ("--seed=4294967296", "seed"),
        ("--prediction_type=sample", "epsilon, v_prediction"),
        ("--lora=style.safetensors:much", "is not a number; write path:weight"),
        ("--scheduler_options=spacing", "'spacing' must be name=value"),
        ("--scheduler_options=skip=1,skip=2", "'skip=2' must be name=value, each once"),
        ("--mesh=data:-1,tensor:2", "must be like data:-1,model:2"),
        ("--mesh=data:3", "does not fit 8 devices"),
        ("--format=png", "--format=png must be of files"),
        ("--format=files,files", "each at most once"),
        ("--num_processes=2", "give all three"),
        ("--profile", "--profile=true needs --log_dir=FOLDER"),
        ("--output=nothing://bucket", "a path or a URL such as gs://bucket/folder is needed"),
        ("--log_dir=gs://bucket/log", "must be a local folder"),
        ("--rate=2", "--rate=2 needs --plan=true"),
    ],
)
def test_a_bad_flag_is_named_before_any_model_work(
    inputs, tmp_path, capsys, no_model, option, message
):
    assert main(command(inputs, tmp_path / "out", option)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_log_without_tensorboardx_is_refused_with_the_command_that_installs_it(
    inputs, tmp_path, capsys, no_model, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # as if it were not installed
    log = tmp_path / "log"
    assert main(command(inputs, tmp_path / "out", f"--log_dir={log}")) == 2
    message = f"--log_dir={log} needs tensorboardX; run: pip install tensorboardX"
    assert message in error_line(capsys)


def test_a_file_in_place_of_the_folder_of_the_log_is_refused(inputs, tmp_path, capsys, no_model):
    log = tmp_path / "log"
    log.write_text("mine")
    assert main(command(inputs, tmp_path / "out", f"--log_dir={log}")) == 2
    assert f"--log_dir={log} is a file; give a folder for the log" in error_line(capsys)
    assert log.read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--plan", "--verify"], "--plan and --verify"),
        (["--plan", "--repair"], "--plan and --repair"),
        (["--plan", "--regenerate=0"], "--plan and --regenerate"),
        (["--verify", "--repair", "--regenerate=0"], "--repair and --regenerate"),
    ],
)
def test_only_one_thing_is_done_at_a_time(inputs, tmp_path, capsys, no_model, options, named):
    assert main(command(inputs, tmp_path / "out", *options)) == 2
    assert f"{named} are different tasks; give one of them" in error_line(capsys)


@pytest.mark.parametrize("task", ["--verify", "--repair"])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--output=x", "--threshold=0.3", "--seed=4"], "--threshold, --seed"),
        (["--output=x", "--model=a/b"], "--model"),
        (["a cat"], "--prompt"),
        (["--model=a/b", "--classes=cat", "--preset=fast"], "--classes, --preset"),
    ],
)
def test_flags_beside_a_task_that_reads_the_folder_alone_are_refused(capsys, task, options, named):
    assert main(["seediff", *options, task]) == 2
    line = error_line(capsys)
    assert f"{task} reads the folder alone: {named} would have no effect; leave it out" in line


@pytest.mark.parametrize("options", [["--model=a/b"], ["--output=x", "--seed=0", "--debug"]])
def test_flags_that_name_the_folder_and_defaults_are_no_error(tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FolderRead, match="outputs/b|x"):
        monkeypatch.setattr("seediff_jax.driver.verify.verify_folder", read_folder)
        main(["seediff", "--verify", *options])


class FolderRead(Exception):
    """Says which folder a task reads."""


def read_folder(folder, repair):
    raise FolderRead(folder.url)


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_a_device_is_one_line_and_a_traceback_where_it_is_asked_for(
    inputs, tmp_path, monkeypatch, capsys, debug
):
    def load_model(*_, **__):
        raise jax.errors.JaxRuntimeError("INTERNAL: the link is down\nframe 1\nframe 2")

    monkeypatch.setattr(make_dataset, "load_model", load_model)
    assert main(command(inputs, tmp_path / "out", *["--debug"] * debug)) == 2
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("seediff: JAX failed: INTERNAL: the link is down; run the same command")
    assert ("Traceback (most recent call last):" in before) == debug
    assert debug or not before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a cow", "classes": ["dog"]}', "does not name class 'dog'"),
        ('{"prompt": "a cow"', "not JSON"),
    ],
)
def test_a_bad_line_of_a_prompt_file_is_named(inputs, tmp_path, capsys, no_model, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat", "classes": ["cat"]}\n' + line)
    assert main(command(inputs, tmp_path / "out", f"--prompts={path}")) == 2
    error = error_line(capsys)
    assert f"{path}:2" in error and message in error


def test_more_steps_than_the_scheduler_has_are_refused_before_sampling(
    inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(make_dataset, "PairPrograms", None)
    assert main(command(inputs, tmp_path / "out", "--num_steps=5000")) == 2
    assert "num_steps=5000" in error_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_steps=5000"], "--num_steps=5000"),
        (["--height=18"], "--height=18 must be a multiple of 4 pixels"),
        (["--scheduler_options=no_such_option=1"], "no_such_option"),
        (["--scheduler=euler", "--scheduler_options=beta_schedule=none"], "beta_schedule"),
        (["--capture=zzz"], "--capture='zzz'"),
        (["--negative_prompt=more letters than fit"], "token"),
        (["--tokenizer=/no/tokenizer"], "/no/tokenizer"),
    ],
)
def test_settings_that_the_model_refuses_are_named_before_its_weights_are_read(
    inputs, tmp_path, capsys, no_model, options, message
):
    assert main(command(inputs, tmp_path / "out", *options)) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long_is_refused_before_sampling(
    inputs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(make_dataset, "PairPrograms", None)
    path = tmp_path / "prompts.txt"
    path.write_text("a cat in the grass")
    options = [f"--prompts={path}", "--classes=cat"]
    assert main(command(inputs, tmp_path / "out", *options)) == 2
    assert "first word that is lost is 'grass'" in error_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--prompts=missing.jsonl"],
        ["--classes=missing.txt"],
        ["--images_per_prompt=1"],
    ],
)
def test_a_model_that_does_not_exist_is_named_before_what_is_wrong_with_prompts(
    inputs, tmp_path, capsys, options
):
    assert main(command(inputs, tmp_path / "out", "--model=/no/model", *options)) == 2
    assert "there is no model '/no/model'" in error_line(capsys)


def test_help_lists_every_flag(capsys):
    assert main(["seediff", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}" in text for name in define_flags())
    assert "--background / --nobackground (default: on)" in text and "ddim, pndm, euler, " in text


def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `seediff --help | head -1`: the pipe is closed before the text is written."""
    end, start = os.pipe()
    os.close(end)
    command = [sys.executable, "-m", "seediff_jax.main", "--help"]
    done = subprocess.run(command, stdout=start, stderr=subprocess.PIPE, check=False)
    os.close(start)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ()),
        (
            ["a.safetensors:0.8", "b:c.safetensors:-1"],
            (("a.safetensors", 0.8), ("b:c.safetensors", -1)),
        ),
        (["a.safetensors", "C:\\a.safetensors"], (("a.safetensors", 1), ("C:\\a.safetensors", 1))),
    ],
)
def test_loras_are_given_with_their_weights(texts, expected):
    assert parse_loras(texts) == expected


def test_options_of_the_sampler_are_values_of_json_or_words():
    text = "use_karras_sigmas=true, steps_offset=1,beta_end=0.012,timestep_spacing=trailing,"
    assert parse_scheduler_options(text) == {
        "use_karras_sigmas": True,
        "steps_offset": 1,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    }
    assert parse_scheduler_options("") == {}


@pytest.mark.parametrize(
    ("options", "seed"),
    [
        ([], None),
        (["--shuffle"], 7),
        (["--shuffle", "--shuffle_seed=0"], 0),
        (["--noshuffle"], None),
    ],
)
def test_prompts_are_shuffled_by_the_seed_unless_they_have_their_own(options, seed):
    values = define_flags()
    values(["seediff", "--model=owner/model", "--classes=voc", "--seed=7", *options])
    assert make_config(read_command_line(values)).plan.shuffle_seed == seed


def test_templates_are_repeated_and_not_split_at_commas():
    values = define_flags()
    values(
        [
            "seediff",
            "--model=a/b",
            "--classes=dog",
            "--template=a {class}, lit",
            "--template={class}",
        ]
    )
    records = make_config(read_command_line(values)).plan.records
    assert [record.prompt for record in records] == ["a dog, lit", "dog"]


def test_the_output_of_a_single_file_is_named_without_its_ending(tmp_path):
    values = define_flags()
    values(["seediff", f"--model={tmp_path}/v1.5.safetensors", "--classes=voc", "--lora=a:2"])
    config = make_config(read_command_line(values))
    assert config.output == "outputs/v1.5" and config.loras == (("a", 2.0),)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("stickers", "outputs/stickers"),
        ("owner/model", "outputs/model"),
        ("/data/photos/", "outputs/photos"),
        (".", "outputs/photos"),
        ("..", "outputs/data"),
        ("gs://bucket/photos/", "outputs/photos"),
        ("/", "outputs/run"),
    ],
)
def test_the_output_is_within_outputs_whatever_names_its_source(monkeypatch, source, output):
    monkeypatch.setattr(os, "getcwd", lambda: "/data/photos")
    assert default_output(source) == output
