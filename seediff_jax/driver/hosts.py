"""The hosts of a run: they find one another, agree on the run, stop together and end together."""

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import xla_bridge
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from seediff_jax.dataset.settings_file import COMMAND
from seediff_jax.driver.channel import Channel, Place, meet
from seediff_jax.driver.channel_server import SILENT_SECONDS
from seediff_jax.driver.config import HostSettings, RunConfig, RunSettings
from seediff_jax.driver.signals import INTERRUPTED, abort_delayed, listening
from seediff_jax.driver.stdio import exit_now
from seediff_jax.errors import UserError

_STACK = "--fibers_default_thread_stack_size=1048576"


def widen_compiler_stack() -> None:
    """Gives the threads of libtpu's compiler 1 MiB of stack; call it before any use of JAX.

    With the 64 KiB that they have by default, libtpu 0.0.42.1 dies of a stack overflow (SIGSEGV) on
    the UNet of Stable Diffusion 1 with 8 images and guidance: while it fuses the attention of
    64 x 64 locations, it estimates fusions within fusions. LIBTPU_INIT_ARGS that name the option
    are left as they are.
    """
    arguments = os.environ.get("LIBTPU_INIT_ARGS", "")
    if _STACK.partition("=")[0] not in arguments:
        os.environ["LIBTPU_INIT_ARGS"] = f"{arguments} {_STACK}".strip()


JAX_SECONDS = 300
"""After this time JAX ends all hosts if one is silent, in many lines; the channel acts earlier."""
ALIGN_ROUNDS = 8
"""Hosts wait for one another every ALIGN_ROUNDS rounds, for the first time after they compiled."""

# Variables with the number of processes and that of this one. JAX knows Open MPI up to version 4.
_LAUNCHERS = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))

# How the messages of XLA's errors begin; a call that fails at once raises them as ValueErrors.
_XLA_STATUS = re.compile("(?!RESOURCE_EXHAUSTED)[A-Z_]+: ")
_EXIT_SECONDS = 50
_VERDICT_SECONDS = SILENT_SECONDS + 5
_LONGEST_FACT = 120
# What all hosts must have in common besides the settings of samples.
_ALIKE = ("num_images", "batch_size", "mesh", "partition", "output")

Explain = Callable[[BaseException], tuple[int, str] | None]
"""Returns the exit status and the message of an error; None for a bug of the program."""


class HostGroup:
    """What this host agrees on with the other hosts: the run, its last round and its end."""

    def __init__(self):
        self._channel: Channel | None = None
        self._changed = threading.Condition()
        self._asked = self._begun = 0
        self._has_compiled = self._is_held = False
        self._last: int | None = None

    @property
    def is_alone(self) -> bool:
        """Whether this is the only host."""
        return self._channel is None

    def connect(self, channel: Channel) -> None:
        """Takes the connection to the other hosts."""
        self._channel = channel

    def agree(self, facts: Mapping[str, Any], what: str) -> None:
        """Waits until all hosts have sent the same facts, JSON values; ends all if they differ.

        `what` says in messages what the other hosts are doing, as in "to load the model".
        """
        if self._channel is not None:
            texts = {name: _fact(facts[name]) for name in facts if name != COMMAND}
            self._channel.agree(texts, what)
        elif jax.process_count() > 1:
            raise UserError(
                "jax.distributed was initialized by another program; leave that to seediff, which "
                "compares what the hosts are about to do"
            )

    def agree_on_run(self, config: RunConfig, others: Mapping[str, Any]) -> None:
        """Compares other facts, and all that is known of a run before its model is loaded."""
        alike = {name: getattr(config, name) for name in _ALIKE}
        self.agree(config.settings() | alike | others, "to read the prompts")

    def should_stop(self, number: int) -> bool:
        """Whether to stop before this round; every host asks before each of its rounds."""
        del number  # it restarts when failed samples are retried
        if self._channel is not None and self._asked % ALIGN_ROUNDS == 1:
            # All stop before the same round, one that none has begun: no host may be far ahead.
            wait_for_all("rounds")
        self._asked += 1
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held or self._last is not None)
            if self._last is not None and self._begun >= self._last:
                return True
            self._begun += 1
            return False

    def round_started(self) -> None:
        """Notes that a round is on the devices, so that its programs are compiled."""
        self._has_compiled = True

    def hold(self) -> int:
        """Holds back further rounds until `stop_after`; returns how many have begun.

        A round whose programs are still being compiled has not begun.
        """
        with self._changed:
            self._is_held = True
            return self._begun if self._has_compiled else 0

    def stop_after(self, rounds: int) -> None:
        """Stops the run before the next round, once this number of rounds have begun."""
        with self._changed:
            self._last = rounds
            self._changed.notify_all()

    def on_signal(self, number: int) -> bool:
        """Handles a signal; returns True if nothing has begun, so that the run may end at once."""
        if self._channel is None:
            if number == signal.SIGINT:
                return True
            rounds = self.hold()
            self.stop_after(rounds)
            return not rounds
        if number == signal.SIGINT:
            self._channel.end("interrupted", INTERRUPTED)
        self._channel.ask_to_stop(signal.Signals(number).name)
        return False

    def end(self, text: str, status: int) -> None:
        """Ends this process at once, because its main thread may be waiting for other hosts."""
        exit_now(f"seediff: {text}", status)

    def fail(self, error: BaseException, explain: Explain) -> None:
        """Ends all hosts for an error of this one."""
        if _XLA_STATUS.match(str(error)):
            time.sleep(_VERDICT_SECONDS)  # a lost host may be the reason, and is reported soon
        found = explain(error)
        if found is None:
            traceback.print_exception(error)
            sys.stderr.flush()
            found = (1, f"{type(error).__name__}: {error}")
        self._channel.end(found[1], found[0])

    def close(self) -> None:
        """Tells the others that this host is done."""
        if self._channel is not None:
            self._channel.close()


