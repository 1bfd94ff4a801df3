"""Hosts of a run that differ, die or hang: all end, in one line that names the host."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from seediff_jax.driver.signals import STOPPED
from seediff_jax.main import main
from tests.helpers.driver_processes import free_port, wait_until
from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import random_params, small_config
from tests.helpers.sharded_runs import IMAGES, files, lines_of, samples_of, written


def test_hosts_with_other_commands_end_in_one_line_each_before_the_model_is_loaded(
    server, run, tmp_path
):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    both = [
        server.start(
            run(tmp_path / "out", address, "--num_processes=2", f"--process_id={host}", *flags)
        )
        for host, flags in enumerate([[], ["--seed=7", "--shard_size=4"]])
    ]
    assert [host.wait(60) for host in both] == [2, 2]
    line = (
        "seediff: seed is 0 on host 0, 7 on host 1; shard_size is 5 on host 0, 4 on host 1; give "
        "all hosts the same command, files and software"
    )
    assert [lines_of(host) for host in both] == [[line], [line]]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--num_processes=2 --process_id=0", "--num_processes=2 --process_id=0"], "process_id=0"),
        (
            ["--num_processes=2 --process_id=1", "--num_processes=2 --process_id=1"],
            "host 0 was not found at",
        ),
        (["--num_processes=2 --process_id=0", "--num_processes=3 --process_id=1"], "processes=3"),
        (["--num_processes=2 --process_id=0"], "host 1 did not come to"),
    ],
)
def test_hosts_that_do_not_come_together_end_in_one_line_each(server, run, tmp_path, flags, told):
    address = f"--coordinator=127.0.0.1:{free_port()}"
    more = [address, "--start_timeout=2"]
    hosts = [server.start(run(tmp_path / "out", *more, *each.split())) for each in flags]
    for host in hosts:
        assert host.wait(20) == 2
        (line,) = host.err.splitlines()
        assert line.startswith("seediff: ") and told in line


def lines_of_two(server, run, folders):
    """Starts two hosts that are refused, each in its folder; the line of each."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    both = [
        server.start(
            run("out", address, "--num_processes=2", f"--process_id={host}", "--model=model"),
            folder=str(folder),
        )
        for host, folder in enumerate(folders)
    ]
    assert [host.wait(100) for host in both] == [2, 2]
    lines = [lines_of(host) for host in both]
    return [line for (line,) in lines]


@pytest.mark.slow
def test_hosts_with_other_weights_or_folders_write_nothing(server, run, inputs, tmp_path):
    other = tmp_path / "inputs"
    config = small_config(other / "tokenizer")
    write_folder(other / "model", config, random_params(config, seed=5))
    links = [tmp_path / "a", tmp_path / "b"]
    for link, target in zip(links, (inputs, other), strict=True):
        link.mkdir()
        os.symlink(target / "model", link / "model")
    for line in lines_of_two(server, run, links):
        assert line.startswith("seediff: weights_hash is ") and "config_hash" not in line
    assert not (links[0] / "out").exists() and not (links[1] / "out").exists()
    (links[1] / "model").unlink()
    os.symlink(inputs / "model", links[1] / "model")
    for line in lines_of_two(server, run, links):
        assert line.startswith("seediff: host 1: out is not the folder that host 0 writes")
    assert not (links[1] / "out").exists()


