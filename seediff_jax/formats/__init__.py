"""Output formats by the name that users give: each a file of its own, beside `base`."""

from seediff_jax.formats.base import Format
from seediff_jax.formats.files import Files

FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (Files,)}
"""Name -> class, in the order in which help texts list them."""

__all__ = ["FORMATS", "Format"]
