"""The hosts of a run beside JAX: who has come, whether all do the same, and how all end together.

Every host is a thread of this process; none uses JAX.
"""

import contextlib
import queue
import re
import socket
import threading

import pytest

from seediff_jax.driver import channel, channel_server
from seediff_jax.driver.channel import Place, meet
from seediff_jax.driver.channel_server import find_difference
from seediff_jax.driver.signals import STOPPED
from seediff_jax.errors import UserError
from tests.helpers.driver_processes import free_port, wait_until

WAIT = 20  # seconds; only a channel that is wrong needs them


class Host:
    """A member that notes what it is told instead of ending the process."""

    all = []

    def __init__(self, begun=0):
        self.all.append(self)
        self.begun, self.told, self.channel, self.error = begun, queue.Queue(), None, None

    def connect(self, channel):
        self.channel = channel

    def hold(self):
        return self.begun

    def stop_after(self, rounds):
        self.told.put(rounds)

    def end(self, text, status):
        self.told.put((text, status))

    def hears(self):
        return self.told.get(timeout=WAIT)

    def meet(self, place, seconds):
        try:
            meet(place, seconds, self)
        except UserError as error:
            self.error = str(error)


@pytest.fixture(autouse=True)
def end(monkeypatch):
    """Ends all connections of a test; host 0 waits for no other one's end."""
    for module in (channel, channel_server):
        monkeypatch.setattr(module, "GONE_SECONDS", 0.05)
    yield
    for host in Host.all:
        if host.channel:
            host.channel.close()
            host.channel._connection.close()
    Host.all.clear()


