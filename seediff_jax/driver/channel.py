"""The hosts' own channel: each has a TCP connection to host 0, with one line of JSON per message.

    hello -> welcome, met      which hosts have arrived
    facts -> same              what a host is about to do; it must be the same on all hosts
    stop -> hold, begun, last  the last round, one that every host can still reach
    end -> end                 why one host ends; then all of them end
    bye                        a host is done; its connection may close
    beat                       a sign of life when there is nothing else to send

Without it, JAX notices a lost host late, ends with many lines, and does not compare the hosts. Host
0 listens on the port of JAX's coordinator, and gives the port to JAX once all hosts have arrived.
"""

import contextlib
import errno
import os
import queue
import socket
import sys
import threading
import time
from typing import NamedTuple, Protocol

from seediff_jax.driver.channel_server import (
    ANSWER_SECONDS,
    GONE_SECONDS,
    SILENCE,
    ChannelServer,
    Connection,
    Facts,
    name_hosts,
    silent_host,
)
from seediff_jax.errors import UserError, shown

TOLD_SECONDS = 10.0
"""How often a host says what it waits for."""

_RETRY_SECONDS = 0.2
_NOT_MINE = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


class Place(NamedTuple):
    """Where the hosts meet, and which of them this is.

    Attributes:
        coordinator: host:port of host 0.
        bind: host:port that host 0 listens on.
        count: number of hosts.
        host: number of this one.
    """

    coordinator: str
    bind: str
    count: int
    host: int


class Member(Protocol):
    """A host's answers; called from a separate thread, whatever the main thread does."""

    def connect(self, channel: "Channel") -> None:
        """Receives the channel before its first message."""

    def hold(self) -> int:
        """Begins no further round until `stop_after`; returns how many were begun."""

    def stop_after(self, rounds: int) -> None:
        """Stops when so many rounds were begun."""

    def end(self, text: str, status: int) -> None:
        """Ends this process."""


class Channel:
    """A host's side of its connection to host 0."""

    def __init__(self, connection: Connection, member: Member, server: ChannelServer | None):
        self._connection, self._member, self._server = connection, member, server
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_done, self._ending, self._ended = False, threading.Lock(), threading.Event()
        member.connect(self)
        connection.start_beats()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, answer: str, what: str) -> None:
        """Waits for an answer that all hosts get, and says whom it waits for.

        Raises:
            UserError: this process is to end instead.
        """
        waited = 0.0
        while True:
            try:
                found = self._answers.get(timeout=TOLD_SECONDS)
            except queue.Empty:
                waited += TOLD_SECONDS
                if self._server is not None and (missing := self._server.missing()):
                    tell(f"waiting for {name_hosts(missing)} {what} ({waited:.0f} s)")
                continue
            if found != answer:
                raise UserError(found)
            return

    def agree(self, facts: Facts, what: str) -> None:
        """Returns once all hosts have the same facts; ends all of them where they differ."""
        self._connection.send("facts", facts=dict(facts))
        self.wait("same", what)

    def ask_to_stop(self, signal_name: str) -> None:
        """Makes all hosts stop before the same round."""
        self._connection.send("stop", signal=signal_name)

    def end(self, text: str, status: int) -> None:
        """Ends all hosts with a status and the reason of this one."""
        self._connection.send("end", text=text, status=status)
        self._ended.wait(2 * GONE_SECONDS)  # this host, too, ends when host 0 says so
        self._end(text, status)

    def close(self) -> None:
        """Says that this host is done; it may end before the others."""
        self._is_done = True
        self._connection.send("bye")

    def _end(self, text: str, status: int) -> None:
        if self._ending.acquire(blocking=False):  # once
            if self._server is not None:
                self._server.wait_for_others()
            self._member.end(text, status)
            self._ended.set()
            self._answers.put(text)

    def _listen(self) -> None:
        while (message := self._connection.receive()) is not None:
            if message is SILENCE and not self._is_done:
                # Host 0 is told, too, in case it wakes.
                self._connection.send("end", text=silent_host("host 0"), status=2)
                self._end(silent_host("host 0"), 2)
                break
            match message:
                case {"kind": "hold"}:
                    self._connection.send("begun", rounds=self._member.hold())
                case {"kind": "last", "rounds": int(rounds)}:
                    self._member.stop_after(rounds)
                case {"kind": "end", "text": str(text), "status": int(status)}:
                    self._end(shown(text), status)
                    break
                case {"kind": str(kind)}:
                    self._answers.put(kind)
        else:
            if not self._is_done:
                self._end("host 0 ended without a word; see its output", 2)
        self._connection.close()


