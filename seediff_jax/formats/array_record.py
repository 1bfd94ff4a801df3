"""ArrayRecord files for random access, as grain reads them, and the reader of their records."""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from seediff_jax.encoding import EncodedSample, decode_mask
from seediff_jax.formats.base import Format, json_text, scratch_file


class ArrayRecord(Format):
    """`array_record/data-00000.array_record`, a record a sample.

    A record is a msgpack map of the encoded parts ("image.jpg", "mask.png" and, when asked for,
    "soft.npz" or "soft.png" and "seeds.npz") and "record", the manifest's row as JSON text.
    `parse_record` reads it. Records are not compressed again, and stand alone (group_size 1), so
    that any of them is read at once.
    """

    name = "array_record"
    libraries = ("array_record",)

    def __init__(self, class_names: Sequence[str], soft: str | None = None, seeds: bool = False):
        super().__init__(class_names, soft, seeds)
        self.parts = self.shard_parts = ("image.jpg", "mask.png", *self._map_parts)

    def write_shard(
        self, number: int, samples: Iterator[EncodedSample], scratch: Path
    ) -> dict[str, Path]:
        """Writes the ArrayRecord file of a shard."""
        from array_record.python.array_record_module import ArrayRecordWriter

        path = f"array_record/data-{number:05d}.array_record"
        file = scratch_file(scratch, path)
        try:
            writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
            for sample in samples:
                content = {part: sample.files[part] for part in self.shard_parts}
                writer.write(msgpack.packb(content | {"record": json_text(sample.record)}))
            writer.close()
        except RuntimeError as error:  # of the library, whatever the cause
            raise OSError(f"{file} cannot be written: {error}") from error
        return {path: file}


def parse_record(content: bytes) -> dict[str, Any]:
    """Decodes a record.

    Args:
        content: as an ArrayRecord reader or `grain.sources.ArrayRecordDataSource` gives it.

    Returns:
        "image" uint8 `[H, W, 3]`; "mask" uint8 `[H, W]`, class ids, 0 background, 255 ignore;
        "record", the manifest's row; where they are stored "soft_masks" float32 `[c, H, W]` in
        [0, 1] and "seed_maps" float32 `[c, h, w]`, a map for each of `record["classes"]`.
    """
    parts = msgpack.unpackb(content)
    with Image.open(io.BytesIO(parts["image.jpg"])) as image:
        sample = {"image": np.asarray(image), "mask": decode_mask(parts["mask.png"])}
    sample["record"] = json.loads(parts["record"])
    for part in ("soft.npz", "seeds.npz"):
        if part in parts:
            with np.load(io.BytesIO(parts[part])) as arrays:
                sample |= arrays
    if "soft.png" in parts:
        with Image.open(io.BytesIO(parts["soft.png"])) as stacked:
            maps = np.asarray(stacked).reshape(-1, *sample["mask"].shape)
        sample["soft_masks"] = maps.astype(np.float32) / 65535
    return sample
