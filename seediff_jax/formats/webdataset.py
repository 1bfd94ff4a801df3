"""Tar files for sequential reading, as webdataset and Hugging Face datasets read them."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from seediff_jax.encoding import EncodedSample
from seediff_jax.formats.base import Format, json_text, scratch_file, stem

# The mask is stored in grey: decoders that turn every picture into RGB would apply a palette.
_ENDINGS = {
    "image.jpg": "jpg",
    "mask_grey.png": "mask.png",
    "soft.npz": "soft.npz",
    "soft.png": "soft.png",
    "seeds.npz": "seeds.npz",
}


class WebDataset(Format):
    """`webdataset/shard-00000.tar`, with these members a sample:

        000000.jpg         image
        000000.mask.png    class ids in grey, 255 ignore
        000000.json        the manifest's row
        000000.soft.npz    or 000000.soft.png: soft masks, when asked for
        000000.seeds.npz   seed maps, when asked for

    Members have neither dates nor owners.
    """

    name = "webdataset"

    def __init__(self, class_names: Sequence[str], soft: str | None = None, seeds: bool = False):
        super().__init__(class_names, soft, seeds)
        self.parts = self.shard_parts = ("image.jpg", "mask_grey.png", *self._map_parts)

    def write_shard(
        self, number: int, samples: Iterator[EncodedSample], scratch: Path
    ) -> dict[str, Path]:
        """Writes the tar file of a shard."""
        path = f"webdataset/shard-{number:05d}.tar"
        file = scratch_file(scratch, path)
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                members = {_ENDINGS[part]: sample.files[part] for part in self.shard_parts}
                members["json"] = json_text(sample.record).encode("ascii")
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"{stem(sample.index)}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return {path: file}
