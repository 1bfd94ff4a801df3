"""settings.json, which marks a dataset folder and pins its samples down."""

import json
from collections.abc import Mapping
from typing import Any

from seediff_jax.run_lock import LOCK
from seediff_jax.storage import TEMPORARY, Folder

SETTINGS = "settings.json"
VERSIONS = "software"
"""Setting that may differ when a run goes on: versions of the libraries that do the arithmetic."""


def require_resumable(folder: Folder, settings: Mapping[str, Any]) -> list[str]:
    """Checks that a folder is new, empty, or a dataset whose samples have these settings.

    Args:
        folder: need not exist.
        settings: all settings, or those known so far; only these are compared.

    Returns:
        Differences between versions of libraries, which are allowed and should be told.

    Raises:
        ValueError: the folder holds something else, or samples made with other settings, which the
            message lists.
    """
    if not folder.exists():
        return []
    if folder.local is not None and not folder.local.is_dir():
        raise ValueError(f"{folder} is a file; a folder is needed")
    if not folder.exists(SETTINGS):
        others = [n for n in folder.names() if not n.endswith(TEMPORARY) and n != LOCK]
        if others:
            raise ValueError(
                f"{folder} is not empty and no dataset of this program (it has no {SETTINGS}); "
                "choose a new folder"
            )
        return []
    old = read_settings(folder)
    if not any(name.endswith((".journal", ".json")) for name in folder.names("shards")):
        return []
    changes = _differences(old, settings)
    refused = [text for name, text in changes.items() if name != VERSIONS]
    if refused:
        raise ValueError(
            f"{folder} was made with other settings ({'; '.join(refused)}); "
            "choose another folder, or the same settings to go on"
        )
    return list(changes.values())


def read_settings(folder: Folder) -> dict[str, Any]:
    """Reads the settings of a dataset.

    Raises:
        ValueError: they are none of this program's.
        OSError: there is no such file.
    """
    path = folder.path(SETTINGS)
    try:
        settings = json.loads(folder.read(SETTINGS))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); choose a new folder") from error
    if not isinstance(settings, dict) or "seediff_jax_version" not in settings:
        raise ValueError(f"{path} is not of this program; choose a new folder")
    return settings


def write_settings(folder: Folder, settings: Mapping[str, Any]) -> None:
    """Writes the settings and, a line a class, `classes.txt`."""
    folder.write(SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
    names = settings["class_names"]
    folder.write("classes.txt", "".join(f"{name}\n" for name in names).encode())


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{name}: {json.dumps(old.get(name))} there, {json.dumps(value)} now"
        for name, value in new.items()
        if name not in old or old[name] != value
    }
