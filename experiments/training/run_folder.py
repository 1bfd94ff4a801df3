"""Folders of runs: one set of settings each, and files that a kill leaves whole."""

import json
import os
import pathlib
from typing import Any

from seediff_jax.errors import UserError, listed


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON; a kill leaves the file of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def write_results(stem: pathlib.Path, results: Any, table: str) -> None:
    """Writes STEM.json for programs and STEM.md for people, and prints the table."""
    write_json(stem.with_name(f"{stem.name}.json"), results)
    stem.with_name(f"{stem.name}.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def require_settings(folder: pathlib.Path, settings: dict[str, Any]) -> None:
    """Keeps the settings of a run in its folder, so that results of two are never mixed.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    path, settings = folder / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    stored = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name}={stored.get(name)} (now {settings.get(name)})"
        for name in stored.keys() | settings.keys()
        if stored.get(name) != settings.get(name)
    ]
    if changed:
        raise UserError(
            f"{folder} holds a run with {listed(sorted(changed))}; give these settings again, or "
            "another folder"
        )
