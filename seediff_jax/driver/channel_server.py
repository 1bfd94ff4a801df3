"""Host 0's side of the channel: counts and compares the hosts, and chooses the last round."""

import contextlib
import json
import socket
import threading
from collections.abc import Collection, Mapping
from typing import Any

from seediff_jax.driver.signals import AGAIN, STOPPED
from seediff_jax.errors import listed, shown

ANSWER_SECONDS = 10.0
"""How long a new connection may take to say something."""
GONE_SECONDS = 5.0
"""How long host 0 waits for the others to end before it does."""
BEAT_SECONDS = 5.0
"""How often both sides of a connection say that they run, if only that."""
SILENT_SECONDS = 40.0
"""How long a host may say nothing. Its thread for that goes on while XLA compiles or JAX waits, and
gets its turn within seconds where Python computes."""

_LONGEST = 2**20  # bytes of a message

Facts = Mapping[str, str]
Message = dict[str, Any]

SILENCE: Message = {"kind": "silence"}
"""Stands for a message that did not come in time."""


def silent_host(name: str) -> str:
    """Says that a host is silent."""
    return (
        f"{name} said nothing for {SILENT_SECONDS:.0f} s: its process or machine hangs, or the "
        "network between"
    )


def name_hosts(hosts: Collection[int]) -> str:
    """Names hosts: "host 3", "hosts 1, 2"."""
    return f"host{'s' if len(hosts) > 1 else ''} {listed(sorted(hosts))}"


def find_difference(facts: Mapping[int, Facts]) -> str | None:
    """Compares the facts of hosts with those of host 0; None if all are the same."""
    found = []
    names = dict.fromkeys(name for each in facts.values() for name in each)
    for name in names:
        expected = facts[0].get(name)
        others: dict[str | None, list[int]] = {}
        for host, each in facts.items():
            if each.get(name) != expected:
                others.setdefault(each.get(name), []).append(host)
        if others:
            texts = (f"{value} on {name_hosts(hosts)}" for value, hosts in others.items())
            found.append(f"{name} is {expected} on host 0, {listed(texts, 3)}")
    if not found:
        return None
    return f"{listed(found, separator='; ')}; give all hosts the same command, files and software"


