"""Reads parts of samples back from the files of a dataset, whatever their format."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from seediff_jax.dataset.encoding import convert_parts
from seediff_jax.dataset.formats import Format
from seediff_jax.files.folder import Folder

PartSource = Callable[[Mapping[str, Any]], Mapping[str, bytes]]
"""Reads parts of a sample, given its record; may raise anything where files are damaged."""


def part_sources(
    folder: Folder, formats: Sequence[Format], shard: int, scratch: Path
) -> list[PartSource]:
    """Lists where the parts of the samples of a shard can be read; `scratch` is for copies."""
    return [
        source
        for each in formats
        for source in (_own_files(folder, each), _shard_files(folder, each, shard, scratch))
    ]


def recover_parts(
    record: Mapping[str, Any], parts: Collection[str], sources: Sequence[PartSource]
) -> dict[str, bytes] | None:
    """Finds parts of a sample with the right hashes; None where one is lost.

    Parts may be converted from other parts that `sources` have, see `part_sources`.
    """
    parts = set(parts)
    found: dict[str, bytes] = {}
    for source in (*sources, lambda record: convert_parts(found)):
        if parts <= found.keys():
            break
        with suppress(Exception):  # whatever a damaged file makes a library raise
            for part, content in source(record).items():
                if hashlib.sha256(content).hexdigest() == record["sha256"].get(part):
                    found[part] = content
    if not parts <= found.keys():
        return None
    return {part: found[part] for part in record["sha256"] if part in parts}  # in their order


def _own_files(folder: Folder, form: Format) -> PartSource:
    """Reads the parts that a sample stores in separate files."""

    def recover(record: Mapping[str, Any]) -> dict[str, bytes]:
        files = form.sample_files(record["index"])
        return {part: folder.read(path) for path, part in files.items()}

    return recover


def _shard_files(folder: Folder, form: Format, shard: int, scratch: Path) -> PartSource:
    try:
        return form.open_shard(shard, folder.read, scratch)
    except Exception:  # whatever a damaged file makes a library raise
        return lambda record: {}
