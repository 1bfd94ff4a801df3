"""The models that come with the package, the classes that they draw and the words they know."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.prompts.class_lists import SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompts.names import name_key


@dataclasses.dataclass(frozen=True)
class EmbeddedModel:
    """What an embedded model can draw.

    Attributes:
        classes: names of all classes.
        default_classes: those of a run that names none.
        other_names: further names that its vocabulary has.
        other_words: of its captions, besides those names.
    """

    classes: tuple[str, ...]
    default_classes: tuple[str, ...]
    other_names: tuple[str, ...] = ()
    other_words: tuple[str, ...] = ()

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """All words that it was trained on, in small letters."""
        return frozenset({*self.classes, *self.other_names, *self.other_words})


_CAPTIONS = tuple(
    "a an and background image long of on photo picture plain faded striped shot".split()
)

EMBEDDED_MODELS: Mapping[str, EmbeddedModel] = {
    "stickers": EmbeddedModel(
        classes=tuple(name for name in VOC_CLASSES if name != "diningtable"),
        default_classes=tuple("boat bus car chair cow motorbike pottedplant tvmonitor".split()),
        other_names=tuple(
            "airplane plane bike automobile kitten puppy motorcycle man woman couch tv television"
            " monitor".split()
        ),
        other_words=(*_CAPTIONS, "cloudy", "potted", "plant"),
    ),
    "shapes": EmbeddedModel(
        classes=SHAPES_CLASSES,
        default_classes=SHAPES_CLASSES,
        other_words=(*_CAPTIONS, "dotted"),
    ),
}
DEFAULT_MODEL = "stickers"


def split_by_model(model: str, classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits classes into those that a model draws and those that it does not know.

    A model that is not embedded may draw anything: all classes are in the first part.
    """
    if model not in EMBEDDED_MODELS:
        return tuple(classes), ()
    embedded = EMBEDDED_MODELS[model]
    known = {name_key(name) for name in (*embedded.classes, *embedded.other_names)}
    drawn = tuple(name for name in classes if name_key(name) in known)
    return drawn, tuple(name for name in classes if name_key(name) not in known)


def require_drawn(model: str, unknown: Sequence[str]) -> None:
    """Refuses classes that an embedded model does not draw.

    Raises:
        UserError: there are any.
    """
    if unknown:
        names = EMBEDDED_MODELS[model].classes
        raise UserError(
            f"the embedded model {model!r} does not draw {listed(map(quoted, unknown))}; it draws "
            f"{', '.join(names)}; give --model another one for other classes"
        )


def require_known_words(model: str, prompt: str, what: str = "prompt") -> None:
    """Refuses a prompt with words that an embedded model was not trained on.

    Its tokenizer may spell them in pieces, which mean nothing to the model.

    Raises:
        UserError: there are any; `what` is the name of the text.
    """
    if model not in EMBEDDED_MODELS:
        return
    embedded = EMBEDDED_MODELS[model]
    words = re.findall(r"\w+|[^\w\s]", prompt.lower())
    if unknown := [*dict.fromkeys(word for word in words if word not in embedded.words)]:
        raise UserError(
            f"the embedded model {model!r} does not know {listed(map(quoted, unknown))} in the "
            f"{what} {quoted(prompt)}; it draws {', '.join(embedded.classes)}, and knows "
            f"{', '.join(embedded.other_words)}; give --model another one for other words"
        )
