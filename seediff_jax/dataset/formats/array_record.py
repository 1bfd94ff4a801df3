"""ArrayRecord files for random access, as grain reads them, and the reader of their records."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from seediff_jax.dataset.encoding import EncodedSample, decode_png
from seediff_jax.dataset.formats.base import Format, Made, Recover, json_text, scratch_file
from seediff_jax.dataset.formats.names import OTHER_METHODS_PART, STRIPS_PART


class ArrayRecord(Format):
    """`array_record/data-00000.array_record`, one record per sample.

    A record is a msgpack map of the encoded parts ("image.jpg", "mask.png" and, when asked for,
    "soft.npz" or "soft.png", "seeds.npz", "attention.npz" and "methods.png") and "record", the
    manifest's line as JSON text.
    `parse_record` reads it. Records are not compressed again, and each is a group of its own
    (group_size 1), so that any of them can be read directly.
    """

    name = "array_record"
    libraries = ("array_record",)
    parts = shard_parts = ("image.jpg", "mask.png")

    def write_shard(self, number: int, samples: Iterator[EncodedSample], scratch: Path) -> Made:
        """Writes the ArrayRecord file of a shard."""
        from array_record.python.array_record_module import ArrayRecordWriter

        path = f"array_record/data-{number:05d}.array_record"
        with scratch_file(scratch, path) as file:
            try:
                writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
                for sample in samples:
                    content = {part: sample.files[part] for part in self.shard_parts}
                    writer.write(msgpack.packb(content | {"record": json_text(sample.record)}))
                writer.close()
            except RuntimeError as error:  # of the library, whatever the cause
                raise OSError(f"{file} cannot be written: {error}") from error
        return {path: file}

    def open_shard(self, number: int, read: Callable[[str], bytes], scratch: Path) -> Recover:
        """Reads the records of the file of a shard; damage may make all of them unreadable."""
        from array_record.python.array_record_module import ArrayRecordReader

        path = f"array_record/data-{number:05d}.array_record"
        with scratch_file(scratch, path) as file:
            file.write_bytes(read(path))
        reader = ArrayRecordReader(str(file))
        contents = {}
        for _ in range(reader.num_records()):
            with suppress(Exception):  # of a damaged record
                content = msgpack.unpackb(reader.read())
                contents[json.loads(content["record"])["index"]] = content
        reader.close()
        return lambda record: {part: contents[record["index"]][part] for part in self.shard_parts}


def parse_record(content: bytes) -> dict[str, Any]:
    """Decodes a record.

    Args:
        content: as an ArrayRecord reader or `grain.sources.ArrayRecordDataSource` gives it.

    Returns:
        "image" uint8 `[H, W, 3]`; "mask" uint8 `[H, W]`, class ids, 0 background, 255 ignore;
        "record", the manifest's line; where they are stored "soft_masks" float32 `[c, H, W]` in
        [0, 1] and "seed_maps" float32 `[c, h, w]`, one map for each of `record["classes"]`, and the
        arrays of `AttentionMaps.to_arrays` in float16; "other_masks" uint8 `[m, H, W]`; and
        "strips" uint8 `[h, w, 3]`, a picture for people.
    """
    parts = msgpack.unpackb(content)
    with Image.open(io.BytesIO(parts["image.jpg"])) as image:
        sample = {"image": np.asarray(image), "mask": decode_png(parts["mask.png"])}
    sample["record"] = json.loads(parts["record"])
    for part in ("soft.npz", "seeds.npz", "attention.npz"):
        if part in parts:
            with np.load(io.BytesIO(parts[part])) as arrays:
                sample |= arrays
    if OTHER_METHODS_PART in parts:
        stacked = decode_png(parts[OTHER_METHODS_PART])
        sample["other_masks"] = stacked.reshape(-1, *sample["mask"].shape)
    if STRIPS_PART in parts:
        sample["strips"] = decode_png(parts[STRIPS_PART])
    if "soft.png" in parts:
        maps = decode_png(parts["soft.png"]).reshape(-1, *sample["mask"].shape)
        sample["soft_masks"] = maps.astype(np.float32) / 65535
    return sample