def start(places, seconds=WAIT, begun=(0, 0, 0)):
    """Lets hosts meet, each in a thread; returns them when all have met or failed."""
    hosts = [Host(rounds) for _, rounds in zip(places, begun, strict=False)]
    threads = [
        threading.Thread(target=host.meet, args=(place, seconds), daemon=True)
        for host, place in zip(hosts, places, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    return hosts


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


def places(address, *hosts, count=None):
    return [Place(address, address, count or len(hosts), host) for host in hosts]


def agree(host, facts):
    with contextlib.suppress(UserError):
        host.channel.agree(facts, "to agree")
        return True
    return False


def test_hosts_that_are_about_to_do_the_same_go_on(address):
    hosts = start(places(address, 2, 0, 1))
    answers = []
    for _ in range(2):
        threads = [
            threading.Thread(target=lambda h=host: answers.append(agree(h, {"seed": "7"})))
            for host in hosts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert answers == [True] * 6
    # JAX listens there next.
    name, port = address.split(":")
    socket.create_server((name, int(port))).close()


def test_hosts_that_differ_all_end_with_what_differs_and_where(address):
    hosts = start(places(address, 0, 1, 2))
    for host, seed in zip(hosts, "778", strict=True):
        threading.Thread(target=agree, args=(host, {"seed": seed, "steps": "50"})).start()
    told = [host.hears() for host in hosts]
    assert set(told) == {
        (
            "seed is 7 on host 0, 8 on host 2; give all hosts the same command, files and software",
            2,
        )
    }


@pytest.mark.parametrize(
    ("facts", "difference"),
    [
        ([{"a": "1"}, {"a": "1"}], None),
        ([{"a": "1"}, {"a": "2"}, {"a": "2"}, {"a": "3"}], "a is 1 on host 0, 2 on hosts 1, 2, 3 "),
        ([{"a": "1"}, {}], "a is 1 on host 0, None on host 1"),
        ([{}, {"a": "1"}], "a is None on host 0, 1 on host 1"),
        ([{"a": "1", "b": "1"}, {"a": "2", "b": "2"}], "1; b is 1 on host 0, 2 on host 1; give"),
        ([{"a": "1"}] + [{"a": "2"}] * 30, "hosts 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 20 more"),
    ],
)
def test_a_difference_names_the_values_and_the_hosts(facts, difference):
    found = find_difference(dict(enumerate(facts)))
    assert found == difference if difference is None else difference in found


@pytest.mark.parametrize(
    ("who", "count", "told"),
    [
        ((0, 1), 3, r"host 2 did not come to 127.* within 1 s; start all hosts together"),
        ((0,), 4, r"hosts 1, 2, 3 did not come"),
    ],
)
def test_hosts_that_do_not_come_are_named_by_all_others(address, who, count, told):
    hosts = start(places(address, *who, count=count), seconds=0.6)
    for host in hosts:
        text, status = host.hears()
        assert text.startswith(told.split(" within")[0].replace("127.*", address)) and status == 2
        assert "--start_timeout=SECONDS" in text


def test_a_host_0_that_does_not_come_is_named(address):
    (host,) = start(places(address, 1, count=2), seconds=0.5)
    assert host.error.startswith(
        f"host 0 was not found at {address} within 0 s (Connection refused"
    )


def test_two_processes_of_one_number_end_all_and_are_named(address):
    hosts = start(places(address, 0, 1, 1, count=3))
    for told in [host.error or host.hears()[0] for host in hosts]:
        assert told.startswith("two processes have process_id=1 (") and told.count(" process ") == 2


def test_two_processes_that_are_host_0_end_each_other(address):
    hosts = start(places(address, 0, 0, count=2))
    for told in [host.error or host.hears()[0] for host in hosts]:
        assert told.startswith("two processes have process_id=0 (")


def test_processes_with_another_number_of_processes_end_all(address):
    hosts = start([*places(address, 0, count=2), *places(address, 1, count=3)])
    for told in [host.error or host.hears()[0] for host in hosts]:
        assert "started with num_processes=3, and host 0 with 2" in told


@pytest.mark.parametrize("text", [b"HTTP/1.1 400 Bad Request\r\n", b"", b'{"kind": "met"}\n', b"["])
def test_another_program_at_the_address_is_no_host(address, text):
    name, port = address.split(":")
    with socket.create_server((name, int(port))) as other:
        other.settimeout(2)

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = other.accept()
                    connection.sendall(text)
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        (host,) = start(places(address, 1, count=2), seconds=0.5)
    assert f"host 0 was not found at {address}" in host.error


def test_what_is_no_host_disturbs_none(address):
    stranger = Host()
    first, second = places(address, 0, 1)
    thread = threading.Thread(target=stranger.meet, args=(first, WAIT), daemon=True)
    thread.start()
    name, port = address.split(":")
    noise = [b"GET / HTTP/1.1\r\n\r\n", b'{"kind": "hello"}\n', b"x" * 2**21, b"[[[[\n", b""]
    noise.append(b'{"kind": "hello", "host": 9, "count": 2, "name": ""}\n')
    for text in noise:
        while True:
            with contextlib.suppress(OSError):
                with socket.create_connection((name, int(port))) as sock:
                    sock.sendall(text)
                break
    (host,) = start([second])
    thread.join(WAIT)
    assert host.channel and stranger.channel


def test_the_last_round_is_one_that_every_host_can_reach(address):
    hosts = start(places(address, 0, 1, 2), begun=(4, 6, 5))
    hosts[2].channel.ask_to_stop("SIGTERM")
    hosts[0].channel.ask_to_stop("SIGTERM")
    assert [host.hears() for host in hosts] == [6, 6, 6]


def test_hosts_that_have_begun_nothing_end_at_once_and_can_be_resumed(address):
    hosts = start(places(address, 0, 1))
    hosts[1].channel.ask_to_stop("SIGTERM")
    line = "stopped before the first round (host 1 received SIGTERM); run the same command again"
    assert [host.hears() for host in hosts] == [(line, STOPPED)] * 2


@pytest.mark.parametrize("struck", [0, 1])
def test_a_signal_before_all_hosts_have_come_ends_those_that_have(address, struck):
    hosts = [Host() for _ in range(2)]
    for host, place in zip(hosts, places(address, 0, 1, count=3), strict=False):
        threading.Thread(target=host.meet, args=(place, WAIT), daemon=True).start()
    wait_until(lambda: all(host.channel for host in hosts))
    hosts[struck].channel.ask_to_stop("SIGTERM")
    assert [host.hears()[1] for host in hosts] == [STOPPED] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_host_that_is_lost_ends_the_others_with_its_name(address, lost):
    hosts = start(places(address, 0, 1))
    if lost:
        hosts[1].channel._connection._socket.shutdown(socket.SHUT_RDWR)
        assert hosts[0].hears()[0].startswith("host 1 (")
    else:
        hosts[0].channel._server._connections[1]._socket.shutdown(socket.SHUT_RDWR)
        assert hosts[1].hears() == ("host 0 ended without a word; see its output", 2)


@pytest.fixture
def impatient(monkeypatch):
    """Lets hosts speak often, and be silent for a short time only."""
    monkeypatch.setattr(channel_server, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(channel_server, "SILENT_SECONDS", 2.0)


def stop_beats(connection):
    """Makes a host silent, as SIGSTOP does, though its connection stands."""
    connection._is_closed.set()


@pytest.mark.parametrize("silent", [1, 2])
def test_a_silent_host_ends_the_others_with_its_name(address, impatient, silent):
    hosts = start(places(address, 0, 1, 2))
    stop_beats(hosts[silent].channel._connection)
    line = rf"host {silent} \(.* process \d+\) said nothing for 2 s: its process or machine hangs"
    for host in hosts:  # the silent one as well, where it wakes
        text, status = host.hears()
        assert re.match(line, text) and status == 2


def test_a_silent_host_0_is_named_by_the_others_and_ends_when_it_wakes(address, impatient):
    hosts = start(places(address, 0, 1))
    stop_beats(hosts[0].channel._server._connections[1])
    line = "host 0 said nothing for 2 s: its process or machine hangs, or the network between"
    assert hosts[1].hears() == (line, 2)
    assert hosts[0].hears() == (f"host 1: {line}", 2)


def test_hosts_that_have_nothing_to_say_are_not_silent(address, impatient):
    hosts = start(places(address, 0, 1))
    threading.Event().wait(3)
    assert all(host.told.empty() for host in hosts)


def test_a_host_that_is_done_may_be_silent(address, impatient):
    hosts = start(places(address, 0, 1, 2))
    hosts[1].channel.close()
    stop_beats(hosts[1].channel._connection)
    threading.Event().wait(3)
    assert hosts[0].told.empty() and hosts[2].told.empty()


def test_the_error_of_a_host_ends_all_with_its_status(address):
    hosts = start(places(address, 0, 1))
    hosts[1].channel.end("no space left", 3)
    assert [host.hears() for host in hosts] == [("host 1: no space left", 3)] * 2


def test_a_host_that_is_done_may_go(address):
    hosts = start(places(address, 0, 1, 2))
    for host in hosts:
        host.channel.close()
    hosts[1].channel._connection._socket.shutdown(socket.SHUT_RDWR)
    hosts[2].channel.end("too late to matter", 2)
    assert hosts[0].hears() == ("host 2: too late to matter", 2)


def test_a_host_says_whom_it_waits_for(address, monkeypatch, capsys):
    monkeypatch.setattr(channel, "TOLD_SECONDS", 0.2)
    start(places(address, 0, count=2), seconds=0.5)
    start(places(address, 1, count=2), seconds=0.5)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"seediff: waiting for host 1 at {address} (0 s)"
    assert told[-1].startswith(f"seediff: waiting for host 0 at {address} (0 s): ")


def test_a_host_says_which_others_load_still(address, monkeypatch, capsys):
    hosts = start(places(address, 0, 1))
    monkeypatch.setattr(channel, "TOLD_SECONDS", 0.2)
    thread = threading.Thread(target=agree, args=(hosts[0], {}), daemon=True)
    thread.start()
    thread.join(0.5)
    agree(hosts[1], {})
    thread.join(WAIT)
    assert "seediff: waiting for host 1 to agree (0 s)" in capsys.readouterr().err
