"""PromptRecord: a prompt with the classes of its label map; PromptTable holds a million of them."""

import array
import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, overload

from seediff_jax.errors import UserError, quoted
from seediff_jax.prompts.names import clean_names, require_classes, require_text


@dataclasses.dataclass(frozen=True, slots=True)
class PromptRecord:
    """A prompt and the classes of its label map.

    Attributes:
        prompt: the text.
        classes: in order: class k has the label k + 1.
        unnamed: the last of `classes`, which the prompt does not name, see `class_columns`.

    Raises:
        UserError: for a blank prompt, no class, or two classes with the same name.
    """

    prompt: str
    classes: tuple[str, ...]
    unnamed: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise UserError(f"a prompt must be a text that is not blank, got {quoted(self.prompt)}")
        require_text(self.prompt, "prompt")
        try:
            names = clean_names(self.classes)
        except (UserError, TypeError):
            names = require_classes(self.classes, f"prompt {quoted(self.prompt)}")
        count = len(self.unnamed)
        if count and tuple(self.classes)[-count:] != tuple(self.unnamed):
            raise UserError(
                f"unnamed={quoted(self.unnamed)} must be the last of classes={quoted(self.classes)}"
            )
        object.__setattr__(self, "classes", names)
        object.__setattr__(self, "unnamed", names[len(names) - count :])

    @property
    def named(self) -> tuple[str, ...]:
        """The classes that the prompt names."""
        return self.classes[: len(self.classes) - len(self.unnamed)]


class ClassList(NamedTuple):
    """The classes of a prompt, see `PromptRecord`."""

    classes: tuple[str, ...]
    unnamed: tuple[str, ...] = ()


class PromptTable(Sequence[PromptRecord]):
    """Stores prompt records compactly: texts in one buffer, and each list of classes once."""

    def __init__(self, records: Iterable[PromptRecord] = ()):
        self.class_lists: list[ClassList] = []
        self._texts = bytearray()
        self._ends = array.array("Q", [0])
        self._list_ids = array.array("I")
        ids: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        for record in records:
            self._texts += record.prompt.encode()
            self._ends.append(len(self._texts))
            self._list_ids.append(ids.setdefault((record.classes, record.unnamed), len(ids)))
        self.class_lists.extend(ClassList(*each) for each in ids)

    def __len__(self) -> int:
        return len(self._list_ids)

    @overload
    def __getitem__(self, place: int) -> PromptRecord: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[PromptRecord, ...]: ...
    def __getitem__(self, place: int | slice) -> PromptRecord | tuple[PromptRecord, ...]:
        if isinstance(place, slice):
            return tuple(self[k] for k in range(*place.indices(len(self))))
        place = range(len(self))[place]
        return PromptRecord(self.prompt_of(place), *self.classes_of(place))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(one == two for one, two in zip(self, other, strict=True))
        )

    __hash__ = None

    def prompt_of(self, place: int) -> str:
        """The text of one prompt."""
        return self._texts[self._ends[place] : self._ends[place + 1]].decode()

    def classes_of(self, place: int) -> ClassList:
        """The classes of one prompt."""
        return self.class_lists[self._list_ids[place]]

    def count_lists(self, places: Iterable[int] | None = None) -> list[tuple[ClassList, int]]:
        """Counts the prompts with each list of classes, of all prompts or of some."""
        ids = self._list_ids if places is None else map(self._list_ids.__getitem__, places)
        return [(self.class_lists[k], count) for k, count in collections.Counter(ids).items()]

    def rename_classes(self, names: Mapping[str, str]) -> "PromptTable":
        """Returns the same prompts with other names of their classes."""
        table = PromptTable()
        table._texts, table._ends, table._list_ids = self._texts, self._ends, self._list_ids
        table.class_lists = [
            ClassList(*(tuple(names[name] for name in part) for part in each))
            for each in self.class_lists
        ]
        return table

    def json_rows(self) -> Iterator[str]:
        """Yields each record as the JSON of [prompt, named classes, unnamed classes]."""
        ends = [
            f", {json.dumps(classes[: len(classes) - len(unnamed)])}, {json.dumps(unnamed)}]"
            for classes, unnamed in self.class_lists
        ]
        for place, list_id in enumerate(self._list_ids):
            yield f"[{json.dumps(self.prompt_of(place))}{ends[list_id]}"
