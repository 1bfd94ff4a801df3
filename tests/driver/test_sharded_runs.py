"""Runs on several devices and hosts: the same folder, whatever stops them on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from seediff_jax.driver.cli import SOME_FAILED
from seediff_jax.driver.signals import STOPPED
from seediff_jax.main import main
from tests.helpers.driver_processes import THREADS, free_port, wait_until
from tests.helpers.sharded_runs import IMAGES, files, samples_of, written


def test_one_device_stopped_by_sigterm_is_completed_by_eight_and_never_joined(
    server, run, reference, cache, tmp_path
):
    folder, gate = tmp_path / "out", tmp_path / "gate"
    argv = run(folder, f"--compilation_cache={cache}")
    first = server.start(argv, devices=1, gate=[str(gate), 13])
    wait_until(lambda: first.status() is not None or len(samples_of(folder)) > 9)
    second = server.start(argv, devices=1)
    assert second.wait() == 2
    assert re.fullmatch(rf"seediff: another run \(.* process {first.pid}\) is .*\n", second.err)
    first.kill(signal.SIGTERM)
    gate.touch()
    assert first.wait() == STOPPED
    told = re.search(r"stopped: (\d+) of 24 images are in .*; run the same command", first.out)
    assert int(told[1]) == len(samples_of(folder))
    assert 13 <= len(samples_of(folder)) < IMAGES  # what had begun was written
    assert main(argv) == 0
    assert files(folder) == reference


@pytest.mark.parametrize(
    ("signal_name", "flags"), [("SIGTERM", []), ("SIGHUP", []), ("SIGTERM", ["--plan"])]
)
def test_a_signal_while_the_model_loads_ends_at_once(server, run, tmp_path, signal_name, flags):
    folder = tmp_path / "out"
    process = server.start(run(folder, *flags), strike=[signal_name, 0])
    assert process.wait() == STOPPED
    said = process.out + process.err
    assert re.search("^(seediff: )?stopped.*; run the same command again", said, re.MULTILINE)
    assert "Traceback" not in process.err
    # Where a library swallows the exception, the run comes as far as to its first round.
    assert not folder.exists() or not samples_of(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("struck", "number"), [(0, 2), (1, 2)])
def test_sigterm_to_one_of_two_hosts_stops_both_and_the_same_command_goes_on(
    server, run, reference, cache, tmp_path, struck, number
):
    folder = tmp_path / "out"
    argv = run(folder, f"--compilation_cache={cache}")
    strikes = [{"strike": ["SIGTERM", number]} if host == struck else {} for host in (0, 1)]
    both = server.hosts(argv, *strikes, devices=1, pause=1)
    assert [host.wait() for host in both] == [STOPPED, STOPPED]
    told = re.search(r"stopped: (\d+) of 24 images .*; run the same command", both[0].out)
    assert int(told[1]) == len(samples_of(folder)) < IMAGES
    both = server.hosts(argv, {}, {}, devices=1)
    assert [host.wait() for host in both] == [0, 0]
    assert files(folder) == reference


@pytest.mark.slow
def test_any_devices_and_hosts_give_the_same_folder(server, run, reference, cache, tmp_path):
    flags = f"--compilation_cache={cache}"
    for name, devices, more in [
        ("one", 1, ()),
        ("two", 2, ()),
        ("pmap", 2, ["--partition=pmap"]),
        ("four", 4, ["--format=files"]),
    ]:
        process = server.start(run(tmp_path / name, flags, *more), devices=devices)
        assert process.wait() == 0, process.err
        assert files(tmp_path / name) == reference, name
    both = server.hosts(run(tmp_path / "hosts", flags), {}, {}, devices=4)
    assert [host.wait() for host in both] == [0, 0]
    assert files(tmp_path / "hosts") == reference


@pytest.mark.slow
def test_hosts_agree_on_a_sample_that_fails(server, run, cache, tmp_path):
    argv = run(tmp_path / "out", f"--compilation_cache={cache}")
    for attempt in ("made", "nothing to do"):
        both = server.hosts(argv, {}, {}, devices=2, poison=17)
        assert [host.wait() for host in both] == [SOME_FAILED, SOME_FAILED], attempt
    failed = (tmp_path / "out/failed.jsonl").read_text().splitlines()
    assert [(row["index"], row["failed"]) for row in map(json.loads, failed)] == [
        (17, "latents are not finite")
    ]
    assert len((tmp_path / "out/manifest.jsonl").read_text().splitlines()) == IMAGES - 1


# JAX takes the coordinator's port from the job's number: these ports, in this order.
LAUNCHER_PORTS = range(65535 - 2**12 + 1, 65536)


def slurm(job, host):
    """What `srun` of a job sets for one of two tasks on this machine."""
    names = {"JOB_ID": job, "NTASKS": 2, "PROCID": host, "LOCALID": host}
    names |= {"STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1}
    return {f"SLURM_{name}": str(value) for name, value in names.items()}


def open_mpi(job, host):
    """What `mpirun` 4.1 of a job sets for one of two processes on this machine."""
    names = {"COMM_WORLD_SIZE": 2, "COMM_WORLD_RANK": host, "COMM_WORLD_LOCAL_RANK": host}
    names["MCA_orte_hnp_uri"] = f"{job * 2**12}.0;tcp://127.0.0.1:34911"
    return {f"OMPI_{name}": str(value) for name, value in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "devices"), [(slurm, 4), (open_mpi, 1)])
def test_hosts_find_one_another_by_the_variables_of_their_launcher(
    server, run, reference, cache, tmp_path, launcher, devices
):
    folder, logs = tmp_path / "out", tmp_path / "logs"
    argv = run(folder, f"--compilation_cache={cache}", f"--log_dir={logs}")
    job = free_port(LAUNCHER_PORTS) - LAUNCHER_PORTS[0]
    variables = [{"environment": launcher(job, host)} for host in (0, 1)]
    both = [server.start(argv, devices=devices, **own) for own in variables]
    assert [host.wait() for host in both] == [0, 0], both[0].err + both[1].err
    assert files(folder) == reference
    assert {path.name for path in logs.glob("*.jsonl")} == {"host-0000.jsonl", "host-0001.jsonl"}
    assert written(logs) == IMAGES  # each by one host alone


@pytest.mark.slow
def test_mpirun_starts_a_run_of_two_hosts(run, reference, cache, tmp_path):
    folder, logs = tmp_path / "out", tmp_path / "logs"
    argv = run(folder, f"--compilation_cache={cache}", f"--log_dir={logs}")[1:]
    assert shutil.which("mpirun"), "Open MPI 4 is needed (Debian: openmpi-bin)"
    start = ["mpirun", "-n", "2", "--oversubscribe", "--allow-run-as-root"]
    variables = {"NPROC": str(THREADS), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = [*start, sys.executable, "-m", "seediff_jax.main", *argv]
    ended = subprocess.run(program, capture_output=True, env=os.environ | variables, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert files(folder) == reference
    assert written(logs) == IMAGES and len(list(logs.glob("*.jsonl"))) == 2
