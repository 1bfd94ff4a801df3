"""Reads and writes settings.json, which marks a dataset folder and determines its samples.

`shards` has a copy, and both have checksums, so that one damaged file does not make a million
samples useless.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from seediff_jax.dataset.checksums import find_damage, json_with_checksum, parse_json_with_checksum
from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import Folder
from seediff_jax.files.text import join_lines

SETTINGS, COPY = "settings.json", "shards/settings.json"
FORM = 2
"""Version of the form of a dataset folder; a folder of another form is refused."""
VERSIONS = "software"
"""Setting that may differ when a run resumes: versions of the libraries that do arithmetic."""
PRECISION = "precision"
"""Settings of JAX and its compilers that are not the default, see `driver.arithmetic`."""
FILTERS = "filters"
"""Setting of a filtered copy of a dataset: the list of criteria."""
COMMAND = "command"
"""Setting that may also differ: flags of the run that cannot be derived from other settings."""

_NEEDED = {"seediff_jax_version", "class_names"}


def read_settings(folder: Folder) -> dict[str, Any]:
    """Reads the settings of a dataset.

    Raises:
        UserError: they are damaged, or not a dataset's.
        OSError: there is no such file.
    """
    try:
        settings = _read(folder, SETTINGS)
    except UserError as error:
        raise UserError(f"{error}; {restoring_hint(folder)}") from error
    return _require_form(folder, settings)


def read_sound_settings(folder: Folder) -> dict[str, Any]:
    """Reads the settings from the copy or, where that is damaged, from settings.json.

    Raises:
        UserError: both are damaged; the message says what can still be done.
        OSError: there is neither.
    """
    faults = []
    for name in (COPY, SETTINGS):
        try:
            settings = _read(folder, name)
        except (UserError, OSError) as error:
            faults.append(error)
        else:
            return _require_form(folder, settings)
    if all(isinstance(fault, FileNotFoundError) for fault in faults):
        raise faults[-1]
    raise UserError(
        f"{faults[0]}, and {faults[1]}: nothing tells any more how the samples were made. Images "
        f"and masks can be used as they are; to resume, verify or repair {folder}, put back one of "
        "the two files from a backup, or else generate into a new folder"
    )


def read_dataset_settings(folder: Folder) -> dict[str, Any]:
    """Reads the settings of a dataset, as `read_sound_settings`.

    Raises:
        UserError: as it, or the folder is not a dataset.
    """
    try:
        return read_sound_settings(folder)
    except FileNotFoundError as error:
        reason = "has no settings.json" if folder.exists() else "does not exist"
        raise UserError(f"{folder} is not a seediff dataset: it {reason}") from error


def find_damaged_settings(folder: Folder, settings: Mapping[str, Any]) -> dict[str, str]:
    """Compares the files of `settings_files` with the settings; returns file name -> problem."""
    found = {}
    for name, content in settings_files(settings).items():
        facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        if damage := find_damage(folder, name, facts):
            found[name] = damage
    return found


def _read(folder: Folder, name: str) -> dict[str, Any]:
    path = folder.path(name)
    try:
        settings = parse_json_with_checksum(folder.read(name))
    except ValueError as error:
        raise UserError(f"{path} is damaged, or not of a seediff dataset: {error}") from error
    names = settings.get("class_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or not settings.keys() >= _NEEDED:
        raise UserError(f"{path} is not of a seediff dataset")
    return settings


def _require_form(folder: Folder, settings: dict[str, Any]) -> dict[str, Any]:
    if settings.get("form") != FORM:
        release = shown(str(settings["seediff_jax_version"]), 40)
        raise UserError(
            f"{folder} was written by another version of seediff_jax ({release}), whose folders "
            "have another form; use that version to continue it, or choose a new folder"
        )
    return settings


def restoring_hint(folder: Folder) -> str:
    """Says what to do about damaged settings."""
    if folder.exists(COPY):
        return f"--repair --output={folder} restores it from {COPY}"
    return "choose a new folder"


def write_settings(folder: Folder, settings: Mapping[str, Any]) -> None:
    """Writes what `settings_files` makes."""
    for name, content in settings_files(settings).items():
        folder.write(name, content)


def settings_files(settings: Mapping[str, Any]) -> dict[str, bytes]:
    """Makes the settings, their copy and `classes.txt`, which has one class per line.

    Returns:
        Content by name.

    Raises:
        UserError: the name of a class has a line break, which would shift the lines after it.
    """
    content = json_with_checksum(settings)
    classes = join_lines(settings["class_names"])
    # In this order: settings.json marks the folder, and nothing may be there before it.
    return {SETTINGS: content, "classes.txt": classes.encode(), COPY: content}
