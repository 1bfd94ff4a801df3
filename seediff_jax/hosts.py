"""The hosts of a run: how they find one another, agree, stop together, and what ends them all."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

HEARTBEAT_SECONDS = 30
"""A host that was not heard of for so long ends the others."""
ALIGN_ROUNDS = 8
"""Rounds between two moments at which hosts wait for one another, the first after they compiled."""


# What JAX says where it recognises no cluster, and where it was used or the hosts joined before.
_NO_CLUSTER = "coordinator_address should be defined"
_TOO_LATE = ("must be called before any JAX calls", "should only be called once")
# Variables with the number of processes and that of this one. JAX knows Open MPI up to version 4.
_LAUNCHERS = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))

# How the messages of XLA's errors begin; a call that fails at once raises them as ValueErrors.
_XLA_STATUS = re.compile("(?!RESOURCE_EXHAUSTED)[A-Z_]+: ")


def join_hosts(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a run; call it before any other use of JAX.

    With no argument, TPU pods, GKE, Slurm and Open MPI are recognised by JAX, and anything else is
    a run of one process; so is a program that has used JAX before, unless it joined them itself.

    Args:
        coordinator: `host:port` of process 0, on a port that is free there.
        num_processes: of the run.
        process_id: of this process, 0 to num_processes - 1.

    Raises:
        ValueError: only some of the three are given, the processes cannot reach one another, or
            there are several and nothing says where.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError(
            f"coordinator={coordinator}, num_processes={num_processes}, process_id={process_id}: "
            "give all three, or none where the cluster is recognised"
        )
    if process_id is not None and not 0 <= process_id < num_processes:
        raise ValueError(f"process_id={process_id} must lie in 0..{num_processes - 1}")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
            # Else every interface of the machine is listened on.
            coordinator_bind_address=coordinator if process_id == 0 else None,
        )
    except (ValueError, RuntimeError) as error:
        if coordinator is None and any(text in str(error) for text in _TOO_LATE):
            return
        if coordinator is None and _NO_CLUSTER in str(error):
            _require_alone()
            return
        raise ValueError(
            f"the processes of the run did not come together at {coordinator or 'the coordinator'}"
            f": {str(error).splitlines()[0]}"
        ) from error


def _require_alone() -> None:
    """Refuses one of several processes that would each take itself for the whole run."""
    for size, rank in _LAUNCHERS:
        if int(os.environ.get(size, 1)) > 1:
            raise ValueError(
                f"{os.environ[size]} processes were started ({size}) by a launcher that JAX does "
                "not recognise; add --coordinator=HOST:PORT of the first, "
                f"--num_processes=${size} and --process_id=${rank}"
            )


def is_first() -> bool:
    """Whether this is the host that does what only one may."""
    return jax.process_index() == 0


def share(values: np.ndarray) -> np.ndarray:
    """The array of host 0, on all hosts; theirs must have the same shape and dtype."""
    if jax.process_count() == 1:
        return values
    # Summed over hosts on the devices, which hold no 64 bits by default.
    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def gather(value: int) -> list[int]:
    """A number of each host, in their order, on all hosts."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.int32(value)).reshape(-1).tolist()


def wait_for_all(name: str) -> None:
    """Waits until every host is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Stopped(BaseException):
    """SIGTERM came before a run had begun anything that must be ended in order."""


class Stopper:
    """Whether to stop, agreed among hosts; SIGTERM, the notice of preemption, asks for it."""

    def __init__(self):
        self._asked = False
        self._rounds = 0

    def __call__(self, number: int) -> bool:
        """Whether to stop before this round; every host asks before each of its rounds."""
        self._rounds += 1
        if jax.process_count() == 1:
            return self._asked
        if self._rounds % ALIGN_ROUNDS == 2:
            # All stop before the same round, one that none has begun: no host may be far ahead.
            wait_for_all("rounds")
        return multihost_utils.reached_preemption_sync_point(self._rounds)

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Listens to SIGTERM while the block runs; of several hosts JAX does it."""
        if jax.process_count() > 1:
            yield
            return
        with _handling_sigterm(self._ask):
            yield

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Leaves a block inside of `listen` by Stopped at SIGTERM: nothing has begun to be ended.

        Several hosts go on to their first round, which they agree not to begin.
        """
        if jax.process_count() > 1:
            yield
            return
        with leaving_at_sigterm(self._ask):
            yield

    def _ask(self) -> None:
        self._asked = True


@contextmanager
def leaving_at_sigterm(and_then: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Leaves the block by Stopped where SIGTERM comes while it runs.

    While a program is being compiled Python hears of nothing, and the block is left after that.
    This takes the place of JAX's own handler, which would keep the signal for a round to come.

    Args:
        and_then: done before, for those who swallow exceptions.
    """

    def leave() -> None:
        and_then()
        raise Stopped

    with _handling_sigterm(leave):
        yield


@contextmanager
def _handling_sigterm(handle: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ending_together() -> Iterator[None]:
    """Ends the process where it fails among several, so that the others notice.

    Unwinding would wait for hosts that wait for this one. Where the reason may be another host that
    is gone, JAX has the time to miss its heartbeats, which ends the process with that host's name.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        print(f"seediff: host {jax.process_index()}: {text}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if _XLA_STATUS.match(str(error)):
            time.sleep(1.5 * HEARTBEAT_SECONDS)
        os._exit(2)
