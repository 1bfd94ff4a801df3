"""BalancedOrder: prompts repeated so that each class is shown as often as any other. Host only.

A turn is given to the class that was shown least so far, the first of them where several were. Of
the prompts that show it, that one is taken whose classes have the least excess, which is how much
oftener than the least class they were shown, in sum; then the one taken least often; then the
first.

Where each prompt shows one class, the classes differ by one turn at most, at any time: a turn adds
one to a class that was among the least. Where prompts show several, the counts may differ more: a
class that comes with all others cannot be held back.
"""

import array
import threading
from collections.abc import Sequence

import numpy as np

from seediff_jax.arrays import Int

_GroupTable = tuple[Int[np.ndarray, " groups"], Int[np.ndarray, "groups classes"]]


class BalancedOrder:
    """The sequence of prompts without end, as `order[turn]`; it is worked out as far as asked.

    A turn costs some tens of microseconds and 4 bytes when it is first reached, and nothing later.
    Threads may share it.

    Args:
        classes: of each prompt, at least one.
    """

    def __init__(self, classes: Sequence[Sequence[str]]):
        ids = {name: k for k, name in enumerate(dict.fromkeys(n for row in classes for n in row))}
        # Prompts with the same classes are a group, which is gone through in order.
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, names in enumerate(classes):
            groups.setdefault(tuple(sorted({ids[name] for name in names})), []).append(place)
        self._shown = [np.array(shown) for shown in groups]
        self._places = [np.array(places) for places in groups.values()]
        # The next prompt of each group; behind all others, once for each time it was taken before.
        self._next = np.array([places[0] for places in groups.values()])
        self._taken = [0] * len(groups)
        self._counts = np.zeros(len(ids) + 1, np.int64)  # of each class, and of none
        self._groups_of = _groups_by_class([*groups], len(ids))
        self._num_prompts = len(classes)
        self._order = array.array("i")
        self._lock = threading.Lock()

    def __getitem__(self, turn: int) -> int:
        if turn >= len(self._order):
            with self._lock:
                while turn >= len(self._order):
                    self._order.append(self._take())
        return self._order[turn]

    def _take(self) -> int:
        """Chooses the prompt of the next turn."""
        least = np.argmin(self._counts[:-1])
        excess = self._counts - self._counts[least]
        excess[-1] = 0
        groups, rows = self._groups_of[least]
        excesses = excess[rows].sum(axis=1)
        groups = groups[excesses == excesses.min()]
        group = groups[np.argmin(self._next[groups])]
        places = self._places[group]
        place = places[self._taken[group] % len(places)]
        self._taken[group] += 1
        rounds, k = divmod(self._taken[group], len(places))
        self._next[group] = rounds * self._num_prompts + places[k]
        self._counts[self._shown[group]] += 1
        return int(place)


def _groups_by_class(groups: Sequence[Sequence[int]], num_classes: int) -> list[_GroupTable]:
    """Of each class the groups that show it, and what each of them shows.

    Rows are padded with `num_classes`, the class of none.
    """
    found: list[list[int]] = [[] for _ in range(num_classes)]
    for g, shown in enumerate(groups):
        for class_id in shown:
            found[class_id].append(g)
    tables = []
    for members in found:
        rows = np.full((len(members), max(len(groups[g]) for g in members)), num_classes)
        for row, g in zip(rows, members, strict=True):
            row[: len(groups[g])] = groups[g]
        tables.append((np.array(members), rows))
    return tables
