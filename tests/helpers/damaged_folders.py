"""Damages dataset folders of stored_runs, and mends them."""

import os

from seediff_jax.dataset.checksums import json_with_checksum, parse_json_with_checksum
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.repair import repair
from seediff_jax.dataset.verify import verify
from seediff_jax.files.folder import open_folder
from tests.helpers.stored_runs import run


def flip(path):
    """Flips a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    """Keeps the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def rewrite(path, change):
    """Changes the object in a file, with the right checksum."""
    content = parse_json_with_checksum(path.read_bytes())
    change(content)
    path.write_bytes(json_with_checksum(content))


def texts(place):
    """What `verify` says of a folder."""
    return [str(problem) for problem in verify(open_folder(place))]


def mend(place, *formats):
    """Repairs a folder; returns how many samples are lost, and those that the run makes again."""
    folder = open_folder(place)
    return repair(folder, verify(folder)), run(place, formats or tuple(FORMATS))
