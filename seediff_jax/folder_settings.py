"""settings.json, which marks a dataset folder and pins its samples down.

A copy lies in `shards`, where nobody edits it: a million samples must not be lost with one file.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from seediff_jax.run_lock import LOCK
from seediff_jax.storage import TEMPORARY, Folder

SETTINGS, COPY = "settings.json", "shards/settings.json"
VERSIONS = "software"
"""Setting that may differ when a run goes on: versions of the libraries that do the arithmetic."""

# Journals and seals.
_SAMPLES = re.compile(r"\d+\.(journal|json|open\.json)")
_NEEDED = {"seediff_jax_version", "class_names"}


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
                f"{_way_out(folder)}"
            )
        return []
    old = read_settings(folder)
    if not any(_SAMPLES.fullmatch(name) for name in folder.names("shards")):
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
    try:
        return _parsed(folder, SETTINGS)
    except ValueError as error:
        raise ValueError(f"{error}; {_way_out(folder)}") from error


def read_copy(folder: Folder) -> dict[str, Any]:
    """The settings as they were written, whatever became of settings.json.

    Raises:
        ValueError: neither the copy nor settings.json is of this program.
        OSError: there is neither.
    """
    try:
        return _parsed(folder, COPY)
    except (ValueError, OSError):
        return read_settings(folder)


def _parsed(folder: Folder, name: str) -> dict[str, Any]:
    path = folder.path(name)
    try:
        settings = json.loads(folder.read(name))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(settings, dict) or not settings.keys() >= _NEEDED:
        raise ValueError(f"{path} is not of this program")
    return settings


def _way_out(folder: Folder) -> str:
    if folder.exists(COPY):
        return f"--repair --output={folder} restores it from {COPY}"
    return "choose a new folder"


def has_settings(folder: Folder, settings: Mapping[str, Any]) -> bool:
    """Whether a run has been in the folder that had all these settings."""
    try:
        return read_settings(folder) == settings
    except (ValueError, OSError):
        return False


def write_settings(folder: Folder, settings: Mapping[str, Any]) -> None:
    """Writes what `settings_files` gives."""
    for name, content in settings_files(settings).items():
        folder.write(name, content)


def settings_files(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Content by name of the settings, their copy and, a line a class, `classes.txt`."""
    content = (json.dumps(settings, indent=2) + "\n").encode()
    classes = "".join(f"{name}\n" for name in settings["class_names"])
    # In this order: settings.json marks the folder, and nothing may be there before it.
    return {SETTINGS: content, "classes.txt": classes.encode(), COPY: content}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{name}: {json.dumps(old.get(name))} there, {json.dumps(value)} now"
        for name, value in new.items()
        if name not in old or old[name] != value
    }
