"""Resuming a run: whether its folder may be continued, and which samples and shards it lacks.

A sample exists when the journal or the summary of its shard says so. A run that resumes makes all
other samples, to the same bytes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from seediff_jax.dataset.journal import Journal
from seediff_jax.dataset.layout import ShardLayout, parse_shard_name
from seediff_jax.dataset.lock import LOCK
from seediff_jax.dataset.settings_file import (
    COMMAND,
    FILTERS,
    SETTINGS,
    VERSIONS,
    read_settings,
    restoring_hint,
)
from seediff_jax.dataset.shards import SCRATCH
from seediff_jax.errors import UserError, shown
from seediff_jax.files.folder import TEMPORARY, Folder


def require_resumable(folder: Folder, settings: Mapping[str, Any]) -> list[str]:
    """Checks that a folder is new, empty, or a dataset whose samples have these settings.

    Args:
        folder: need not exist.
        settings: all settings, or those known so far; only these are compared.

    Returns:
        Differences between versions of libraries, which are allowed; the caller shows them.

    Raises:
        UserError: the folder holds something else, or samples made with other settings, which the
            message lists.
    """
    if not folder.exists():
        return []
    if folder.local is not None and not folder.local.is_dir():
        raise UserError(f"{folder} is a file; a folder is needed")
    if not folder.exists(SETTINGS):
        others = [n for n in folder.names() if not n.endswith(TEMPORARY) and n != LOCK]
        if others:
            raise UserError(
                f"{folder} is not empty and is not a seediff dataset (it has no {SETTINGS}); "
                f"{restoring_hint(folder)}"
            )
        return []
    old = read_settings(folder)
    if FILTERS in old and FILTERS not in settings:
        raise UserError(
            f"{folder} is a copy of a dataset, to which no run can add samples; give the "
            "folder of the run itself"
        )
    found = filter(None, map(parse_shard_name, folder.names("shards")))
    if all(kind == "jsonl" for _, kind in found):  # without a journal or a summary
        return []
    if settings.get("presence_draws") == 0:
        old.setdefault("presence_draws", 0)  # older releases had none
    changes = _differences(old, settings)
    changes.pop(COMMAND, None)
    refused = [text for name, text in changes.items() if name != VERSIONS]
    if refused:
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(refused)}); "
            "choose another folder, or the same settings to resume"
        )
    return list(changes.values())


def has_settings(folder: Folder, settings: Mapping[str, Any]) -> bool:
    """Tells whether the folder has these settings, whatever command wrote them."""
    try:
        old = read_settings(folder)
        return old | {COMMAND: None} == settings | {COMMAND: None}
    except (UserError, OSError):
        return False


def find_existing(folder: Folder, layout: ShardLayout) -> np.ndarray:
    """Finds which samples exist, bool `[num_images]`; reads only the names of files.

    Raises:
        UserError: there are samples beyond the run's.
    """
    exists = np.zeros(layout.num_images, bool)
    for first, length in _existing_ranges(folder, layout):
        exists[first : first + length] = True
    return exists


def count_existing(folder: Folder, layout: ShardLayout) -> int:
    """Counts the samples that exist, as `find_existing` finds them."""
    count = after = 0
    for first, length in sorted(_existing_ranges(folder, layout)):
        count += max(first + length - max(first, after), 0)
        after = max(after, first + length)
    return count


def unfinished_shards(folder: Folder, layout: ShardLayout, exists: np.ndarray) -> list[int]:
    """Lists the shards of which all samples exist and whose files are still to be made.

    A shard that a longer run would add samples to is always among them.
    """
    finished = {shard for shard, is_finished in _shards(folder).items() if is_finished}
    whole = np.logical_and.reduceat(exists, np.arange(0, len(exists), layout.shard_size))
    return [shard for shard in np.flatnonzero(whole).tolist() if shard not in finished]


def _existing_ranges(folder: Folder, layout: ShardLayout) -> list[tuple[int, int]]:
    """Finds the samples that exist: the first index and the length of each range."""
    found = []
    for shard, is_finished in _shards(folder).items():
        full = layout.full_shard(shard)
        if is_finished:
            found.append((full.start, len(full)))
        else:
            found += Journal(folder, shard, full).entries()
    last = max((first + length for first, length in found), default=0) - 1
    if last >= layout.num_images:
        raise UserError(
            f"{folder} has samples up to {last}, beyond num_images={layout.num_images}; ask for at "
            "least as many, or choose another folder"
        )
    return found


def _shards(folder: Folder) -> dict[int, bool]:
    """Finds the shards with samples, and whether no run will add to them."""
    found: dict[int, bool] = {}
    for shard, kind in filter(None, map(parse_shard_name, folder.names("shards"))):
        if kind in ("json", "journal"):
            found[shard] = found.get(shard, False) or kind == "json"
    return found


def find_leftovers(folder: Folder) -> list[str]:
    """Finds what killed runs left in `shards`.

    These are scratch folders, partly written files, and journals of finished shards: a run removes
    the journal after it has written the summary.
    """
    names, found = folder.names("shards"), []
    for name in names:
        shard, kind = parse_shard_name(name) or (0, "")
        is_replaced = kind in ("journal", "open.json") and f"{shard:05d}.json" in names
        if is_replaced or name.endswith(TEMPORARY) or name.startswith(SCRATCH):
            found.append(f"shards/{name}")
    return found


def remove_leftovers(folder: Folder) -> None:
    """Removes what killed runs left in `shards`; no run may be writing there."""
    for name in find_leftovers(folder):
        folder.remove(name)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: f"{name}: {_short(old.get(name))} there, {_short(value)} now"
        for name, value in new.items()
        if name not in old or old[name] != value
    }


def _short(value: Any) -> str:
    return shown(json.dumps(value, ensure_ascii=False), 200)
