"""PromptPlan: which prompt an image shows, which depends only on its index. Host only.

    index -> turn = index // images_per_prompt -> place in the order -> record

The order cycles through the prompts as listed, or shuffled once, or balanced over classes. It does
not depend on the number of images, so a longer run starts with the images of a shorter one.
"""

import array
import dataclasses
import functools
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from seediff_jax.errors import UserError
from seediff_jax.prompts.prompt_record import PromptRecord, PromptTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """Prompts, and the order in which images show them.

    Attributes:
        records: the prompts as their source lists them; the plan keeps them as a PromptTable.
        synonyms: words that name classes in these prompts, see `MentionFinder`; masks need them.
        images_per_prompt: number of successive images that show one prompt.
        shuffle_seed: seed of a random order, 0 to 2**64 - 1; None keeps the order of the records.
        balance_classes: repeat prompts so that all classes are shown equally often.

    Raises:
        UserError: no prompt, or a number out of range.
    """

    records: Sequence[PromptRecord]
    synonyms: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    images_per_prompt: int = 1
    shuffle_seed: int | None = None
    balance_classes: bool = False

    def __post_init__(self):
        if not self.records:
            raise UserError("there is no prompt; at least one is needed")
        if not isinstance(self.records, PromptTable):
            object.__setattr__(self, "records", PromptTable(self.records))
        if self.images_per_prompt < 1:
            raise UserError(f"images_per_prompt={self.images_per_prompt} must be 1 or more")
        if self.shuffle_seed is not None and not 0 <= self.shuffle_seed < 2**64:
            raise UserError(f"shuffle_seed={self.shuffle_seed} must lie in 0..2**64 - 1")

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.records)

    @property
    def num_images(self) -> int:
        """Images of one round, `images_per_prompt` of each prompt; a run may have more or fewer."""
        return len(self.records) * self.images_per_prompt

    @functools.cached_property
    def max_classes(self) -> int:
        """The largest number of classes of a prompt."""
        return max(len(each.classes) for each in self.records.class_lists)

    @functools.cached_property
    def has_unnamed(self) -> bool:
        """Whether any prompt has unnamed classes."""
        return any(each.unnamed for each in self.records.class_lists)

    def record(self, index: int) -> PromptRecord:
        """Returns the prompt of image `index`, which may be any number from 0."""
        if index < 0:
            raise ValueError(f"index={index} must not be negative")
        return self.records[self.place_of(index // self.images_per_prompt)]

    def place_of(self, turn: int) -> int:
        """Returns the place in `records` of the prompt of a turn."""
        place = self._balanced[turn] if self.balance_classes else turn % len(self.records)
        return place if self._order is None else int(self._order[place])

    def settings(self) -> dict[str, Any]:
        """Returns everything that `record` depends on, as JSON values."""
        return {
            "num_prompts": len(self.records),
            "prompts_sha256": self._sha256,
            "images_per_prompt": self.images_per_prompt,
            "shuffle_seed": self.shuffle_seed,
            "balance_classes": self.balance_classes,
        }

    @functools.cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        for row in self.records.json_rows():
            digest.update(row.encode())
        words = {name: list(words) for name, words in self.synonyms.items()}
        digest.update(json.dumps(words, sort_keys=True).encode())
        return digest.hexdigest()

    @functools.cached_property
    def _order(self) -> np.ndarray | None:
        if self.shuffle_seed is None:
            return None
        return shuffled_order(len(self.records), self.shuffle_seed)

    @functools.cached_property
    def _balanced(self) -> "BalancedOrder":
        places = range(len(self.records)) if self._order is None else self._order
        return BalancedOrder(self.records.classes_of(place).classes for place in places)


def shuffled_order(count: int, seed: int) -> np.ndarray:
    """Returns a random order of 0..count - 1, int64 [count], the same on all machines.

    It sorts by the raw 64-bit numbers of Philox 4x64-10 with the key `seed`, which NumPy promises
    to keep; it does not promise to keep `Generator.permutation`.
    """
    keys = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(keys, kind="stable")


class BalancedOrder:
    """The endless order of prompts: `order[turn]` is a place in their list, computed on demand.

    A turn costs some tens of microseconds and 4 bytes when it is first reached, and nothing later.
    Threads may share it.

    Args:
        classes: the classes of each prompt, at least one.
    """

    def __init__(self, classes: Iterable[Sequence[str]]):
        ids: dict[str, int] = {}
        # Prompts with the same classes are a group, whose prompts are shown in order.
        groups: dict[tuple[int, ...], array.array[int]] = {}
        place = -1
        for place, names in enumerate(classes):
            shown = {ids.setdefault(name, len(ids)) for name in names}
            groups.setdefault(tuple(sorted(shown)), array.array("i")).append(place)
        # The classes of each group, padded with an id that no class has.
        self._classes_of = np.full((len(groups), max(map(len, groups))), len(ids))
        for row, shown in zip(self._classes_of, groups, strict=True):
            row[: len(shown)] = shown
        shows = [(self._classes_of == k).any(axis=1) for k in range(len(ids))]
        self._groups_of = [np.flatnonzero(each) for each in shows]
        self._places = [np.array(places) for places in groups.values()]
        # The next prompt of each group, plus the number of all prompts per earlier round.
        self._next = np.array([places[0] for places in groups.values()])
        self._taken = [0] * len(groups)
        self._counts = np.zeros(len(ids) + 1, np.int64)  # of each class, and of the padding
        self._num_prompts = place + 1
        self._order = array.array("i")
        self._lock = threading.Lock()

    def __getitem__(self, turn: int) -> int:
        if turn >= len(self._order):
            with self._lock:
                while turn >= len(self._order):
                    self._order.append(self._take())
        return self._order[turn]

    def _take(self) -> int:
        """Chooses the prompt of the next turn, by the smallest total excess of its classes."""
        least = np.argmin(self._counts[:-1])
        excess = self._counts - self._counts[least]
        excess[-1] = 0
        groups = self._groups_of[least]
        excesses = excess[self._classes_of[groups]].sum(axis=1)
        groups = groups[excesses == excesses.min()]
        group = groups[np.argmin(self._next[groups])]
        places = self._places[group]
        place = places[self._taken[group] % len(places)]
        self._taken[group] += 1
        rounds, k = divmod(self._taken[group], len(places))
        self._next[group] = rounds * self._num_prompts + places[k]
        self._counts[self._classes_of[group]] += 1
        return int(place)
