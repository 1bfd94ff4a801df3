"""Pictures in folders, a file a part: the default, for people and for any loader."""

from collections.abc import Sequence

from seediff_jax.formats.base import Format, stem


class Files(Format):
    """`image/000000.png`, `mask/`, `overlay/`, and `soft/` and `seeds/` when asked for."""

    name = "files"

    def __init__(self, class_names: Sequence[str], soft: str | None = None, seeds: bool = False):
        super().__init__(class_names, soft, seeds)
        self.parts = ("image.png", "mask.png", "overlay.png", *self._map_parts)

    def sample_files(self, index: int) -> dict[str, str]:
        """Relative path -> part, as in `image/000000.png` -> `image.png`."""
        paths = {}
        for part in self.parts:
            folder, _, ending = part.partition(".")
            paths[f"{folder}/{stem(index)}.{ending}"] = part
        return paths
