"""Hosts of a run: what they are told, when they wait for one another, and how one process stops."""

import os
import signal

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from seediff_jax import hosts


@pytest.fixture
def two_hosts(monkeypatch):
    """As if there were two; returns what they wait for and when JAX was asked whether to stop."""
    events = []

    def asked(number):
        events.append(number)
        return number == 11

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", events.append)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked)
    return events


def test_hosts_wait_for_one_another_after_the_first_round_and_then_every_eighth(two_hosts):
    stopper = hosts.Stopper()
    assert [stopper(number) for number in range(11)] == [False] * 10 + [True]
    assert two_hosts == [1, "rounds", 2, *range(3, 10), "rounds", 10, 11]


def test_the_second_loop_of_a_run_goes_on_counting(two_hosts):
    stopper = hosts.Stopper()
    for _ in range(2):
        for number in range(3):
            stopper(number)
    assert two_hosts == [1, "rounds", 2, 3, 4, 5, 6]


def test_one_process_stops_before_the_round_after_sigterm():
    stopper, before = hosts.Stopper(), signal.getsignal(signal.SIGTERM)
    with stopper.listen():
        assert not stopper(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopper(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_handler_of_sigterm_is_given_back_after_an_error():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), hosts.Stopper().listen():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_while_a_run_prepares_leaves_at_once_and_is_not_forgotten():
    stopper, before = hosts.Stopper(), signal.getsignal(signal.SIGTERM)
    with stopper.listen():
        with pytest.raises(hosts.Stopped), stopper.preparing():
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("went on")
        assert stopper(0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_of_several_hosts_jax_keeps_the_signal_while_a_run_prepares(two_hosts):
    stopper, before = hosts.Stopper(), signal.getsignal(signal.SIGTERM)
    with stopper.listen(), stopper.preparing():
        assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(hosts.Stopped), hosts.leaving_at_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")


def test_an_error_of_the_only_process_is_raised():
    with pytest.raises(ValueError, match="of the only one"), hosts.ending_together():
        raise ValueError("of the only one")


class Ended(BaseException):
    """Stands in for the end of the process."""


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (ValueError("another run is there"), []),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), []),
        (jax.errors.JaxRuntimeError("UNKNOWN: connection closed by peer\nmore"), [45]),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), [45]),
    ],
    ids=["own", "memory", "other", "other at once"],
)
def test_an_error_of_one_of_several_ends_it_and_leaves_jax_the_time_to_name_a_host_that_is_gone(
    two_hosts, monkeypatch, capsys, error, seconds
):
    slept = []

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("time.sleep", slept.append)
    with pytest.raises(Ended, match="2"), hosts.ending_together():
        raise error
    text = str(error).splitlines()[0]
    assert capsys.readouterr().err == f"seediff: host 0: {text}\n"
    assert slept == seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("h:1", None, None), "give all three, or none where the cluster is recognised"),
        ((None, 2, 0), "give all three"),
        (("h:1", 2, 2), r"process_id=2 must lie in 0\.\.1"),
        (("h:1", 2, -1), r"process_id=-1 must lie in 0\.\.1"),
    ],
)
def test_processes_that_are_not_told_enough_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        hosts.join_hosts(*arguments)


def failing(monkeypatch, error):
    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


def test_a_process_without_a_cluster_is_a_run_of_its_own(monkeypatch):
    failing(monkeypatch, ValueError("coordinator_address should be defined."))
    hosts.join_hosts()


def test_a_program_that_used_jax_before_goes_on_as_it_is():
    jax.devices()
    hosts.join_hosts()


@pytest.mark.parametrize("launcher", ["OMPI_COMM_WORLD", "PMI"])
def test_processes_of_a_launcher_that_jax_does_not_know_are_no_runs_of_their_own(
    monkeypatch, launcher
):
    failing(monkeypatch, ValueError("coordinator_address should be defined."))
    monkeypatch.setenv(f"{launcher}_SIZE", "1")
    hosts.join_hosts()
    monkeypatch.setenv(f"{launcher}_SIZE", "4")
    with pytest.raises(ValueError, match=rf"4 processes .*--process_id=\${launcher}_RANK"):
        hosts.join_hosts()


def test_a_cluster_that_is_recognised_and_cannot_be_asked_is_an_error(monkeypatch):
    failing(monkeypatch, RuntimeError("Kubernetes API Error: 403 - Forbidden\nmore"))
    with pytest.raises(ValueError, match="the coordinator: Kubernetes API Error: 403 - Forbidden$"):
        hosts.join_hosts()


def test_numbers_and_arrays_of_one_process_stay_as_they_are():
    assert hosts.gather(7) == [7]
    bits = np.arange(3)
    assert hosts.share(bits) is bits
