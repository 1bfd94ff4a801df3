"""Commands on a folder that a run wrote: they read its settings, and take no other flag."""

import dataclasses
import json

import pytest

from seediff_jax.dataset.settings_file import COMMAND, read_settings, write_settings
from seediff_jax.driver import make_dataset
from seediff_jax.driver.config import HostSettings, Task
from seediff_jax.driver.stored_command import read_command
from seediff_jax.driver.subcommands import SUBCOMMANDS
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.main import CommandLine, define_flags, main, make_config, read_command_line
from seediff_jax.sampling.config import with_draws
from tests.helpers.format_runs import tree
from tests.helpers.small_runs import command


@pytest.fixture(scope="module")
def dataset(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "set"
    assert main(command(inputs, folder, "--uncertain=0.3", "--dtype=float32")) == 0
    return folder


def line_of(*arguments):
    values = define_flags()
    values(["seediff", *arguments])
    return read_command_line(values)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--seed=3", "--num_steps=7", "--threshold=0.4", "--uncertain=0.2", "--nobackground"],
        ["--refine_iterations=3", "--dilations=1,2", "--refined_threshold=0.7", "--class_ids=coco"],
        ["--mask_method=cross_attention", "--classes=cat,boat", "--class_ids=voc"],
        ["--mask_method=exponentiation", "--format=voc,files", "--soft_masks=png", "--seed_maps"],
        [
            "--scheduler=euler",
            "--scheduler_options=use_karras_sigmas=true,timestep_spacing=trailing",
        ],
        ["--lora=a.safetensors:0.5", "--lora=b.safetensors"],
        ["--negative_prompt=blur, dark", "--model=a/b", "--classes=cat"],
        ["--guidance_interval=0.2,0.8", "--attention=xla", "--height=64", "--width=128"],
        ["--shuffle", "--images_per_prompt=2", "--classes=cat,car", "--unnamed_classes=boat"],
        ["--template=a {class}", "--template=on {class}", "--classes=cat"],
        ["--template=a {subclass}", "--balance_classes", "--classes=cat", "--model=a/b"],
        ["--prompt=a cat, a boat", "--prompt=a horse", "--model=a/b"],
    ],
)
def test_settings_of_a_folder_are_those_of_the_command_that_wrote_it(tmp_path, options):
    line = line_of(*options, f"--output={tmp_path / 'set'}")
    settings = make_config(line).settings()
    folder = open_folder(tmp_path / "set")
    write_settings(folder, json.loads(json.dumps(settings)) | {"scheduler": "that of the model"})
    read = CommandLine(**read_command(folder, HostSettings()), task=Task())
    assert make_config(read).settings() == settings
    assert read.prompts == line.prompts
    assert read.sampling == with_draws(line.sampling, may_lack=settings["presence_draws"] > 0)
    assert dataclasses.replace(read.source, loras=line.source.loras) == line.source
    assert read.run == line.run


def test_a_plan_a_sample_and_the_rest_of_a_run_need_no_flag_but_the_folder(
    dataset, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = tree(dataset)
    assert main(["seediff", "plan", str(dataset), "--rate=2"]) == 0
    assert capsys.readouterr().out.startswith("5 images, of which 5 exist, in ")
    assert main(["seediff", "regenerate", str(dataset), "3"]) == 0
    assert "sample 3 is the same to the byte" in capsys.readouterr().out
    assert main(["seediff", "resume", str(dataset)]) == 0
    assert "all 5 images are in" in capsys.readouterr().out
    assert tree(dataset) == before


def test_what_repair_removed_is_made_again(dataset, capsys):
    before = tree(dataset)
    (dataset / "mask/000001.png").unlink()
    assert main(["seediff", "repair", str(dataset)]) == 4
    assert main(["seediff", "plan", str(dataset), "--rate=2"]) == 0
    assert "5 images, of which 4 exist" in capsys.readouterr().out
    assert main(["seediff", "resume", str(dataset), "--batch_size=2", "--compilation_cache="]) == 0
    assert tree(dataset) == before


def test_prompts_that_have_changed_since_are_refused(inputs, tmp_path, capsys, monkeypatch):
    def load_model(*_, **__):
        raise AssertionError("the model was loaded before the settings were compared")

    monkeypatch.setattr(make_dataset, "load_model", load_model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text((inputs / "prompts.jsonl").read_text())
    line = line_of(
        f"--model={inputs / 'model'}", f"--prompts={prompts}", f"--output={tmp_path / 'set'}"
    )
    write_settings(open_folder(tmp_path / "set"), make_config(line).settings())
    (tmp_path / "set/shards/00000.journal").mkdir()
    prompts.write_text('{"prompt": "a cow", "classes": ["cow"]}')
    assert main(["seediff", "resume", str(tmp_path / "set")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("seediff resume: ") and "Traceback" not in error
    assert "was made with other settings (num_prompts: 3 there, 1 now" in error


def test_folders_that_do_not_keep_the_command_are_refused(tmp_path):
    folder = open_folder(tmp_path / "set")
    with pytest.raises(UserError, match="is not a seediff dataset: it does not exist"):
        read_command(folder, HostSettings())
    settings = make_config(line_of()).settings()
    write_settings(folder, settings | {COMMAND: None})
    with pytest.raises(UserError, match="because Python code made them; run that code"):
        read_command(folder, HostSettings())
    write_settings(folder, settings | {"num_steps": "many"})
    with pytest.raises(UserError, match="cannot be used: num_steps=many must be a whole number"):
        read_command(folder, HostSettings())
    assert read_settings(folder)["num_steps"] == "many"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["regenerate", "x"], "the index of the sample is missing"),
        (["regenerate", "x", "y"], "--index=y must be a whole number"),
        (["plan", "x", "--rate=0"], "--rate=0.0 must be a finite number in"),
        (["plan", "x", "--num_steps=3"], "unknown flag --num_steps"),
        (["resume", "x", "y"], "unknown argument 'y'"),
        (["verify", "x"], "x is not a seediff dataset: it does not exist"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["seediff", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"seediff {arguments[0]}: ") and error.count("\n") == 1
    assert message in error


def test_each_command_explains_itself(capsys):
    for name in ("resume", "plan", "regenerate", "verify", "repair", "filter", "report"):
        assert main(["seediff", name, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"  seediff {name} outputs/" in text and "--dataset" in text


def test_the_help_of_the_program_lists_the_commands(capsys):
    assert main(["seediff", "--help"]) == 0
    assert f"  seediff {'|'.join(SUBCOMMANDS)} DIR\n" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    import seediff_jax

    assert main(["seediff", "--version"]) == 0
    assert capsys.readouterr().out == f"seediff {seediff_jax.__version__}\n"
