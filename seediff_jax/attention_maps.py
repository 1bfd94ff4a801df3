"""AttentionMaps: what the UNet records and the mask kernels read."""

import os
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from flax import struct

from seediff_jax.array_typing import Array
from seediff_jax.errors import UserError, shown

_CROSS, _SELF, _KEPT, _EVIDENCE = "cross_attention", "self_attention_", "kept_", "evidence"


@struct.dataclass
class AttentionMaps:
    """Attention probabilities of one UNet call, or their mean over the steps of a sampling run.

    Heads are summed, so a row of `self_attention` sums to the number of heads of its layer. All
    values are float32, whatever the precision of the UNet.

    Attributes:
        cross_attention: float32 `[b, layers, n0, l]`: every recorded cross-attention layer of the
            seed level (n0 locations), one column per text token; or `[b, layers, n0, c]`, one
            column per class, where the tokens were projected on the classes while recording.
        self_attention: `{side: float32 [b, n, n]}` with n = side * side: one recorded layer per
            level, query locations by key locations. Where images are not square, the key of a level
            is its height, and its width is n / height.
        kept: `{layer: float32 [b, calls, heads, n, m]}`: the attention of `capture.kept_layers`,
            each UNet call and head by itself. m is the number of key locations of self-attention
            (attn1), or of the columns of cross-attention (attn2): in `generate`, one per class and
            then one per token of the prompt.
        evidence: float32 `[b, h, w, c, 2]`, what the name of each class explains of each location
            of the latents, see `sampling.evidence`; None if it was not asked for.
    """

    cross_attention: Array
    self_attention: dict[int, Array]
    kept: dict[str, Array] = struct.field(default_factory=dict)
    evidence: Array | None = None

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides (heights) of the recorded levels, coarse to fine; the first is the seed level."""
        return tuple(sorted(self.self_attention))

    def to_arrays(self, dtype: str = "float32") -> dict[str, np.ndarray]:
        """Copies the maps to NumPy.

        Their names are "cross_attention", "self_attention_SIDE", "kept_LAYER" and "evidence".
        """
        levels = {f"{_SELF}{side}": self.self_attention[side] for side in self.sides}
        kept = {f"{_KEPT}{name}": array for name, array in self.kept.items()}
        maps = {_CROSS: self.cross_attention, **levels, **kept}
        if self.evidence is not None:
            maps[_EVIDENCE] = self.evidence
        return {name: np.asarray(array).astype(dtype) for name, array in maps.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "AttentionMaps":
        """Makes float32 maps from the result of `to_arrays`.

        Raises:
            UserError: a name is missing or unknown, or shapes do not fit together.
        """
        kept = [name for name in arrays if name.startswith(_KEPT)]
        others = (name for name in arrays if name not in (_CROSS, _EVIDENCE, *kept))
        sides = {name: name.removeprefix(_SELF) for name in others}
        if _CROSS not in arrays or not all(
            name.startswith(_SELF) and side.isdecimal() for name, side in sides.items()
        ):
            raise UserError(
                f"expected arrays {_CROSS} and {_SELF}SIDE, not {', '.join(arrays) or 'none'}"
            )
        found = {name: np.asarray(array) for name, array in arrays.items()}
        shapes = {int(side): found[name].shape for name, side in sides.items()}
        numeric = not any(array.dtype.kind in "cmMOSU" for array in found.values())
        is_evidence = _EVIDENCE not in found or _fits(found[_EVIDENCE].shape, found[_CROSS].shape)
        if not numeric or not is_evidence or not _are_levels(found[_CROSS].shape, shapes):
            texts = [f"{name} {array.dtype} {list(array.shape)}" for name, array in found.items()]
            raise UserError(f"{', '.join(texts)} are not attention maps of one image or batch")
        in_float32 = {name: array.astype(np.float32) for name, array in found.items()}
        levels = {int(side): in_float32[name] for name, side in sides.items()}
        layers = {name.removeprefix(_KEPT): in_float32[name] for name in kept}
        return cls(in_float32[_CROSS], levels, layers, in_float32.get(_EVIDENCE))

    def save(self, path: str | os.PathLike[str], dtype: str = "float32") -> None:
        """Writes an .npz file of `to_arrays`; "float16" halves its size."""
        with open(path, "wb") as file:
            np.savez(file, **self.to_arrays(dtype))

    @classmethod
    def load(cls, path: str | os.PathLike[str] | BinaryIO) -> "AttentionMaps":
        """Reads what `save` wrote, as float32.

        Raises:
            UserError: it is not such a file.
            OSError: it cannot be read.
        """
        try:
            is_path = isinstance(path, (str, os.PathLike))
            with open(path, "rb") if is_path else path as file, np.load(file) as arrays:
                return cls.from_arrays(dict(arrays))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged file makes NumPy and zipfile raise
            name = path if is_path else "it"
            raise UserError(f"{name} has no attention maps: {shown(str(error), 500)}") from error


def _are_levels(cross: tuple[int, ...], levels: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether shapes are those of maps of one image or batch."""
    if len(cross) < 3:
        return False
    *batch, _, locations, _ = cross
    for side, shape in levels.items():
        n = shape[-1] if shape else 0
        if min(side, n) < 1 or n % side or [*shape] != [*batch, n, n]:
            return False
    return not levels or levels[min(levels)][-1] == locations


def _fits(evidence: tuple[int, ...], cross: tuple[int, ...]) -> bool:
    """Whether shapes of evidence and of cross-attention have the same batch and classes."""
    if len(cross) < 3 or len(evidence) != len(cross) + 1:
        return False
    *batch, height, width, count, two = evidence
    return [*batch, count, two] == [*cross[:-3], cross[-1], 2] and min(height, width) > 0
