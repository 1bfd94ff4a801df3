"""Seals: a finished shard's counts and the hashes of its files, and files read against hashes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from seediff_jax.storage import Folder

COUNTS = ("samples", "failed", "empty")
"""What a seal counts: samples, those that failed, and those with a class of no pixel."""


class DamagedFile(ValueError):
    """A finished file of a dataset that is not as it was written.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, folder: Folder, name: str, reason: str):
        super().__init__(
            f"{folder.path(name)} is damaged ({reason}); --repair --output={folder} forgets what "
            "is damaged, and then the command of the run makes it again"
        )
        self.reason = reason


def read_seal(folder: Folder, name: str) -> dict[str, Any]:
    """Reads a seal: COUNTS, and the "bytes" and "sha256" of "files" by their names.

    Raises:
        DamagedFile: it is missing or no seal.
        OSError: it cannot be read.
    """
    try:
        seal = json.loads(folder.read(name))
        for count in COUNTS:
            int(seal[count])
        for facts in seal["files"].values():
            int(facts["bytes"]), str(facts["sha256"])
    except FileNotFoundError as error:
        raise DamagedFile(folder, name, "missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedFile(folder, name, f"cannot be read ({error})") from error
    return seal


def read_sealed(folder: Folder, seal: str, name: str) -> bytes:
    """Reads a file of which a seal has the hash.

    Raises:
        DamagedFile: the seal does not list it, or it or the seal is not as it was written.
        OSError: one of them cannot be read.
    """
    files = read_seal(folder, seal)["files"]
    if name not in files:
        raise DamagedFile(folder, seal, f"does not list {name}")
    return read_checked(folder, name, files[name])


def read_checked(folder: Folder, name: str, facts: Mapping[str, Any]) -> bytes:
    """Reads a file whose "sha256", and perhaps "bytes", are known.

    Raises:
        DamagedFile: it is missing or has another content.
        OSError: it cannot be read.
    """
    try:
        content = folder.read(name)
    except FileNotFoundError as error:
        raise DamagedFile(folder, name, "missing") from error
    if len(content) != facts.get("bytes", len(content)):
        reason = f"has {len(content)} bytes, written were {facts['bytes']}"
        raise DamagedFile(folder, name, reason)
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise DamagedFile(folder, name, "has another content than was written")
    return content


def fault_of(folder: Folder, name: str, facts: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, as `read_checked` reads it; None where nothing is."""
    try:
        read_checked(folder, name, facts)
    except DamagedFile as error:
        return error.reason
    except OSError as error:
        return f"cannot be read ({error})"
    return None
