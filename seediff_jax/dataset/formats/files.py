"""Pictures in folders, one file per part: the default, for people and for any loader."""

from seediff_jax.dataset.formats.base import Format, stem


class Files(Format):
    """`image/000000.png`, `mask/`, `overlay/`, and on request `soft/`, `seeds/`, `strips/`..."""

    name = "files"
    parts = ("image.png", "mask.png", "overlay.png")

    def sample_files(self, index: int) -> dict[str, str]:
        """Maps relative paths to parts, as in `image/000000.png` to `image.png`."""
        paths = {}
        for part in self.parts:
            folder, _, ending = part.partition(".")
            paths[f"{folder}/{stem(index)}.{ending}"] = part
        return paths
