"""The locks that this process holds, so that it can release them when it ends at once.

Imports nothing of the package: a signal may end the program before anything else is imported.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_releases: list[Callable[[], None]] = []


@contextmanager
def noted(release: Callable[[], None]) -> Iterator[None]:
    """Registers, while the block runs, how to release the lock that it holds."""
    _releases.append(release)
    try:
        yield
    finally:
        _releases.remove(release)


def release_all(seconds: float) -> None:
    """Releases all locks at the same time; waits at most `seconds` for each."""
    threads = [threading.Thread(target=release, daemon=True) for release in _releases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