class Connection:
    """A socket on which messages come and go."""

    def __init__(self, sock: socket.socket):
        self._socket, self._lines, self._lock = sock, sock.makefile("rb"), threading.Lock()
        self._is_closed = threading.Event()
        if sock.family != socket.AF_UNIX:
            # A machine that loses power sends nothing: the others notice after 25 seconds.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("IDLE", 10), ("INTVL", 5), ("CNT", 3)):
                if hasattr(socket, f"TCP_KEEP{option}"):
                    number = getattr(socket, f"TCP_KEEP{option}")
                    sock.setsockopt(socket.IPPROTO_TCP, number, value)

    def send(self, kind: str, **content: Any) -> None:
        """Sends a message, unless the other side is gone."""
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):  # the reader notices
            self._socket.sendall(line)

    def start_beats(self) -> None:
        """Sends a beat every BEAT_SECONDS from now on, to show that this process runs."""

        def beat() -> None:
            while not self._is_closed.wait(BEAT_SECONDS):
                self.send("beat")

        threading.Thread(target=beat, daemon=True).start()

    def receive(self, seconds: float | None = None) -> Message | None:
        """Returns the next message that is not a beat.

        Args:
            seconds: to wait for any message; by default SILENT_SECONDS.

        Returns:
            SILENCE if no message came in time; None if the connection has ended, or if the message
            is not one of this program. After either, nothing more can be received.
        """
        message: Any = {"kind": "beat"}
        while isinstance(message, dict) and message.get("kind") == "beat":
            try:
                self._socket.settimeout(seconds or SILENT_SECONDS)
                line = self._lines.readline(_LONGEST)
                message = json.loads(line) if line.endswith(b"\n") else None
            except TimeoutError:
                return SILENCE
            except (OSError, ValueError, RecursionError):
                return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Ends the connection."""
        self._is_closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._socket.close()


class ChannelServer:
    """Host 0's side: a thread per connection, one of which is its own."""

    def __init__(self, count: int):
        self.changed = threading.Condition()
        self._count = count
        self._connections: dict[int, Connection] = {}
        self._names: dict[int, str] = {}
        self._facts: dict[int, Facts] = {}
        self._begun: dict[int, int] = {}
        self._done: set[int] = set()
        self._has_met = False
        self._stop: str | None = None
        self._end: tuple[str, int] | None = None

    def serve(self, sock: socket.socket) -> None:
        """Answers a connection until it ends."""
        connection = Connection(sock)
        host = self._admit(connection, connection.receive(ANSWER_SECONDS))
        if host is None:
            connection.close()
            return
        connection.start_beats()
        while (message := connection.receive()) is not None:
            with self.changed:
                if message is SILENCE and host not in self._done:
                    self.end(silent_host(f"host {host} ({self._names[host]})"))
                else:
                    self._take(host, message)
        connection.close()
        with self.changed:
            del self._connections[host]
            if host not in self._done:
                self.end(f"host {host} ({self._names[host]}) ended without a word; see its output")
            self.changed.notify_all()

    def _admit(self, connection: Connection, hello: Message | None) -> int | None:
        match hello:
            case {"kind": "hello", "host": int(host), "count": int(count), "name": str(name)}:
                name = shown(name, 200)
            case _:
                return None
        with self.changed:
            if not 0 <= host < count:
                return None
            if count != self._count:
                self.end(
                    f"host {host} ({name}) was started with num_processes={count}, and host 0 with "
                    f"{self._count}; give all the same number"
                )
            elif host in self._names:
                self.end(
                    f"two processes have process_id={host} ({self._names[host]}; {name}); give "
                    f"each its own, from 0 to {self._count - 1}"
                )
            if self._end is None:
                self._connections[host], self._names[host] = connection, name
                connection.send("welcome")
                self.changed.notify_all()
                return host
            connection.send("end", text=self._end[0], status=self._end[1])
        connection.receive(GONE_SECONDS)  # it closes, having read that
        return None

    @property
    def is_ending(self) -> bool:
        """Whether the hosts were told to end."""
        return self._end is not None

    def missing(self) -> set[int]:
        """Hosts that have not arrived, or have not said what they are about to do."""
        with self.changed:
            return {*range(self._count)} - {*(self._facts or self._names)}

    def met(self) -> None:
        """Tells all hosts that all have arrived."""
        with self.changed:
            self._has_met = True
            self._tell_all("met")

    def end(self, text: str, status: int = 2) -> None:
        """Tells all hosts to end; only the first reason counts."""
        with self.changed:
            if self._end is None:
                self._end = (text, status)
                self._tell_all("end", text=text, status=status)

    def wait_for_others(self) -> None:
        """Waits until the others have ended, because their JAX aborts without host 0."""
        with self.changed:
            self.changed.wait_for(lambda: {*self._connections} <= {0}, GONE_SECONDS)

    def _take(self, host: int, message: Message) -> None:
        match message:
            case {"kind": "facts", "facts": dict(facts)}:
                self._facts[host] = facts
                self._compare()
            case {"kind": "stop", "signal": str(name)} if self._stop is None:
                self._stop = f"host {host} received {shown(name, 20)}"
                if self._has_met:
                    self._tell_all("hold")
                else:
                    self._stop_at_once()
            case {"kind": "begun", "rounds": int(rounds)}:
                self._begun[host] = rounds
                self._choose_last()
            case {"kind": "end", "text": str(text), "status": int(status)}:
                self.end(f"host {host}: {shown(text)}", status)
            case {"kind": "bye"}:
                self._done.add(host)

    def _compare(self) -> None:
        if len(self._facts) == self._count:
            if difference := find_difference(self._facts):
                self.end(difference)
            self._facts = {}
            self._tell_all("same")

    def _choose_last(self) -> None:
        if len(self._begun) < self._count:
            return
        if last := max(self._begun.values()):
            self._tell_all("last", rounds=last)
        else:
            self._stop_at_once()

    def _stop_at_once(self) -> None:
        self.end(f"stopped before the first round ({self._stop}); {AGAIN}", STOPPED)

    def _tell_all(self, kind: str, **content: Any) -> None:
        for connection in [*self._connections.values()]:
            connection.send(kind, **content)
