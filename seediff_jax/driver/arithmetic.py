"""Settings of JAX and its compilers that change samples, from flags and from the environment.

Noise depends on none of them (`sampling.noise`), but products and sums do. A run records those that
are not the default. All its hosts must have the same ones, and so must a run that resumes it.
"""

import importlib.util
import os
import platform
import re
import shlex
from pathlib import Path

import jax

# JAX settings, with the values that are not recorded. Settings that are not listed raise errors, as
# jax_numpy_dtype_promotion does, or affect random numbers, which noise does not read.
_PRECISION = {
    "jax_enable_x64": (False,),
    "jax_default_matmul_precision": (None,),
    "jax_explicit_x64_dtypes": ("WARN", "ERROR"),
}
_ROUNDING = {
    "jax_disable_jit": (False,),
    "jax_disable_most_optimizations": (False,),
    "jax_optimization_level": ("UNKNOWN",),
    "jax_exec_time_optimization_effort": (0.0,),
}
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "DNNL_DEFAULT_FPMATH_MODE", "ONEDNN_DEFAULT_FPMATH_MODE")
# Matches names of compiler flags that choose a precision; others change rounding at most.
_PRECISION_FLAG = re.compile(r"precision|fast_math|fast_min_max|b?f16|f8|tf32|denormal|fpmath")
_YNNPACK_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
# YNNPACK's convolutions are slow; its reductions and matrix products are not.
_NO_CONVOLUTIONS = f"{_YNNPACK_FLAG}-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
_FIRST_UNTRIED_JAX = (0, 13)  # a flag that XLA does not know would end the process
# Files and simulated devices of a host, and the stack of `hosts.widen_compiler_stack`.
_NO_ARITHMETIC = re.compile(r"dump|device_count|thread")


def avoid_ynnpack() -> None:
    """Keeps XLA from giving convolutions for x86 CPUs to YNNPACK; call it before any use of JAX.

    docs/benchmarks.md shows what that saves. Nothing is changed if XLA_FLAGS name the flag or a
    file, if JAX may use an accelerator, or with a version of JAX that was not tried.
    """
    given = os.environ.get("XLA_FLAGS", "").strip()
    is_file = given and not given.startswith("-")
    if is_file or _YNNPACK_FLAG in given:
        return
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if jax.__version_info__ < _FIRST_UNTRIED_JAX and is_x86 and _uses_cpu():
        os.environ["XLA_FLAGS"] = f"{given} {_NO_CONVOLUTIONS}".strip()


def _uses_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def precision_settings() -> dict[str, str]:
    """Settings that change samples by more than rounding, as texts by name; defaults are left out.

    A flag of a compiler counts if its name has to do with precision.
    """
    found = _jax_settings(_PRECISION)
    found |= {name: os.environ[name] for name in _VARIABLES if os.environ.get(name)}
    return found | {n: value for n, value in _compiler_flags().items() if _PRECISION_FLAG.search(n)}


def rounding_settings() -> dict[str, str]:
    """Likewise the settings that change rounding, such as other flags of the compilers."""
    return _jax_settings(_ROUNDING) | {
        name: value
        for name, value in sorted(_compiler_flags().items())
        if not (_PRECISION_FLAG.search(name) or _NO_ARITHMETIC.search(name))
    }


def _jax_settings(usual: dict[str, tuple[object, ...]]) -> dict[str, str]:
    values = {name: getattr(jax.config, name, usual[name][0]) for name in usual}
    names = {name: getattr(value, "name", value) for name, value in values.items()}  # of enums
    return {name: str(value) for name, value in names.items() if value not in usual[name]}


def _compiler_flags() -> dict[str, str]:
    words = []
    for variable in _FLAGS:
        text = os.environ.get(variable, "").strip()
        if text and not text.startswith("-") and Path(text).is_file():
            text = Path(text).read_text(encoding="utf-8")  # as XLA does
        words += shlex.split(text)
    parts = (word.partition("=") for word in words)
    return {name: value if equals else "true" for name, equals, value in parts}
