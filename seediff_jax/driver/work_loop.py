"""The loop of a run on one host, which keeps devices, encoding and disk busy at the same time.

main thread        starts a round on the devices, at most `depth` rounds ahead of the queue
`depth` threads    wait for a round, copy it to the host, queue its blocks
`workers` threads  encode a block and write it
one thread         finishes shards that have all their samples

A device gets its next round before it has done the last one. It waits only if encoding or the disk
is slower, because then the queue stays full. Each round has its own waiting thread, so the monitor
learns when a device is done even if the queue is full. This module knows nothing of models.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DEPTH = 2
"""Rounds between start and queue: one that is running, and one that is ready to follow."""

_DISK_WAITERS = 2
"""Threads in addition to one per core, which encode while others wait for the disk."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """What a loop does with its blocks; each function may raise, which ends the loop.

    Attributes:
        start: starts the blocks of a round and returns at once, with a handle for `fetch`.
        fetch: waits for a round and copies it to the host; returns one content per block.
        write: encodes and writes a block; returns the number of samples and those that failed.
        shards_ready: block, number of its samples just written -> shards that now have all their
            samples.
        finish: finishes a shard.
        watch: called for every block with the numbers of samples that were written and that failed.
    """

    start: Callable[[Sequence[int]], Any]
    fetch: Callable[[Any], Sequence[Any]]
    write: Callable[[int, Any], tuple[int, list[Any]]]
    shards_ready: Callable[[int, int], Iterable[int]]
    finish: Callable[[int], None]
    watch: Callable[[int, int], None]


class WorkLoop:
    """Runs rounds of blocks through Stages.

    Args:
        stages: what to do.
        workers: threads that encode and write.
        depth: rounds that were started and are not in the queue.
    """

    def __init__(self, stages: Stages, workers: int | None = None, depth: int = DEPTH):
        self._stages = stages
        self._workers = workers or (os.cpu_count() or 1) + _DISK_WAITERS
        self._depth = depth

    def run(
        self, rounds: Iterable[Sequence[int]], should_stop: Callable[[int], bool]
    ) -> tuple[list[Any], bool]:
        """Makes blocks until the rounds are over or `should_stop`; waits for all in flight.

        Args:
            rounds: first indices of the blocks of each round.
            should_stop: asked before every round, with its number.

        Returns:
            The samples that failed, and whether the loop was stopped.

        Raises:
            Exception: the first that a stage raised; what was written before stays.
        """
        failed: list[Any] = []
        errors: list[BaseException] = []
        lock, on_their_way = threading.Lock(), threading.Semaphore(self._depth)
        queued = threading.Semaphore(2 * self._workers)
        stopped = False

        def attempt(task: Callable[..., Any], *arguments: Any) -> Any:
            """The result of the task; None if it or an earlier one raised."""
            if errors:
                return None
            try:
                return task(*arguments)
            except BaseException as error:
                errors.append(error)
                return None

        def write(first: int, content: Any) -> None:
            written, bad = self._stages.write(first, content)
            with lock:
                failed.extend(bad)
                ready = list(self._stages.shards_ready(first, written))
            self._stages.watch(written, len(bad))
            for shard in ready:
                finisher.submit(attempt, self._stages.finish, shard)

        def fetch(blocks: Sequence[int], handle: Any) -> None:
            pairs = attempt(lambda: [*zip(blocks, self._stages.fetch(handle), strict=True)])
            for first, content in pairs or ():
                queued.acquire()
                writing = writers.submit(attempt, write, first, content)
                writing.add_done_callback(lambda _: queued.release())
            on_their_way.release()

        with (
            ThreadPoolExecutor(1, "finish") as finisher,
            ThreadPoolExecutor(self._workers, "write") as writers,
            ThreadPoolExecutor(self._depth, "fetch") as fetcher,
        ):
            try:
                for number, blocks in enumerate(rounds):
                    if stopped := should_stop(number):
                        break
                    on_their_way.acquire()
                    if errors:
                        break
                    fetcher.submit(fetch, blocks, self._stages.start(blocks))
            except BaseException as error:
                errors.insert(0, error)
            # In the order of the stages.
            fetcher.shutdown()
            writers.shutdown()
            finisher.shutdown()
        if errors:
            raise errors[0]
        return failed, stopped
