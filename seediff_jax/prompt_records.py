"""PromptRecord: a prompt with the classes of its label map, the unit of every prompt source."""

import dataclasses

from seediff_jax.class_names import require_classes


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """A prompt and the classes of its label map.

    Attributes:
        prompt: the text.
        classes: in order: class k has the label k + 1.
        unnamed: the last of `classes`, which the prompt does not name, see `class_columns`.

    Raises:
        ValueError: for a blank prompt, no class, or two classes with the same name.
    """

    prompt: str
    classes: tuple[str, ...]
    unnamed: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"a prompt must be a text that is not blank, got {self.prompt!r}")
        names = require_classes(self.classes, f"prompt {self.prompt!r}")
        object.__setattr__(self, "classes", names)
        if self.unnamed and names[-len(self.unnamed) :] != tuple(self.unnamed):
            raise ValueError(f"unnamed={self.unnamed!r} must be the last of classes={names!r}")

    @property
    def named(self) -> tuple[str, ...]:
        """The classes that the prompt names."""
        return self.classes[: len(self.classes) - len(self.unnamed)]
