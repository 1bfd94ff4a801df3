"""What libtpu is told before it is loaded."""

import os

import pytest

from seediff_jax.driver.hosts import widen_compiler_stack

WIDE = "--fibers_default_thread_stack_size=1048576"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, WIDE),
        ("", WIDE),
        ("--xla_tpu_rwb_fusion=false", f"--xla_tpu_rwb_fusion=false {WIDE}"),
        (WIDE, WIDE),
        # The user's own value stays.
        ("--fibers_default_thread_stack_size=2097152",) * 2,
    ],
)
def test_compiler_threads_get_a_stack_beside_other_arguments(monkeypatch, before, after):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if before is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", before)
    widen_compiler_stack()
    assert os.environ["LIBTPU_INIT_ARGS"] == after
