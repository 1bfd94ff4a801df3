"""This host of a run: how it finds the others, when it waits for them, and when it stops."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from jax._src import xla_bridge
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from seediff_jax.driver import hosts
from seediff_jax.driver.config import RunSettings
from seediff_jax.driver.hosts import HostGroup, joined
from seediff_jax.driver.signals import INTERRUPTED, STOPPED, Stopped
from seediff_jax.errors import UserError


class Channel:
    """Notes what is sent."""

    def __init__(self):
        self.sent = []

    def __getattr__(self, name):
        return lambda *arguments: self.sent.append((name, *arguments))


@pytest.fixture
def two_hosts(monkeypatch):
    """A group of two hosts, and what it waits for and sends."""
    group = HostGroup()
    group._channel = Channel()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", group._channel.sent.append)
    return group, group._channel.sent


def test_hosts_wait_for_one_another_after_the_first_round_and_then_every_eighth(two_hosts):
    group, sent = two_hosts
    waited = []
    for number in [*range(7), *range(11)]:  # samples that failed are made again, from 0
        assert not group.should_stop(number)
        waited.append(len(sent))
    assert waited == [0, *[1] * 8, *[2] * 8, 3]


def test_a_host_begins_no_round_until_the_last_one_is_known(two_hosts):
    group, _ = two_hosts
    assert not group.should_stop(0)
    group.round_started()
    assert group.hold() == 1
    group.stop_after(3)
    assert [group.should_stop(number) for number in (1, 2, 3)] == [False, False, True]


def test_a_round_that_is_being_compiled_has_not_begun(two_hosts):
    group, _ = two_hosts
    group.should_stop(0)
    assert group.hold() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_of_several_is_told_to_all(two_hosts, number):
    group, sent = two_hosts
    assert not group.on_signal(number)
    assert not group.on_signal(signal.SIGINT)
    assert sent[0] == ("ask_to_stop", number.name)
    assert sent[1] == ("end", "interrupted", INTERRUPTED)


def test_one_process_stops_before_the_round_after_a_signal():
    group = HostGroup()
    assert not group.should_stop(0)
    group.round_started()
    assert not group.on_signal(signal.SIGTERM)
    assert group.should_stop(1)


def test_one_process_leaves_at_a_signal_before_its_first_round():
    with pytest.raises(Stopped), joined(RunSettings(), None) as group:
        group.should_stop(0)
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            pass


def explain(error):
    return (2, "in a line") if isinstance(error, UserError) else None


@pytest.mark.parametrize(
    ("error", "told", "seconds"),
    [
        (UserError("another run is there"), ("end", "in a line", 2), []),
        (KeyError("x"), ("end", "KeyError: 'x'", 1), []),
        (
            jax.errors.JaxRuntimeError("UNKNOWN: connection closed by peer\nmore"),
            ("end", "JaxRuntimeError: UNKNOWN: connection closed by peer\nmore", 1),
            [45],
        ),
        (
            ValueError("UNKNOWN: Gloo AllGather failed"),
            ("end", "ValueError: UNKNOWN: Gloo AllGather failed", 1),
            [45],
        ),
    ],
    ids=["own", "fault", "other", "other at once"],
)
def test_an_error_of_one_of_several_is_told_to_all_after_those_of_lost_hosts(
    two_hosts, monkeypatch, capsys, error, told, seconds
):
    group, sent = two_hosts
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    try:
        raise error
    except Exception as raised:
        group.fail(raised, explain)
    assert (sent, slept) == ([told], seconds)
    assert ("Traceback" in capsys.readouterr().err) == (told[2] == 1)


def test_an_error_of_the_only_process_is_raised():
    with pytest.raises(ValueError, match="of the only one"), joined(RunSettings(), explain):
        raise ValueError("of the only one")


def test_facts_are_compared_as_a_whole_and_sent_in_short(two_hosts):
    group, sent = two_hosts
    names = [f"class {number}" for number in range(1000)]
    group.agree({"seed": 7, "class_names": names}, "to load")
    group.agree({"seed": 7, "class_names": [*names[:-1], "other"]}, "to load")
    first, second = (facts for _, facts, _ in sent)
    assert first["seed"] == second["seed"] == "7"
    assert first["class_names"] != second["class_names"]
    assert len(json.dumps(first)) < 200 and first["class_names"].startswith('["class 0", "class 1"')


def test_hosts_that_another_program_joined_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="initialized by another program"):
        HostGroup().agree({}, "")


@pytest.fixture
def unused_jax(monkeypatch):
    """As if this process had not used JAX; returns what detects a cluster, to be replaced."""
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)

    def detect(answer):
        def answers(*_):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(ClusterEnv, "auto_detect_unset_distributed_params", answers)

    return detect


def is_alone():
    with joined(RunSettings(), explain) as group:
        return group.is_alone


def test_one_host_has_none_to_wait_for():
    jax.devices()
    run = RunSettings(start_timeout=5)
    with pytest.raises(UserError, match="^start_timeout=5 needs several hosts"), joined(run, None):
        raise AssertionError("the run began")
    with joined(RunSettings(start_timeout=300), None) as group:
        assert group.is_alone


def test_a_program_that_used_jax_before_goes_on_as_it_is():
    jax.devices()
    assert is_alone()


@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD", "PMI"])
def test_processes_of_a_launcher_that_jax_does_not_know_are_no_runs_of_their_own(
    monkeypatch, unused_jax, launcher
):
    unused_jax((None, None, None, None))
    monkeypatch.setenv(f"{launcher}_SIZE", "1")
    assert is_alone()
    monkeypatch.setenv(f"{launcher}_SIZE", "4")
    with pytest.raises(UserError, match=rf"4 processes .*--process_id=\${launcher}_RANK"):
        is_alone()


def test_a_cluster_that_is_recognised_and_cannot_be_asked_is_an_error(unused_jax):
    unused_jax(RuntimeError("Kubernetes API Error: 403 - Forbidden\nmore"))
    with pytest.raises(UserError, match="not found: Kubernetes API Error: 403 - Forbidden$"):
        is_alone()


def test_hosts_of_a_recognised_cluster_meet_before_they_join_jax(monkeypatch, unused_jax):
    unused_jax(("node7:8476", 4, 2, None))
    events = []

    def meet(place, seconds, group):
        events.append(place)
        group.connect(Channel())

    monkeypatch.setattr(hosts, "meet", meet)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *place, **_: events.append(place))
    assert not is_alone()
    assert events == [
        ("node7:8476", "[::]:8476", 4, 2),
        ("node7:8476", 4, 2),
    ]


def test_numbers_and_arrays_of_one_process_stay_as_they_are():
    assert hosts.gather(7) == [7]
    bits = np.arange(3)
    assert hosts.share(bits) is bits


def test_a_signal_ends_with_the_status_that_resumes():
    assert STOPPED == os.EX_TEMPFAIL