def tell(text: str) -> None:
    """Writes a line for people."""
    print(f"seediff: {text}", file=sys.stderr, flush=True)


def meet(place: Place, seconds: float, member: Member) -> Channel:
    """Waits until all hosts of a run have arrived, at most `seconds`, and connects them.

    `member` answers the other hosts from now on.

    Raises:
        UserError: a host did not arrive, two have one number, or another program answers.
    """
    begin, told, reason = time.monotonic(), 1, ""
    while True:
        if place.host == 0 and (listener := _listen(place)) is not None:
            with listener:
                return _receive_hosts(listener, place, begin + seconds, member)
        try:
            # A second host 0 comes here, too, and is told of the first.
            if (channel := _visit(place, member)) is not None:
                channel.wait("met", "to start")
                return channel
            reason = "another program is listening at this address"
        except OSError as error:
            reason = error.strerror or str(error)
        waited = time.monotonic() - begin
        if waited > seconds:
            raise UserError(
                f"host 0 was not found at {place.coordinator} within {seconds:.0f} s ({reason}); "
                "start all hosts together, or allow them a longer start_timeout=SECONDS"
            )
        if waited > told * TOLD_SECONDS:
            told += 1
            tell(f"waiting for host 0 at {place.coordinator} ({waited:.0f} s): {reason}")
        time.sleep(_RETRY_SECONDS)


def _split(address: str) -> tuple[str, int]:
    name, _, port = address.rpartition(":")
    return name.strip("[]"), int(port)


def _listen(place: Place) -> socket.socket | None:
    """Returns the socket of host 0; None if the address is in use or is another machine's."""
    name, port = _split(place.bind)
    try:
        if name == "::":
            try:
                return socket.create_server(
                    (name, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
                )
            except (OSError, ValueError) as error:
                if getattr(error, "errno", None) == errno.EADDRINUSE:
                    raise
                name = "0.0.0.0"  # a machine without IPv6
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((name, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno in _NOT_MINE:
            return None
        raise UserError(
            f"host 0 cannot listen at {place.bind}: {error.strerror or error}; give the address "
            "of its machine, and a free port"
        ) from error


def _hello(sock: socket.socket, place: Place) -> Connection:
    connection = Connection(sock)
    name = f"{socket.gethostname()} process {os.getpid()}"
    connection.send("hello", host=place.host, count=place.count, name=name)
    return connection


def _visit(place: Place, member: Member) -> Channel | None:
    sock = socket.create_connection(_split(place.coordinator), timeout=ANSWER_SECONDS)
    connection = _hello(sock, place)
    match connection.receive(ANSWER_SECONDS):
        case {"kind": "welcome"}:
            return Channel(connection, member, None)
        case {"kind": "end", "text": str(text)}:
            connection.close()
            raise UserError(shown(text))
    connection.close()
    return None


def _receive_hosts(
    listener: socket.socket, place: Place, deadline: float, member: Member
) -> Channel:
    server = ChannelServer(place.count)
    begin = time.monotonic()

    def serve(sock: socket.socket) -> None:
        threading.Thread(target=server.serve, args=(sock,), daemon=True).start()

    own, other = socket.socketpair()
    serve(other)
    channel = Channel(_hello(own, place), member, server)
    channel.wait("welcome", "to start")
    told = 1
    listener.settimeout(_RETRY_SECONDS)
    while (missing := server.missing()) and not server.is_ending:
        waited = time.monotonic() - begin
        if time.monotonic() > deadline:
            server.end(
                f"{name_hosts(missing)} did not come to {place.coordinator} within {waited:.0f} s; "
                "start all hosts together, or allow them a longer --start_timeout=SECONDS"
            )
        elif waited > told * TOLD_SECONDS:
            told += 1
            tell(f"waiting for {name_hosts(missing)} at {place.coordinator} ({waited:.0f} s)")
        with contextlib.suppress(TimeoutError):
            serve(listener.accept()[0])
    server.met()
    channel.wait("met", "to start")
    return channel
