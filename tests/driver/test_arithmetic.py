"""Settings of JAX and its compilers that change samples are recorded and compared."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from seediff_jax.driver import arithmetic
from seediff_jax.driver.arithmetic import (
    avoid_ynnpack,
    precision_settings,
    rounding_settings,
)
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


FLAG = "--xla_cpu_experimental_ynn_fusion_type"
NO_YNNPACK = f"{FLAG}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"


@pytest.fixture
def x86(monkeypatch):
    """A machine with an x86 CPU and nothing else."""
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(arithmetic.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, NO_YNNPACK),
        ("--xla_dump_to=x", f"--xla_dump_to=x {NO_YNNPACK}"),
        (NO_YNNPACK, NO_YNNPACK),
        # The user's own choice stays, and so does a file of flags.
        (f"{FLAG}=LIBRARY_FUSION_TYPE_DOT",) * 2,
        (f"{FLAG}=",) * 2,
        ("flags.txt",) * 2,
    ],
)
def test_cpus_convolve_without_ynnpack_unless_told_otherwise(x86, monkeypatch, before, after):
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    avoid_ynnpack()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("machine", "aarch64"),
        ("JAX_PLATFORMS", "tpu"),
        ("JAX_PLATFORMS", "cuda,cpu"),
        ("spec", "libtpu"),
        ("spec", "jax_plugins"),
        ("version", (0, 13, 0)),
    ],
)
def test_other_machines_keep_the_flags_of_xla(x86, monkeypatch, what, value):
    if what == "machine":
        monkeypatch.setattr(arithmetic.platform, "machine", lambda: value)
    elif what == "spec":
        monkeypatch.setattr(
            arithmetic.importlib.util, "find_spec", lambda name: name if name == value else None
        )
    elif what == "version":
        monkeypatch.setattr(arithmetic.jax, "__version_info__", value)
    else:
        monkeypatch.setenv(what, value)
    avoid_ynnpack()
    assert "XLA_FLAGS" not in os.environ


def test_the_flag_that_the_driver_sets_is_recorded_as_rounding(x86):
    avoid_ynnpack()
    assert precision_settings() == {}
    assert rounding_settings() == {FLAG: "-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"}


def test_jax_takes_the_flag_that_the_driver_sets(tmp_path):
    program = """if True:
        import sys, jax, numpy as np
        from seediff_jax.driver.arithmetic import avoid_ynnpack
        avoid_ynnpack()
        image, kernel = np.load(sys.argv[1]).values()
        convolve = jax.jit(lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
        print("ynn" in convolve.lower(image, kernel).compile().as_text())
        np.save(sys.argv[2], convolve(image, kernel))
    """
    random = np.random.default_rng(0)
    image = random.standard_normal((1, 8, 8, 32), np.float32)
    kernel = random.standard_normal((3, 3, 32, 64), np.float32)
    given, result = tmp_path / "given.npz", tmp_path / "result.npy"
    np.savez(given, image=image, kernel=kernel)
    run = [sys.executable, "-c", program, given, result]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.check_output(run, text=True, env=environment).strip() == "False"
    padded = np.pad(image[0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    expected = np.einsum("hwcij,ijcd->hwd", windows, kernel)
    # Sums of 288 products of standard deviation 17: float32 rounds each by 1e-6 at most.
    np.testing.assert_allclose(np.load(result)[0], expected, atol=3e-5)


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
