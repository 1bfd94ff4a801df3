"""docs/large_runs.md: its scripts end and start again as it says, with stand-ins for programs."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from seediff_jax.driver.cli import SOME_FAILED, USER_ERROR
from seediff_jax.driver.signals import INTERRUPTED, STOPPED
from seediff_jax.driver.verify import DIFFERENT

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/large_runs.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


(BATCH_SCRIPT,) = (block for block in blocks("bash") if "#SBATCH" in block)
(JOBSET,) = map(yaml.safe_load, blocks("yaml"))
PODS = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
(CONTAINER,) = PODS["template"]["spec"]["containers"]
KILLED = 137


@pytest.fixture
def start(tmp_path):
    """Starts a script whose run, a stand-in, ends with a status, after SIGTERM where it waits."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def program(name, text):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def start_script(words, status, *, waits=False, **variables):
        run = f"trap 'sleep 0.2; exit {status}' TERM; touch {tmp_path}/begun\n"
        run += "while true; do sleep 0.05; done\n" if waits else ""
        run += f"exit {status}"
        program("seediff", run)
        program("srun", run)
        program("scontrol", f'echo "$@" > {tmp_path}/requeued')
        variables |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.Popen(words, env=os.environ | variables, cwd=tmp_path)

    return start_script


@pytest.mark.parametrize("script", [*blocks("bash"), CONTAINER["args"][0]])
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_table_of_exit_statuses_is_that_of_the_program():
    rows = {int(status) for status in re.findall(r"^\| (\d+) \| ", TEXT, re.MULTILINE)}
    assert rows == {0, USER_ERROR, SOME_FAILED, DIFFERENT, STOPPED, INTERRUPTED}


@pytest.mark.parametrize(
    ("status", "restarts", "is_requeued"),
    [
        (0, 0, False),
        (SOME_FAILED, 0, False),
        (2, 0, False),  # an error, which would come again
        (STOPPED, 0, True),
        (KILLED, 0, True),  # a host that died
        (STOPPED, 100, False),
    ],
)
def test_a_slurm_job_is_queued_again_until_the_dataset_is_complete(
    start, tmp_path, status, restarts, is_requeued
):
    variables = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": str(restarts)}
    assert start(["bash", "-c", BATCH_SCRIPT], status, **variables).wait() == status
    assert (tmp_path / "requeued").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"


@pytest.mark.parametrize("status", [0, SOME_FAILED, 2, STOPPED])
def test_a_pod_ends_with_the_status_of_the_run(start, status):
    assert start([*CONTAINER["command"], *CONTAINER["args"]], status).wait() == status


def test_a_pod_passes_sigterm_on_and_waits_for_the_end_of_the_run(start, tmp_path):
    pod = start([*CONTAINER["command"], *CONTAINER["args"]], STOPPED, waits=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait() == STOPPED


def test_a_failed_pod_starts_all_hosts_again_unless_the_dataset_is_complete():
    spec, policy = PODS["template"]["spec"], JOBSET["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert (PODS["backoffLimit"], spec["restartPolicy"]) == (0, "Never")
    (complete,) = PODS["podFailurePolicy"]["rules"]
    assert complete["onExitCodes"] == {"operator": "In", "values": [SOME_FAILED]}
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]


def test_every_host_has_the_volume_of_the_model():
    spec = PODS["template"]["spec"]
    (model,) = re.findall(r"--model=(\S+)", CONTAINER["args"][0])
    assert any(model.startswith(f"{place['mountPath']}/") for place in CONTAINER["volumeMounts"])
    mounted = {place["name"] for place in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
