"""Settings of JAX and its compilers that change samples are recorded and compared."""

import json

import jax
import pytest

from seediff_jax.driver.arithmetic import precision_settings, rounding_settings
from seediff_jax.main import main
from tests.helpers.small_runs import command, error_line


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    """No variable of the machine that the tests run on; JAX is as it was after a test."""
    for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)
    before = dict(jax.config.values)
    yield
    for name in ("jax_default_matmul_precision", "jax_explicit_x64_dtypes", "jax_disable_jit"):
        jax.config.update(name, before[name])


def test_nothing_is_recorded_of_a_usual_machine():
    assert precision_settings() == {} and rounding_settings() == {}


@pytest.mark.parametrize(
    ("name", "value", "precision", "rounding"),
    [
        ("jax_default_matmul_precision", "highest", "highest", None),
        ("jax_default_matmul_precision", "BF16_BF16_F32", "BF16_BF16_F32", None),
        ("jax_explicit_x64_dtypes", "allow", "ALLOW", None),
        ("jax_explicit_x64_dtypes", "error", None, None),
        ("jax_disable_jit", True, None, "True"),
    ],
)
def test_settings_of_jax_are_recorded_unless_they_change_no_value(name, value, precision, rounding):
    jax.config.update(name, value)
    assert precision_settings() == ({name: precision} if precision else {})
    assert rounding_settings() == ({name: rounding} if rounding else {})


def test_flags_of_compilers_are_split_by_what_they_change(monkeypatch, tmp_path):
    flags = "--xla_allow_excess_precision=false --xla_cpu_enable_fast_math "
    flags += (
        "--xla_dump_to=/tmp/x --xla_force_host_platform_device_count=8 --xla_gpu_autotune_level=0"
    )
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv(
        "LIBTPU_INIT_ARGS", "--fibers_default_thread_stack_size=1048576 --xla_tpu_x=1"
    )
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    precision = {"--xla_allow_excess_precision": "false", "--xla_cpu_enable_fast_math": "true"}
    assert precision_settings() == precision | {"NVIDIA_TF32_OVERRIDE": "0"}
    assert rounding_settings() == {"--xla_gpu_autotune_level": "0", "--xla_tpu_x": "1"}
    (tmp_path / "flags").write_text("--xla_allow_excess_precision=true")  # a file, as XLA reads it
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    assert precision_settings()["--xla_allow_excess_precision"] == "true"


def test_a_run_is_resumed_with_the_precision_that_it_began_with(inputs, tmp_path, capsys):
    folder = tmp_path / "out"
    argv = command(inputs, folder, "--num_images=1")
    jax.config.update("jax_default_matmul_precision", "highest")
    assert main(argv) == 0
    stored = json.loads((folder / "settings.json").read_text())
    assert stored["precision"] == {"jax_default_matmul_precision": "highest"}
    jax.config.update("jax_default_matmul_precision", None)
    capsys.readouterr()
    assert main([*argv, "--num_images=2"]) == 2
    assert 'precision: {"jax_default_matmul_precision": "highest"} there, {} now' in error_line(
        capsys
    )
    jax.config.update("jax_default_matmul_precision", "highest")
    assert main([*argv, "--num_images=2"]) == 0