def _fact(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    if len(text) <= _LONGEST_FACT:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{text[: _LONGEST_FACT // 2]}... (sha256 {digest})"


@contextlib.contextmanager
def joined(settings: RunSettings, explain: Explain) -> Iterator[HostGroup]:
    """Joins the processes of a run while the block runs; call it before any other use of JAX.

    Without `coordinator`, TPU pods, GKE, Slurm and Open MPI are recognised by JAX, and anything
    else is a run of one process; so is a program that has used JAX before.

    Raises:
        UserError: the processes did not find one another, or a launcher has started several without
            an address to meet at; or a waiting time is given for a single host.
    """
    group = HostGroup()
    with listening(group.on_signal), contextlib.ExitStack() as stack:
        place = _find_place(settings)
        seconds = settings.start_timeout
        if place is None and seconds != HostSettings.start_timeout:
            raise UserError(f"start_timeout={seconds} needs several hosts, or it has no effect")
        try:
            if place is not None:
                if place.count > 1:
                    meet(place, settings.start_timeout, group)
                    # JAX aborts a process that loses host 0; the channel tells why before the end.
                    stack.enter_context(abort_delayed())
                _join_jax(place, settings.start_timeout)
            yield group
        except BaseException as error:
            if group.is_alone:
                raise
            group.fail(error, explain)
        group.close()


def _find_place(settings: RunSettings) -> Place | None:
    if settings.coordinator is not None:
        address, bind = settings.coordinator, settings.coordinator
        count, host = settings.num_processes, settings.process_id
    elif xla_bridge.backends_are_initialized() or jax.distributed.is_initialized():
        return None
    else:
        try:
            # What jax.distributed.initialize does first; the hosts meet before that.
            address, count, host, _ = ClusterEnv.auto_detect_unset_distributed_params(
                os.environ.get("JAX_COORDINATOR_ADDRESS"),
                *(None, None, None, None),
                settings.start_timeout,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"the other hosts were not found: {_first_line(error)}") from error
        if None in (address, count, host):
            _require_alone()
            return None
        bind = f"[::]:{address.rpartition(':')[2]}"
    # Otherwise it would listen on every interface of the machine.
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", bind)
    return Place(address, bind, count, host)


def _join_jax(place: Place, seconds: int) -> None:
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.host,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=JAX_SECONDS,
            shutdown_timeout_seconds=_EXIT_SECONDS,
            coordinator_bind_address=place.bind if place.host == 0 else None,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"JAX did not join the hosts at {place.coordinator}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _require_alone() -> None:
    """Refuses to run as one of several processes that would each make the whole dataset."""
    for size, rank in _LAUNCHERS:
        if int(os.environ.get(size, 1)) > 1:
            raise UserError(
                f"{os.environ[size]} processes were started ({size}) by a launcher that JAX does "
                "not recognise; add --coordinator=HOST:PORT of the first, "
                f"--num_processes=${size} and --process_id=${rank}"
            )


def is_first() -> bool:
    """Whether this is host 0, which does what only one host may do."""
    return jax.process_index() == 0


def share(values: np.ndarray) -> np.ndarray:
    """Returns the array of host 0 on all hosts; all must pass the same shape and dtype."""
    if jax.process_count() == 1:
        return values
    # Summed over hosts on the devices, which hold no 64 bits by default.
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def gather(value: int) -> list[int]:
    """Returns the numbers of all hosts, in their order, on all hosts."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).reshape(-1).tolist()


def wait_for_all(name: str) -> None:
    """Waits until every host is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
