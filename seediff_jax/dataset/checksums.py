"""Checksums of the files of a dataset, and how damage is found.

Where the checksum of a file is kept:

    settings.json and its copy, shards/00012.json, shards/closed.json   in the file itself
    files of a sample                                                   in its record
    files of a shard                                                    in shards/00012.json
    manifest.jsonl and other files of the run                           in shards/closed.json
    a record on its line of shards/00012.jsonl                          in the record itself
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import Folder
from seediff_jax.files.strict_json import parse_json

FAILED = "failed"
"""Key of a record that says why there is no sample of its index."""

_LINE = re.compile(rb'(\{.*), "crc32": (\d{1,10})\}', re.DOTALL)


class DamagedFile(UserError):
    """A finished file of a dataset that has changed since it was written.

    Attributes:
        name: of the file, in the dataset folder.
        reason: what is wrong with it.
    """

    def __init__(self, folder: Folder, name: str, reason: str):
        reason = shown(reason)
        super().__init__(
            f"{folder.path(name)} is damaged ({reason}); --repair --output={folder} removes what "
            "is damaged; then run the original command again to make it again"
        )
        self.name, self.reason = name, reason


def json_with_checksum(content: Mapping[str, Any]) -> bytes:
    """Writes an object as JSON, with the SHA-256 of its content as its last entry."""
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=2) + "\n").encode()


def parse_json_with_checksum(text: bytes) -> dict[str, Any]:
    """Reads what `json_with_checksum` wrote, without the checksum.

    Raises:
        ValueError: a byte of it has changed; or it has no checksum.
    """
    content = parse_json(text)
    if not isinstance(content, dict) or "sha256" not in content:
        raise ValueError("has no checksum; another program or an older version wrote it")
    del content["sha256"]
    if json_with_checksum(content) != text:
        raise ValueError("has changed since it was written")
    return content


def read_json_with_checksum(folder: Folder, name: str) -> dict[str, Any]:
    """Reads a file that `json_with_checksum` wrote.

    Raises:
        DamagedFile: it is missing, or a byte of it has changed.
    """
    try:
        return parse_json_with_checksum(folder.read(name))
    except FileNotFoundError as error:
        raise DamagedFile(folder, name, "missing") from error
    except ValueError as error:
        raise DamagedFile(folder, name, f"cannot be read: {error}") from error


def add_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a record with the CRC-32 of the rest of its line as its last entry."""
    return {**record, "crc32": zlib.crc32(json_line(record)[: -len("}\n")])}


def json_line(record: Mapping[str, Any]) -> bytes:
    """Writes a record as a line of JSON."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def parse_record(line: bytes) -> dict[str, Any]:
    """Reads the line of a record.

    Raises:
        ValueError: a byte of it has changed, or it is not the record of a sample.
    """
    match = _LINE.fullmatch(line.rstrip(b"\n"))
    if not match or zlib.crc32(match[1]) != int(match[2]):
        raise ValueError("has changed since it was written")
    record = parse_json(line)
    require_record(record)
    return record


def read_record(folder: Folder, name: str, line: bytes) -> dict[str, Any]:
    """Reads a line of a file of a dataset, as `parse_record`.

    Raises:
        DamagedFile: the line has changed.
    """
    try:
        return parse_record(line)
    except ValueError as error:
        raise DamagedFile(folder, name, str(error)) from error


def require_record(record: Any) -> None:
    """Checks the entries of a record that other parts of the package rely on.

    Raises:
        ValueError: it is not the record of a sample.
    """
    if not isinstance(record, dict) or type(record.get("index")) is not int:
        raise ValueError("is not the record of a sample: it has no index")
    hashes = record.get("sha256")
    is_described = isinstance(hashes, dict) and all(isinstance(v, str) for v in hashes.values())
    if FAILED not in record and not is_described:
        raise ValueError(f"is not the record of a sample: {record['index']} has no hashes")


def read_checked(folder: Folder, name: str, facts: Mapping[str, Any]) -> bytes:
    """Reads a file whose "sha256", and perhaps "bytes", are known.

    Raises:
        DamagedFile: it is missing or has changed.
    """
    try:
        content = folder.read(name)
    except FileNotFoundError as error:
        raise DamagedFile(folder, name, "missing") from error
    found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if difference := _difference(found, facts):
        raise DamagedFile(folder, name, difference)
    return content


def find_damage(folder: Folder, name: str, facts: Mapping[str, Any]) -> str | None:
    """Describes in a few words what is wrong with such a file; None if nothing is."""
    try:
        return _difference(folder.describe(name, facts.get("bytes")), facts)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({shown(error.strerror or str(error))})"


def _difference(found: Mapping[str, Any], written: Mapping[str, Any]) -> str | None:
    if found["bytes"] != written.get("bytes", found["bytes"]):
        return f"has {found['bytes']} bytes instead of {written['bytes']}"
    if found["sha256"] != written["sha256"]:
        return "has changed since it was written"
    return None


def describe_file(path: Path) -> dict[str, Any]:
    """Returns "bytes" and "sha256" of a file of this machine."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