@pytest.mark.parametrize(
    ("killed", "finish"),
    [(1, "eight devices"), pytest.param(0, "two hosts", marks=pytest.mark.slow)],
)
def test_a_host_that_is_killed_ends_the_other_which_names_it_and_nothing_is_made_twice(
    server, run, reference, cache, tmp_path, killed, finish
):
    folder, logs = tmp_path / "out", tmp_path / "logs"
    argv = run(folder, f"--compilation_cache={cache}")
    strikes = [{"strike": ["SIGKILL", 3]} if host == killed else {} for host in (0, 1)]
    both = server.hosts(argv, *strikes, devices=4)
    assert both[killed].wait() == -signal.SIGKILL
    other = both[1 - killed]
    assert other.wait(60) != 0
    assert_names(other, killed)
    there = samples_of(folder)
    assert len(there) <= IMAGES - 4  # its third round was never begun
    argv.append(f"--log_dir={logs}")
    if finish == "two hosts":
        assert [host.wait() for host in server.hosts(argv, {}, {}, devices=4)] == [0, 0]
    else:
        assert main(run(folder, f"--log_dir={logs}")) == 0
    assert written(logs) == IMAGES - len(there)
    assert files(folder) == reference


def assert_names(host, lost, what="ended without a word; see its output"):
    """A host says last which other one was lost."""
    (line,) = lines_of(host)
    assert re.match(rf"seediff: host {lost} .*{what}", line)
    assert host.err.splitlines()[-1] == line  # JAX may have been quicker where that is host 0
    assert host.status() == 2


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "when"), [(2, 3), (0, 3), (1, 0)])
def test_a_host_that_dies_ends_all_others_with_its_name_within_a_minute(
    server, run, tmp_path, killed, when
):
    argv = run(tmp_path / "out")
    strikes = [{"strike": ["SIGKILL", when]} if host == killed else {} for host in range(3)]
    hosts = server.hosts(argv, *strikes, devices=1, simulated=when > 0)
    assert hosts[killed].wait() == -signal.SIGKILL
    died = time.monotonic()
    for host in hosts[:killed] + hosts[killed + 1 :]:
        assert host.wait(60) != 0
        print(f"of host {killed}'s end another heard after {time.monotonic() - died:.1f} s")
        assert_names(host, killed)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_host_that_hangs_ends_all_others_within_a_minute_and_itself_when_it_wakes(
    server, run, tmp_path, stopped
):
    argv = run(tmp_path / "out")
    strikes = [{"strike": ["SIGSTOP", 3]} if host == stopped else {} for host in range(3)]
    hosts = server.hosts(argv, *strikes, devices=1, simulated=True)
    path = Path(f"/proc/{hosts[stopped].pid}/stat")
    wait_until(lambda: path.read_text().rpartition(")")[2].split()[0] == "T")
    silent = time.monotonic()
    for host in hosts[:stopped] + hosts[stopped + 1 :]:
        assert host.wait(60) != 0
        print(f"another ended {time.monotonic() - silent:.1f} s after host {stopped} hung")
        assert_names(host, stopped, "said nothing for 40 s")
    hosts[stopped].kill(signal.SIGCONT)
    assert hosts[stopped].wait(10) == 2
    assert "said nothing for 40 s" in hosts[stopped].err.splitlines()[-1]


@pytest.mark.slow
def test_an_error_of_one_host_ends_the_others_at_once(server, run, cache, tmp_path):
    argv = run(tmp_path / "out", f"--compilation_cache={cache}")
    both = server.hosts(argv, {}, {"fail": 3}, devices=1, pause=0.5)
    assert both[1].wait() == 1
    failed = time.monotonic()
    assert both[0].wait(60) == 1
    assert time.monotonic() - failed < 10
    assert [lines_of(host) for host in both] == [["seediff: host 1: RuntimeError: a fault"]] * 2
    assert "Traceback" in both[1].err and "Traceback" not in both[0].err


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_sigterm_to_one_of_two_hosts_that_load_or_compile_ends_both_at_once(
    server, run, tmp_path, number
):
    folder = tmp_path / "out"
    both = server.hosts(run(folder), {}, {"strike": ["SIGTERM", number]}, devices=1)
    assert [host.wait() for host in both] == [STOPPED, STOPPED]
    line = "seediff: stopped before the first round (host 1 received SIGTERM); run the same command"
    assert [lines_of(host) for host in both] == [[f"{line} again"]] * 2
    assert not folder.exists() or not samples_of(folder)
