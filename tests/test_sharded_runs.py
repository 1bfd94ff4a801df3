"""Runs on several devices and hosts: the same folder, whatever stops them on the way."""

import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from crashes import tree
from driver_processes import THREADS, free_port, serving, wait_until
from fsspec.implementations.memory import MemoryFileSystem
from small_runs import command, error_line, write_inputs

from seediff_jax import make_dataset
from seediff_jax.dataset import Dataset
from seediff_jax.main import SOME_FAILED, main
from seediff_jax.pair_maker import PairMaker
from seediff_jax.run_lock import hold_lock
from seediff_jax.shard_layout import ShardLayout
from seediff_jax.storage import open_folder

IMAGES = 24
SHARD_SIZE = 5


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def server(inputs, tmp_path_factory):
    with serving(inputs, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(inputs):
    """The command line of a run into a folder, with more flags."""
    sizes = f"--num_images={IMAGES} --batch_size=1 --shard_size={SHARD_SIZE}"
    return lambda folder, *flags: command(inputs, folder, *sizes.split(), *flags)


@pytest.fixture(scope="module")
def reference(run, tmp_path_factory):
    """Every file of a run without incident, on the eight devices of this process."""
    folder = tmp_path_factory.mktemp("reference") / "out"
    assert main(run(folder)) == 0
    return files(folder)


def files(folder):
    return {name: content for name, content in tree(open_folder(folder)).items() if content}


def samples_of(folder):
    """Indices of the samples that are there."""
    layout = ShardLayout(IMAGES, SHARD_SIZE, 1)
    return set(Dataset(open_folder(folder), layout, [], folder).scan().nonzero()[0].tolist())


def written(log_dir):
    """Samples that all hosts together wrote, by their logs."""
    logs = [path.read_text().splitlines() for path in log_dir.glob("*.jsonl")]
    return sum(json.loads(lines[-1])["written"] for lines in logs)


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
    assert first.wait() == 0
    told = re.search(r"stopped: (\d+) of 24 images are in .*; the same command goes on", first.out)
    assert int(told[1]) == len(samples_of(folder))
    assert 13 <= len(samples_of(folder)) < IMAGES  # what had begun was written
    assert main(argv) == 0
    assert files(folder) == reference


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "stopped before the first round; the same command goes on with {folder}\n"),
        (["--plan"], "stopped before the plan was known; the same command can be given again\n"),
    ],
)
def test_sigterm_while_the_model_loads_ends_at_once(server, run, tmp_path, flags, told):
    folder = tmp_path / "out"
    process = server.start(run(folder, *flags), strike=["SIGTERM", 0])
    assert process.wait() == 0
    assert (process.out, process.err) == (told.format(folder=folder), "")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("killed", "naming", "finish"),
    [
        (1, r"tasks are unhealthy.*:\n1\n", "eight devices"),
        pytest.param(
            0, r"the leader task|leader \(.*task 0\)", "two hosts", marks=pytest.mark.slow
        ),
    ],
)
def test_a_host_that_is_killed_ends_the_other_which_names_it_and_nothing_is_made_twice(
    server, run, reference, cache, tmp_path, killed, naming, finish
):
    folder, logs = tmp_path / "out", tmp_path / "logs"
    argv = run(folder, f"--compilation_cache={cache}")
    strikes = [{"strike": ["SIGKILL", 3]} if host == killed else {} for host in (0, 1)]
    both = server.hosts(argv, *strikes, devices=4, heartbeat=5)
    assert both[killed].wait() == -signal.SIGKILL
    other = both[1 - killed]
    assert other.wait(60) != 0
    assert re.search(naming, other.err)
    there = samples_of(folder)
    assert len(there) <= IMAGES - 4  # its third round was never begun
    argv.append(f"--log_dir={logs}")
    if finish == "two hosts":
        assert [host.wait() for host in server.hosts(argv, {}, {}, devices=4)] == [0, 0]
    else:
        assert main(run(folder, f"--log_dir={logs}")) == 0
    assert written(logs) == IMAGES - len(there)
    assert files(folder) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killed", "naming"), [(2, r"tasks are unhealthy.*:\n2\n"), (0, "the leader task|task 0")]
)
def test_a_host_that_dies_ends_all_others_with_its_name_within_a_minute(
    server, run, cache, tmp_path, killed, naming
):
    argv = run(tmp_path / "out", f"--compilation_cache={cache}")
    strikes = [{"strike": ["SIGKILL", 3]} if host == killed else {} for host in range(3)]
    hosts = server.hosts(argv, *strikes, devices=1)
    assert hosts[killed].wait() == -signal.SIGKILL
    died = time.monotonic()
    for host in hosts[:killed] + hosts[killed + 1 :]:
        assert host.wait(60) != 0
        print(f"of host {killed}'s end another heard after {time.monotonic() - died:.1f} s")
        assert re.search(naming, host.err)


