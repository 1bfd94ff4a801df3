"""The command line: quick refusals, errors in one line, and output that never decides a run."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest

from seediff_jax.driver import cli
from seediff_jax.driver.signals import INTERRUPTED, STOPPED
from seediff_jax.errors import UserError
from seediff_jax.main import GROUPS, read_command_line
from seediff_jax.sampling.config import SamplingConfig

ROOT = Path(__file__).parents[2]
# A bad flag or a contradiction, and what is said of it.
REFUSED = {
    "--num_images=0": "--num_images=0 must be a whole number in 1..2147483647",
    "--num_images=1000000000000": "--num_images=1000000000000 must be a whole number in 1..",
    "--batch_size=1000000000": "--batch_size=1000000000 must be a whole number in 1..4096",
    "--batch_size=many": "--batch_size='many' must be a whole number, or auto",
    "--num_steps=1000000000": "--num_steps=1000000000 must be a whole number in 1..10000",
    "--shard_size=99999999999": "--shard_size=99999999999 must be a whole number in 1..1000000",
    "--height=1000000000": "--height=1000000000 must be a whole number in 1..16384",
    "--refine_iterations=99999999999": "--refine_iterations=99999999999 must be a whole number",
    "--power=100000000": "--power=100000000 must be a whole number in 1..10000",
    "--dilations=1,99999999": "--dilations=99999999 must be a whole number in 1..16384",
    "--guidance_scale=nan": "--guidance_scale=nan must be a finite number of at least 0",
    "--guidance_scale=inf": "--guidance_scale=inf must be a finite number of at least 0",
    "--guidance_interval=0,half": "--guidance_interval=0,half must be numbers",
    "--guidance_rescale=-inf": "--guidance_rescale=-inf must be a finite number in 0..1",
    "--threshold=nan": "--threshold=nan must be a finite number in 0..1",
    "--uncertain=0.9": "--uncertain=0.9 must lie in 0..0.5, the threshold",
    "--plan --rate=nan": "--rate=nan must be a finite number in 1e-09..1000000000",
    "--plan --rate=inf": "--rate=inf must be a finite number",
    "--rate=1": "--rate=1 needs --plan=true",
    "--lora=a.safetensors:inf": "--lora='a.safetensors:inf': 'inf' is not a number",
    "--dtype=int8": "--dtype=int8 is not one of float32, bfloat16, float16",
    "--mask_method=daam": "--mask_method=daam is not one of seediff, cross_attention, expone",
    "--format=png": "--format=png must be of files, voc, coco",
    "--soft_masks=tiff": "--soft_masks=tiff is not one of npz, png",
    "--scheduler=best": "--scheduler=best is not one of ddim, pndm",
    "--scheduler_options=x": "'x' must be name=value, each once",
    "--partition=xmap": "--partition=xmap is not one of shard_map, pmap",
    "--mesh=data:0": "must be like data:-1,model:2",
    "--mesh=data:99999999999999999999": "must be like data:-1,model:2",
    "--profile": "--profile=true needs --log_dir=FOLDER",
    "--log_dir=gs://bucket/log": "--log_dir=gs://bucket/log must be a local folder",
    "--num_processes=2": "give all three, or none where the cluster is recognised",
    "--output=nothing://bucket": "nothing://bucket",
    "--shuffle_seed=1": "--shuffle_seed=1 needs --shuffle=true",
    "--prompts=p.txt --template=a-{class}": "--template and --prompts exclude each other; give one",
    "--plan --verify": "--plan and --verify are different tasks",
    "--regenerate=-1": "--regenerate=-1 must be a whole number in 0..2147483647",
    "--model=": '--model="" is empty',
    "--output=": "--output= is empty; give a value, or leave it out",
    "--classes=": "--classes= is empty; give a value, or leave it out",
    "--prompts=": "--prompts= is empty; give a value, or leave it out",
    "--log_dir=": "--log_dir= is empty; give a value, or leave it out",
    "--scheduler_options=beta_end=1e999": "beta_end must be finite",
    "--scheduler_options=beta_end=NaN": "beta_end must be finite",
    "--no_such_flag": "unknown flag --no_such_flag; --help lists the flags",
    "reprot x": "there is no command 'reprot'; did you mean report?",
    "star dog": "unknown argument 'dog'; use --name=value",
    "star --prompts=p.txt": "--prompt=star and --prompts=p.txt exclude each other; give one",
    "star --subclasses=s.txt": "--subclasses and --prompt exclude each other; give one",
    "--num_step=3": "unknown flag --num_step; did you mean --num_steps?",
    "--num_steps=many": "--num_steps=many must be a whole number",
    "--guidance_scale=x:": "--guidance_scale=x: must be a number",
    "--verify=perhaps": "--verify=perhaps must be true or false",
    "--dtype=BF16": "--dtype=BF16 is not one of float32, bfloat16, float16; did you mean bfloat16?",
    "--dtype=fp16": "did you mean float16?",
    "--scheduler=DDIM": "did you mean ddim?",
    "--mask_method=seedif": "did you mean seediff?",
    "--format=VOC": "and at least one; did you mean voc?",
    "--output=$NO_SUCH_VARIABLE/x": "the environment variable NO_SUCH_VARIABLE is not set",
}


def test_bad_flags_and_contradictions_are_one_line_without_any_large_library():
    code = f"""
