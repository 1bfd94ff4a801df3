"""PromptPlan: which prompt the image of each index shows; a function of the index alone.

    index -> turn = index // images_per_prompt -> place in the order -> record

The order goes round the prompts as they are listed; or round them shuffled, once and for all; or,
balanced, it takes at each turn a prompt of the class that was shown least. Host only. None of this
depends on the number of images: a longer run begins with the images of a shorter one.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seediff_jax.arrays import Int, typechecked
from seediff_jax.class_balance import BalancedOrder
from seediff_jax.prompt_records import PromptRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptPlan:
    """Prompts, and the order in which images show them.

    Attributes:
        records: the prompts as their source lists them.
        synonyms: words that name classes in these prompts, see `class_names.find_mentions`; masks
            need them.
        images_per_prompt: images in succession that show one prompt.
        shuffle_seed: 0 to 2**64 - 1, puts the prompts into a random order; None leaves them.
        balance_classes: repeat prompts so that all classes are shown equally often.

    Raises:
        ValueError: no prompt, or a number out of range.
    """

    records: tuple[PromptRecord, ...]
    synonyms: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    images_per_prompt: int = 1
    shuffle_seed: int | None = None
    balance_classes: bool = False

    def __post_init__(self):
        if not self.records:
            raise ValueError("there is no prompt; at least one is needed")
        if self.images_per_prompt < 1:
            raise ValueError(f"images_per_prompt={self.images_per_prompt} must be 1 or more")
        if self.shuffle_seed is not None and not 0 <= self.shuffle_seed < 2**64:
            raise ValueError(f"shuffle_seed={self.shuffle_seed} must lie in 0..2**64 - 1")

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.records)

    @property
    def num_images(self) -> int:
        """Images of one round, `images_per_prompt` a prompt; a run may have more or less."""
        return len(self.records) * self.images_per_prompt

    @functools.cached_property
    def max_classes(self) -> int:
        """Classes of the prompt that has most."""
        return max(len(record.classes) for record in self.records)

    @functools.cached_property
    def has_unnamed(self) -> bool:
        """Whether any prompt has unnamed classes."""
        return any(record.unnamed for record in self.records)

    def record(self, index: int) -> PromptRecord:
        """The prompt of image `index`, from 0 on without end."""
        if index < 0:
            raise ValueError(f"index={index} must not be negative")
        turn = index // self.images_per_prompt
        place = self._balanced[turn] if self.balance_classes else turn % len(self.records)
        return self.records[place if self._order is None else self._order[place]]

    def settings(self) -> dict[str, Any]:
        """What pins `record` down, as JSON values."""
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
        for record in self.records:
            digest.update(json.dumps([record.prompt, record.named, record.unnamed]).encode())
        words = {name: list(words) for name, words in self.synonyms.items()}
        digest.update(json.dumps(words, sort_keys=True).encode())
        return digest.hexdigest()

    @functools.cached_property
    def _order(self) -> Int[np.ndarray, " n"] | None:
        if self.shuffle_seed is None:
            return None
        return shuffled_order(len(self.records), self.shuffle_seed)

    @functools.cached_property
    def _balanced(self) -> BalancedOrder:
        places = range(len(self.records)) if self._order is None else self._order
        return BalancedOrder([self.records[place].classes for place in places])


@typechecked
def shuffled_order(count: int, seed: int) -> Int[np.ndarray, " n"]:
    """A random order of 0..count - 1, the same on every machine and with every NumPy.

    It sorts by the raw 64-bit numbers of Philox 4x64-10 with the key `seed`, which NumPy promises
    to keep, where it does not promise `Generator.permutation`.
    """
    keys = np.random.Philox(key=seed).random_raw(count)
    return np.argsort(keys, kind="stable")
