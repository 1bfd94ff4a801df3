"""Tar files for sequential reading, as webdataset and Hugging Face datasets read them."""

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.formats.base import Format, Recover, json_text, scratch_file, stem
from seediff_jax.dataset.formats.names import ATTENTION_PART, OTHER_METHODS_PART

# Decoders that turn every picture into RGB would apply a palette; so the mask is grey.
_ENDINGS = {
    "image.jpg": "jpg",
    "mask_grey.png": "mask.png",
    "soft.npz": "soft.npz",
    "soft.png": "soft.png",
    "seeds.npz": "seeds.npz",
    ATTENTION_PART: ATTENTION_PART,
    OTHER_METHODS_PART: OTHER_METHODS_PART,
}


class WebDataset(Format):
    """`webdataset/shard-00000.tar`, with these members per sample:

        000000.jpg         image
        000000.mask.png    class ids in grey, 255 ignore
        000000.json        the record
        000000.soft.npz    or 000000.soft.png: soft masks, when asked for
        000000.seeds.npz   seed maps, when asked for
        000000.attention.npz, 000000.methods.png
                           attention and masks of further methods, when asked for

    Members have no dates and no owners.
    """

    name = "webdataset"
    parts = shard_parts = ("image.jpg", "mask_grey.png")

    def write_shard(
        self, number: int, samples: Iterator[EncodedSample], scratch: Path
    ) -> dict[str, Path]:
        """Writes the tar file of a shard."""
        path = f"webdataset/shard-{number:05d}.tar"
        with (
            scratch_file(scratch, path) as file,
            tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for sample in samples:
                members = {_ENDINGS[part]: sample.files[part] for part in self.shard_parts}
                members["json"] = json_text(sample.record).encode("ascii")
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"{stem(sample.index)}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return {path: file}

    def open_shard(self, number: int, read: Callable[[str], bytes], scratch: Path) -> Recover:
        """Reads the members of the tar file of a shard; those after damage in it may be lost."""
        del scratch
        content = read(f"webdataset/shard-{number:05d}.tar")
        tar = tarfile.open(fileobj=io.BytesIO(content))
        members: dict[str, tarfile.TarInfo] = {}
        with suppress(tarfile.TarError):
            for member in tar:
                if member.size < len(content):  # a sparse member could fill the memory
                    members[member.name] = member

        def recover(record: Mapping[str, Any]) -> dict[str, bytes]:
            return {
                part: tar.extractfile(members[f"{stem(record['index'])}.{_ENDINGS[part]}"]).read()
                for part in self.shard_parts
            }

        return recover