def mount(folder, size):
    """Mounts a small disk, or gives the one there another size; returns whether that is allowed."""
    options = f"{'remount,' if os.path.ismount(folder) else ''}size={size}"
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@pytest.fixture
def limited(tmp_path):
    """A folder on a disk that is too small, and a function that makes it larger.

    Where nothing may be mounted, the size of a file is limited instead.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    if mount(folder, "200k"):
        yield folder / "out", lambda: mount(folder, "9m"), "No space left on device"
        subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    more = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, before[1]))
    yield folder / "out", more, "File too large"
    more()


def test_a_full_disk_keeps_what_was_written_until_there_is_room(limited, run, reference, capsys):
    folder, make_room, reason = limited
    there = set()
    for _ in range(2):
        assert main(run(folder)) == 2
        assert error_line(capsys).endswith(f": {reason}")
        assert there <= samples_of(folder) and samples_of(folder)
        there = samples_of(folder)
    make_room()
    assert main(run(folder)) == 0
    assert f"{len(there)} of them there already" in capsys.readouterr().out
    assert files(folder) == reference


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The URL of a folder that is on no disk."""
    quick = functools.partial(hold_lock, beat_seconds=0.02)
    monkeypatch.setattr(make_dataset, "hold_lock", quick)
    yield f"memory://{tmp_path.name}/out"
    open_folder("memory://").filesystem.store.clear()


def test_a_bucket_gets_the_files_of_a_disk(bucket, run, reference):
    assert main(run(bucket)) == 0
    assert files(bucket) == reference


@pytest.mark.parametrize("calls", [1, 20, 60, 100])
def test_a_run_to_a_bucket_that_fails_goes_on(bucket, run, reference, monkeypatch, capsys, calls):
    pipe_file, made = MemoryFileSystem.pipe_file, []

    def unreliable(*arguments, **options):
        made.append(arguments)
        if len(made) > calls:
            raise RuntimeError("503 from the bucket")
        return pipe_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", unreliable)
        assert main(run(bucket)) == 2
    assert error_line(capsys).endswith("RuntimeError: 503 from the bucket")
    assert main(run(bucket)) == 0
    assert files(bucket) == reference


def test_a_complete_run_with_a_failed_sample_says_so_every_time(run, tmp_path, monkeypatch, capsys):
    fetch = PairMaker.fetch

    def poisoned(maker, made):
        blocks = fetch(maker, made)
        for block in blocks:
            block.rows.is_finite["images"] = block.inputs.indices != 5
        return blocks

    monkeypatch.setattr(PairMaker, "fetch", poisoned)
    argv = [word.replace("=24", "=8") for word in run(tmp_path / "out")]
    assert main(argv) == SOME_FAILED
    assert "7 images with masks" in capsys.readouterr().out
    assert main(argv) == SOME_FAILED
    assert "already, but for 1 that failed; nothing to do" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("struck", "number"), [(0, 2), (1, 2), (1, 0)])
def test_sigterm_to_one_of_two_hosts_stops_both_and_the_same_command_goes_on(
    server, run, reference, cache, tmp_path, struck, number
):
    folder = tmp_path / "out"
    argv = run(folder, f"--compilation_cache={cache}")
    # Hosts hear of it within seconds; the rounds are so slow that they do not end before.
    strikes = [{"strike": ["SIGTERM", number]} if host == struck else {} for host in (0, 1)]
    both = server.hosts(argv, *strikes, devices=1, pause=1)
    assert [host.wait() for host in both] == [0, 0]
    told = re.search(r"stopped: (\d+) of 24 images .*; the same command goes on", both[0].out)
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
