"""The GPU benchmark: what its table says of given figures, and a run of it on this CPU."""

import math
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import gpu


@pytest.fixture
def rows(monkeypatch):
    """Rows of the table for batches of 1: a call of ours takes 0.1 s, recorded 0.11 s."""

    def figures(function, *, config, dtype, batch, **options):
        if options.get("attention") == "cudnn":
            return {"refused": "attention=cudnn cannot be used"}
        is_recorded = options.get("is_recorded") or options.get("keep")
        made = {"seconds": 0.11 if is_recorded else 0.1, "bytes": 2**30, "peak_memory": 2**31}
        return made | ({"device": "NVIDIA H100 80GB HBM3"} if function is gpu.measure_ours else {})

    monkeypatch.setattr(gpu, "in_own_process", figures)

    def make(end=math.inf):
        return {row[1]: row for row in gpu.make_rows("sd1", "bfloat16", [1], end)}

    return make


def test_the_table_follows_from_seconds_and_memory(rows):
    made = rows()
    assert {len(row) for row in made.values()} == {len(gpu.HEADER)}
    # 1 / (51 * 0.11 s), 2 * 803.273 GFLOP / 0.11 s of 989 TFLOP/s, and 0.11 / 0.1.
    assert made["ours, auto, recorded"][2:6] == ["110.0", "0.178", "1.5 %", "+10.0 %"]
    assert made["ours, auto"][2:] == ["100.0", "0.196", "1.6 %", "", "1.00", "2.00"]
    assert made["torch, all kept"][2:6] == ["110.0", "0.178", "", "+10.0 %"]
    assert made["ours, cudnn"][2] == "attention=cudnn cannot be used"


def test_what_does_not_start_in_time_is_left_out(rows):
    assert {row[2] for row in rows(end=time.monotonic() - 1).values()} == {"not started in time"}


@pytest.mark.slow
def test_the_script_runs_on_a_cpu_with_the_small_config():
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--config=small"]
    command += ["--dtype=float32", "--batches=1"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "ours, auto, recorded" in text and "torch, SDPA" in text
    assert "attention=cudnn cannot be used: it needs an NVIDIA GPU" in text
    # Here the device is the CPU itself.
    assert "noise 0.0e+00 standard deviations, attention maps 0.0e+00" in text
