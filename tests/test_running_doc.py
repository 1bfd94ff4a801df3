"""docs/running.md: its scripts end and start again as it says; stand-ins end as they are told."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/running.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


(BATCH_SCRIPT,) = (block for block in blocks("bash") if "#SBATCH" in block)
(JOBSET,) = map(yaml.safe_load, blocks("yaml"))
PODS = JOBSET["spec"]["replicatedJobs"][0]["template"]["spec"]
(CONTAINER,) = PODS["template"]["spec"]["containers"]
NOT_CLOSED, CLOSED = False, True


@pytest.fixture
def start(tmp_path):
    """Starts a script whose run, a stand-in, ends as told; the dataset is in `out`.

    The run closes the dataset or not, waits for SIGTERM or not, and ends with a status.
    """
    output, programs = tmp_path / "out", tmp_path / "bin"
    (output / "shards").mkdir(parents=True)
    programs.mkdir()

    def program(name, text):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def start_script(words, status, closes, *, waits=False, **variables):
        run = f"trap 'sleep 0.2; exit {status}' TERM; touch {tmp_path}/begun\n"
        run += "while true; do sleep 0.05; done\n" if waits else ""
        run += f"touch {output}/shards/closed.json\n" if closes else ""
        run += f"exit {status}"
        program("seediff", run)
        program("srun", run)
        program("scontrol", f'echo "$@" > {tmp_path}/requeued')
        program("python", f'exec {sys.executable} "$@"')
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        variables |= {"PATH": path, "OUTPUT": str(output), "PYTHONPATH": str(ROOT)}
        words = [word.replace("/shared/voc", str(output)) for word in words]
        return subprocess.Popen(words, env=os.environ | variables, cwd=tmp_path)

    return start_script


@pytest.mark.parametrize("script", [*blocks("bash"), CONTAINER["args"][0]])
def test_scripts_are_bash(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("status", "closes", "restarts", "is_requeued"),
    [
        (0, CLOSED, 0, False),
        (3, CLOSED, 0, False),  # some samples failed
        (0, NOT_CLOSED, 0, True),  # SIGTERM
        (137, NOT_CLOSED, 0, True),  # a host that died
        (2, NOT_CLOSED, 0, False),  # an error, which would come again
        (0, NOT_CLOSED, 100, False),
    ],
)
def test_a_slurm_job_is_queued_again_until_the_dataset_is_complete(
    start, tmp_path, status, closes, restarts, is_requeued
):
    variables = {"SLURM_JOB_ID": "42", "SLURM_RESTART_COUNT": str(restarts)}
    words = ["bash", "-c", BATCH_SCRIPT]
    assert start(words, status, closes, **variables).wait() == status
    assert (tmp_path / "requeued").exists() == is_requeued
    if is_requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"


@pytest.mark.parametrize(
    ("status", "closes", "ends_with"),
    [(0, CLOSED, 0), (3, CLOSED, 0), (2, NOT_CLOSED, 2), (2, CLOSED, 2), (0, NOT_CLOSED, 1)],
)
def test_a_pod_succeeds_only_where_the_dataset_is_complete(start, status, closes, ends_with):
    words = [*CONTAINER["command"], *CONTAINER["args"]]
    assert start(words, status, closes).wait() == ends_with


def test_a_pod_passes_sigterm_on_and_waits_for_the_end_of_the_run(start, tmp_path):
    words = [*CONTAINER["command"], *CONTAINER["args"]]
    pod = start(words, 7, NOT_CLOSED, waits=True)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    time.sleep(0.1)  # until the shell waits
    pod.send_signal(signal.SIGTERM)
    assert pod.wait() == 7


def test_a_failed_pod_starts_all_hosts_again_with_the_volume_of_the_model():
    spec = PODS["template"]["spec"]
    assert JOBSET["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert (PODS["backoffLimit"], spec["restartPolicy"]) == (0, "Never")
    (model,) = re.findall(r"--model=(\S+)", CONTAINER["args"][0])
    assert any(model.startswith(f"{place['mountPath']}/") for place in CONTAINER["volumeMounts"])
    mounted = {place["name"] for place in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