import contextlib, io, json, sys
from seediff_jax.main import main
told = {{}}
for line in {list(REFUSED)!r}:
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        status = main(["seediff", *line.split()])
    told[line] = [status, err.getvalue()]
loaded = sorted({{"jax", "flax", "numpy", "orbax", "transformers"}} & set(sys.modules))
print(json.dumps([told, loaded]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, loaded = json.loads(done.stdout)
    assert loaded == []
    for line, message in REFUSED.items():
        status, error = told[line]
        assert status == 2 and error.count("\n") == 1, error
        assert error.startswith("seediff: ") and message in error, error


def parsed(*arguments):
    values = cli.define_flags({**GROUPS, "Errors": cli.Diagnostics})
    values(["seediff", *arguments])
    return read_command_line(values)


def test_settings_that_are_not_given_are_those_of_python():
    line = parsed()
    assert line.sampling == SamplingConfig() and line.run.output == "outputs/stickers"
    assert (line.run.batch_size, line.run.mesh, line.source.loras) == (4, (-1, 1), ())
    assert parsed("--batch_size=auto").run.batch_size is None


def test_home_and_variables_are_replaced_in_every_flag_that_takes_a_path(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    line = parsed(
        *("--output=~/out", "--log_dir=$DATA/log", "--model=~/sd", "--tokenizer=~/clip"),
        *("--capture=$DATA/layers.json", "--lora=~/a.safetensors:0.5", "--prompts=~/p.txt"),
        *("--classes=~/classes.txt", "--compilation_cache=~/xla"),
    )
    run, source, prompts = line.run, line.source, line.prompts
    assert (run.output, run.log_dir) == ("/home/me/out", "/data/log")
    assert run.compilation_cache == "/home/me/xla"
    assert (source.model, source.tokenizer) == ("/home/me/sd", "/home/me/clip")
    assert source.capture == "/data/layers.json"
    assert source.loras == (("/home/me/a.safetensors", 0.5),)
    assert (prompts.prompts, prompts.classes) == ("/home/me/p.txt", ("/home/me/classes.txt",))
    line = parsed("--template=~/t.txt", "--subclasses=$DATA/s.txt", "--classes=cat,$5 bill")
    assert line.prompts.templates == ("/home/me/t.txt",)
    assert line.prompts.subclasses == "/data/s.txt"
    assert line.prompts.classes == ("cat", "$5 bill")


def seediff(*arguments, **options):
    command = [sys.executable, "-m", "seediff_jax.main", *arguments]
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_an_argument_that_is_not_utf_8_is_refused_in_one_line():
    done = seediff(b"--classes=caf\xe9")
    assert done.returncode == 2
    assert done.stderr == b"seediff: --classes=caf\\udce9 is not UTF-8; every argument must be\n"


@pytest.mark.parametrize("descriptor", [1, 2])
def test_a_closed_stream_changes_no_status(descriptor):
    shell = ["bash", "-c", f'exec "$0" -m seediff_jax.main "$@" {descriptor}>&-', sys.executable]
    for argument, status in (("--help", 0), ("--num_steps=0", 2)):
        assert subprocess.run([*shell, argument], capture_output=True).returncode == status


def test_a_stream_that_takes_no_more_changes_no_status():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "seediff_jax.main"]
        for arguments, status in ((["--help"], 0), (["--num_steps=0"], 2)):
            done = subprocess.run([*command, *arguments], stdout=full, stderr=full, check=False)
            assert done.returncode == status


def test_a_terminal_that_cannot_encode_a_name_changes_no_status():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = seediff("--output=nothing://b\u00fccher", env=environment)
    assert done.returncode == 2 and b"nothing://b\\xfccher" in done.stderr


@pytest.mark.parametrize("program", ["main", "convert"])
def test_a_platform_that_is_not_there_is_one_line_with_what_there_is(tmp_path, program):
    command = [sys.executable, "-m", f"seediff_jax.{program}", f"--output={tmp_path}/out"]
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1, done.stderr
    assert b": JAX_PLATFORMS=cuda asks for devices" in done.stderr
    assert b"without it there is" in done.stderr and b"cpu" in done.stderr


def installed_script():
    """What pip writes for the program's entry in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["scripts"]["seediff"].split(":")
    return f"import sys\nfrom {module} import {name}\nsys.exit({name}())"


STARTS = {
    "script": ["-c", installed_script()],
    "package": ["-m", "seediff_jax"],
    "module": ["-m", "seediff_jax.main"],
}


@pytest.mark.parametrize("library", ["absl", "jax"])  # imported by the program, and by its work
@pytest.mark.parametrize(
    ("number", "status", "start"),
    [
        (signal.SIGTERM, STOPPED, "script"),
        (signal.SIGHUP, STOPPED, "package"),
        (signal.SIGINT, INTERRUPTED, "module"),
        (signal.SIGINT, INTERRUPTED, "script"),
    ],
)
def test_a_signal_while_libraries_are_imported_ends_the_program_in_one_line(
    tmp_path, number, status, start, library
):
    # A library that swallows whatever is raised while it is imported, as some do.
    slow = "import os, time\nos.write(1, b'importing\\n')\n"
    slow += "while True:\n  try:\n    time.sleep(60)\n  except BaseException:\n    pass\n"
    (tmp_path / f"{library}.py").write_text(slow)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, *STARTS[start], f"--output={tmp_path}/out"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=50)
    assert process.returncode == status
    assert b"Traceback" not in errors and errors.strip().count(b"\n") == 0
    assert b"again" in errors and not (tmp_path / "out").exists()


def run_work(work):
    return cli.run_command("seediff", "doc", GROUPS, ["seediff"], work)


def raising(error):
    def work(values):
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("threshold=2 is too large"), "--threshold=2 is too large"),
        (UserError("a\x1b[31mb\nc"), r"a\x1b[31mb\nc"),
        (FileNotFoundError(2, "No such file", "/a/b"), "/a/b: No such file"),
        (MemoryError(), "the machine's memory is too small; ask for fewer"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GiB"),
            "the device's memory is too small; try a smaller --batch_size or bfloat16",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, line):
    assert run_work(raising(error)) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"seediff: {line}") and told.count("\n") == 1


def test_a_long_message_is_cut(capsys):
    assert run_work(raising(UserError("x" * 10**6))) == 2
    assert len(capsys.readouterr().err) < 3000


@pytest.mark.parametrize("kind", [TypeError, KeyError, RuntimeError, ValueError])
def test_a_fault_of_the_program_keeps_its_traceback(kind):
    with pytest.raises(kind):
        run_work(raising(kind("a fault")))


@pytest.fixture
def jax_config(monkeypatch):
    """The settings of JAX that are changed, which are not."""
    changed = {}
    monkeypatch.setattr(jax.config, "update", changed.__setitem__)
    return changed


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("gs://bucket/xla", "gs://bucket/xla"),
        ("", None),
    ],
)
def test_the_compilation_cache_is_where_the_flag_says(jax_config, tmp_path, flag, expected):
    cli.use_compilation_cache(flag)
    assert jax_config["jax_compilation_cache_dir"] == expected
    cli.use_compilation_cache(f"{tmp_path}/a/b")
    assert jax_config["jax_compilation_cache_dir"] == f"{tmp_path}/a/b"
    assert (tmp_path / "a" / "b").is_dir()


@pytest.fixture
def cache_dir():
    """Changes the setting of JAX, as JAX_COMPILATION_CACHE_DIR does, and changes it back."""
    before = jax.config.jax_compilation_cache_dir
    yield lambda folder: jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_users_own_compilation_cache_is_kept(cache_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cache_dir("/mine")
    cli.use_compilation_cache(None)
    assert jax.config.jax_compilation_cache_dir == "/mine"
    cache_dir(None)
    cli.use_compilation_cache(None)
    assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/.cache/seediff_jax/xla"


def test_a_cache_that_cannot_be_made_costs_only_time(jax_config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cli.use_compilation_cache(f"{tmp_path}/file/cache")
    assert jax_config == {}
    assert "no compilation cache" in capsys.readouterr().err


def test_the_other_program_has_the_same_command_line(capsys):
    from seediff_jax import convert

    assert convert.main(["convert", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}" in text for name in convert.define_flags())
    assert convert.main(["convert"]) == 2
    assert "--output= is missing; give the folder to write" in capsys.readouterr().err
