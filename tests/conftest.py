"""Strict numerics for every test: no silent promotion, eight simulated devices."""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

# Two test processes on two cores: threads of BLAS and OpenMP would only wait for each other.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import jax  # noqa: E402, after the variables that NumPy reads
import pytest  # noqa: E402

from seediff_jax.driver.arithmetic import avoid_ynnpack  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)

# Fusions for YNNPACK take a sixth of the time of small tests, and save nothing at this level.
_QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_cpu_experimental_ynn_fusion_type="
)


def pytest_configure(config: pytest.Config) -> None:
    """Lets the programs that tests start share what they compile.

    One cache per test run: the run starts with none and leaves none. The test processes themselves
    do not read it: XLA has crashed on what a CPU program was stored as, in a process with hundreds
    of other programs.
    """
    variable = "JAX_COMPILATION_CACHE_DIR"
    if variable not in os.environ:  # not the user's own, nor that of the process that started this
        folder = tempfile.mkdtemp(prefix="seediff_jax_compiled_")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        os.environ[variable] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    jax.config.update("jax_compilation_cache_dir", None)
    # Compiling takes most of the time of small tests, and half of it at this level. Slow tests run
    # full sizes, as users' programs do, at the usual one.
    if "not slow" in config.option.markexpr:
        os.environ.setdefault("XLA_FLAGS", _QUICKLY_COMPILED)
    # As the command line does in the programs that tests start, whose results are compared with
    # those of the test process bit by bit.
    avoid_ynnpack()
    # A test run in the background, or under nohup, ignores these signals, and so would the programs
    # that it starts and sends them to.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    """A folder that does not exist yet: on a disk, and in a bucket."""
    from seediff_jax.files.folder import open_folder

    if request.param == "disk":
        yield open_folder(tmp_path / "made")
        return
    made = open_folder(f"memory://{tmp_path.name}/made")
    yield made
    made.filesystem.store.clear()


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    """Drops compiled programs before the process has as many memory mappings as Linux allows.

    Each program of XLA on a CPU takes some of the 65,530; beyond them the compiler crashes.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()
