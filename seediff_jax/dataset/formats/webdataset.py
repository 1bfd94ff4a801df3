"""Tar files for sequential reading, as webdataset and Hugging Face datasets read them."""

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.formats.base import Format, Made, Recover, json_text, scratch_file, stem

_ENDINGS = {"image.jpg": "jpg", "mask_grey.png": "mask.png"}
"""Endings of members that are not the names of their parts."""


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
    # Decoders that turn every picture into RGB would apply a palette; so the mask is grey.
    parts = shard_parts = ("image.jpg", "mask_grey.png")

    def write_shard(self, number: int, samples: Iterator[EncodedSample], scratch: Path) -> Made:
        """Writes the tar file of a shard."""
        path = f"webdataset/shard-{number:05d}.tar"
        with (
            scratch_file(scratch, path) as file,
            tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for sample in samples:
                contents = {part: sample.files[part] for part in self.shard_parts}
                contents["json"] = json_text(sample.record).encode("ascii")
                for part, content in contents.items():
                    member = tarfile.TarInfo(_member_name(sample.index, part))
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
            names = {part: _member_name(record["index"], part) for part in self.shard_parts}
            return {part: tar.extractfile(members[name]).read() for part, name in names.items()}

        return recover


def _member_name(index: int, part: str) -> str:
    return f"{stem(index)}.{_ENDINGS.get(part, part)}"
