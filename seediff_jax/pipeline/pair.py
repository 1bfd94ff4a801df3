"""Pair: one image of Pairs with its masks, on the host, for notebooks."""

import base64
import dataclasses
import html
import io
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from seediff_jax.dataset.pictures import contact_sheet, overlay
from seediff_jax.errors import UserError, listed, quoted
from seediff_jax.masks.image_ops import grid_size, min_max, resize_cubic
from seediff_jax.prompts.names import name_key
from seediff_jax.prompts.tokenizer import overlapping_tokens

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pair:
    """One image with its masks; c is the number of its classes, without padding.

    Notebooks show it as a picture: image, mask and overlay side by side.

    Attributes:
        prompt: the text of the image.
        classes: c names; class k has the label k + 1.
        image: uint8 `[H, W, 3]`.
        label_map: uint8 `[H, W]`: 0 background, k + 1 the k-th class, 255 ignore.
        soft_masks: float32 `[c, H, W]` in [0, 1].
        cross_attention: float32 `[layers, n0, c]`, at the seed level, one column per class.
        seed_counts: int32 `[c]`.
        presence: float32 `[c]` in [0, 1]; low values say that the image may not show the class.
        tokens: for each token of the prompt the characters [start, end) that it stands for; 0, 0
            for tokens without text.
        token_attention: float32 `[layers, n0, l]`, likewise, one column per token; or None.
        network_size: height and width that the networks saw; None is those of the image.
        other_methods: by their names, the same image with masks by each method after the first.
    """

    prompt: str
    classes: tuple[str, ...]
    image: np.ndarray
    label_map: np.ndarray
    soft_masks: np.ndarray
    cross_attention: np.ndarray
    seed_counts: np.ndarray
    presence: np.ndarray
    tokens: tuple[tuple[int, int], ...] = ()
    token_attention: np.ndarray | None = None
    network_size: tuple[int, int] | None = None
    other_methods: Mapping[str, "Pair"] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        areas = [
            f"{name} {np.mean(self.label_map == k):.1%}" for k, name in enumerate(self.classes, 1)
        ]
        return f"Pair({self.prompt!r}, {width} x {height}, {', '.join(areas)})"

    def overlay(self) -> "Image":
        """Draws the mask over the image."""
        from PIL import Image

        return Image.fromarray(overlay(self.image, self.label_map))

    def picture(self) -> "Image":
        """Draws image, mask and overlay side by side, with the prompt and the classes below.

        The overlays of other methods follow.
        """
        others = [other.label_map for other in self.other_methods.values()]
        row = (self.image, self.label_map, self.prompt, others)
        headings = ("image", "mask", "overlay", *self.other_methods) if others else ()
        names = dict(enumerate(self.classes, 1))
        tile = min(max(self.label_map.shape), 320)
        return contact_sheet([row], class_names=names, headings=headings, tile=tile)

    def show(self) -> None:
        """Shows `picture`: in the output of a notebook's cell, or in the viewer of the desktop."""
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):
            sys.modules["IPython"].display.display(self)
        else:
            self.picture().show(self.prompt)

    def class_number(self, name: str) -> int:
        """Returns the place of a class in `classes`, whatever its spelling.

        Raises:
            UserError: it is not a class of this image.
        """
        keys = [name_key(each) for each in self.classes]
        if name_key(name) not in keys:
            raise UserError(
                f"{quoted(name)} is not a class of this image, which has {listed(self.classes)}; "
                "to see any word of the prompt, give it to `generate` as a class"
            )
        return keys.index(name_key(name))

    def token_positions(self, words: str, occurrence: int | None = None) -> tuple[int, ...]:
        """Finds the tokens of a word, or of several in a row, in the prompt.

        Args:
            words: as in the prompt; capitals do not matter.
            occurrence: which mention, from 0; None is all of them.

        Raises:
            UserError: the prompt does not mention them so often.
        """
        words = unicodedata.normalize("NFC", words)
        first, last = (r"\b" if re.match(r"\w", edge) else "" for edge in (words[:1], words[-1:]))
        pattern = f"{first}{re.escape(words)}{last}"
        spans = [match.span() for match in re.finditer(pattern, self.prompt, re.IGNORECASE)]
        if not words or not spans:
            raise UserError(f"the prompt {quoted(self.prompt)} has no {quoted(words)}")
        if occurrence is not None:
            if not 0 <= occurrence < len(spans):
                raise UserError(
                    f"occurrence={occurrence} must lie in 0..{len(spans) - 1}: the prompt "
                    f"{quoted(self.prompt)} has {quoted(words)} {len(spans)} times"
                )
            spans = [spans[occurrence]]
        return tuple(overlapping_tokens([(0, *span) for span in self.tokens], spans))

    def heat_map(self, words: str | Sequence[int], occurrence: int | None = None) -> np.ndarray:
        """How much each pixel attends to a word: the mean of all layers, stretched to [0, 1].

        This is the cross-attention of the seed level before seeds are found in it, as in DAAM
        (arXiv 2210.04885). Several tokens are averaged.

        Args:
            words: a word or several in a row of the prompt, or one of `classes` in any spelling,
                with all its mentions; or positions of tokens, where 0 is the start token.
            occurrence: which mention of the words, from 0; None is all of them.

        Returns:
            float32 `[H, W]`.

        Raises:
            UserError: neither the prompt nor the classes have them.
        """
        keys = [name_key(each) for each in self.classes]
        if isinstance(words, str) and occurrence is None and name_key(words) in keys:
            column = self.cross_attention[..., keys.index(name_key(words))]
        else:
            column = self._token_column(words, occurrence)
        column = column.mean(axis=0)
        size = self.network_size or self.label_map.shape
        field = jnp.asarray(column).reshape(grid_size(len(column), size))
        return np.asarray(min_max(jnp.maximum(resize_cubic(field, self.label_map.shape), 0)))

    def _token_column(self, words: str | Sequence[int], occurrence: int | None) -> np.ndarray:
        """The mean of the columns of some tokens, float32 `[layers, n0]`."""
        if self.token_attention is None:
            raise UserError(f"{quoted(words)}: attention to single tokens was not recorded")
        last = self.token_attention.shape[-1] - 1
        positions = words
        if isinstance(words, str):
            try:
                positions = self.token_positions(words, occurrence)
            except UserError as error:
                classes = listed(self.classes)
                raise UserError(f"{error}; its classes are {classes}") from None
        if not len(positions) or not all(0 <= position <= last for position in positions):
            raise UserError(f"tokens {list(positions)} must be at least one position in 0..{last}")
        return self.token_attention[..., list(positions)].mean(axis=-1)

    def _repr_html_(self) -> str:
        content = io.BytesIO()
        self.picture().save(content, "PNG")
        picture = base64.b64encode(content.getvalue()).decode()
        return f'<img alt="{html.escape(self.prompt)}" src="data:image/png;base64,{picture}">'
