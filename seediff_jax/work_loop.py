"""The loop of a run on one host: devices, encoding and disk at work at the same time.

    main thread        start a round on the devices, at most `depth` rounds ahead of the disk
    one thread         wait for a round, copy it to the host
    a thread a core    encode a block, write it
    one thread         seal shards that are complete

The devices wait only where encoding or the disk is slower than they are. No thread of this module
knows what a model is.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

DEPTH = 3
"""Rounds between their start on the devices and their last write."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """What a loop does with its blocks; each function may raise, which ends the loop.

    Attributes:
        start: begins to make the blocks of a round and returns at once, with what `fetch` needs.
        fetch: waits for a round and copies it to the host; one content a block.
        write: encodes and writes a block; returns how many samples, and those that failed.
        seal: seals a shard.
        complete: shards that a block completes, of which so many samples were written.
        watch: told of every block, and of the number of samples that were written and that failed.
    """

    start: Callable[[Sequence[int]], Any]
    fetch: Callable[[Any], Sequence[Any]]
    write: Callable[[int, Any], tuple[int, list[Any]]]
    seal: Callable[[int], None]
    complete: Callable[[int, int], Iterable[int]]
    watch: Callable[[int, int], None]


class WorkLoop:
    """Runs rounds of blocks through Stages.

    Args:
        stages: what to do.
        workers: threads that encode and write.
        depth: rounds in flight.
    """

    def __init__(self, stages: Stages, workers: int | None = None, depth: int = DEPTH):
        self._stages = stages
        self._workers, self._depth = workers or os.cpu_count() or 1, depth

    def run(
        self, rounds: Iterable[Sequence[int]], should_stop: Callable[[int], bool]
    ) -> tuple[list[Any], bool]:
        """Makes blocks until the rounds are over or one is told to stop; waits for all in flight.

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
        lock, slots = threading.Lock(), threading.Semaphore(self._depth)
        stopped = False

        def attempt(task: Callable[..., Any], *arguments: Any) -> Any:
            """The task's result; None where it, or another one before, raised."""
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
                complete = list(self._stages.complete(first, written))
            self._stages.watch(written, len(bad))
            for shard in complete:
                sealer.submit(attempt, self._stages.seal, shard)

        def fetch(blocks: Sequence[int], handle: Any) -> None:
            contents = attempt(self._stages.fetch, handle)
            if contents is None:
                slots.release()
                return
            left = len(blocks)

            def release_after_the_last(_: Future) -> None:
                nonlocal left
                with lock:
                    left -= 1
                    is_last = left == 0
                if is_last:
                    slots.release()

            for first, content in zip(blocks, contents, strict=True):
                future = writers.submit(attempt, write, first, content)
                future.add_done_callback(release_after_the_last)

        with (
            ThreadPoolExecutor(1, "seal") as sealer,
            ThreadPoolExecutor(self._workers, "write") as writers,
            ThreadPoolExecutor(1, "fetch") as fetcher,
        ):
            try:
                for number, blocks in enumerate(rounds):
                    if stopped := should_stop(number):
                        break
                    slots.acquire()
                    if errors:
                        break
                    fetcher.submit(fetch, blocks, self._stages.start(blocks))
            except BaseException as error:
                errors.insert(0, error)
            # In the order in which work is handed on.
            fetcher.shutdown()
            writers.shutdown()
            sealer.shutdown()
        if errors:
            raise errors[0]
        return failed, stopped
