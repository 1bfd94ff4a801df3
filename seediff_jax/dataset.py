"""The writer of a dataset folder: every file appears whole or not at all, and a run can go on.

    settings.json                    what pins the samples down; the folder's mark
    classes.txt                      the class of id k on line k
    image/000000.png                 RGB
    mask/000000.png                  class ids with the VOC palette; 0 background, 255 ignore
    overlay/000000.png               mask over image
    manifest.jsonl                   a line a sample, written after its files
    contact_sheet.png, strip.png     for people

A sample exists when the manifest has its line. Whatever a stopped run leaves beside that (files
without a line, half a line, a temporary file) is made again by the next run.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.arrays import UInt8, typechecked
from seediff_jax.label_maps import IGNORE_INDEX
from seediff_jax.pictures import PALETTE, contact_sheet, overlay

PARTS = ("image", "mask", "overlay")
_SETTINGS, _MANIFEST, _SHEET = "settings.json", "manifest.jsonl", "contact_sheet.png"
_TEMPORARY = ".part"
_SHEET_SAMPLES = 24


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that appears complete under its name, or replaces the old one, or not at all.

    Raises:
        OSError: naming `path`, for instance when the disk is full.
    """
    part = path.with_name(path.name + _TEMPORARY)
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise _named(error, path) from error


def require_resumable(folder: Path, settings: Mapping[str, Any]) -> None:
    """Checks that a folder is new, empty, or a dataset whose samples have these settings.

    Args:
        folder: need not exist.
        settings: all settings, or those known so far; only these are compared.

    Raises:
        ValueError: the folder holds something else, or samples made with other settings, which the
            message lists.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; a folder is needed")
    if not (folder / _SETTINGS).exists():
        if any(path.suffix != _TEMPORARY for path in folder.iterdir()):
            raise ValueError(
                f"{folder} is not empty and no dataset of this program (it has no {_SETTINGS}); "
                "choose a new folder"
            )
        return
    old = _read_settings(folder / _SETTINGS)
    if not _read_manifest(folder / _MANIFEST):
        return
    changes = [
        f"{name}: {json.dumps(old.get(name))} there, {json.dumps(value)} now"
        for name, value in settings.items()
        if name not in old or old[name] != value
    ]
    if changes:
        raise ValueError(
            f"{folder} was made with other settings ({'; '.join(changes)}); "
            "choose another folder, or the same settings to go on"
        )


class DatasetWriter:
    """Writes samples into a folder, and knows which it has.

    Attributes:
        folder: the folder.
        rows: index -> manifest entry of every sample that exists.

    Raises:
        ValueError: as `require_resumable`, or a damaged line in the midst of the manifest.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        require_resumable(folder, settings)
        self.folder = folder
        self.class_names = tuple(settings["class_names"])
        self._row_settings = {k: v for k, v in settings.items() if k != "class_names"}
        folder.mkdir(parents=True, exist_ok=True)
        rows = _read_manifest(folder / _MANIFEST)
        if not rows:
            write_whole(folder / _SETTINGS, (json.dumps(settings, indent=2) + "\n").encode())
        write_whole(folder / "classes.txt", "".join(f"{n}\n" for n in self.class_names).encode())
        for part in PARTS:
            (folder / part).mkdir(exist_ok=True)
        self.rows = {i: row for i, row in rows.items() if self._has_files(i)}
        self._write_manifest()

    @typechecked
    def write(
        self,
        index: int,
        image: UInt8[np.ndarray, "H W 3"],
        label_map: UInt8[np.ndarray, "H W"],
        *,
        prompt: str,
        classes: tuple[str, ...],
        seed_counts: list[int],
    ) -> None:
        """Writes one sample.

        Args:
            index: of the sample in the run.
            image: colours in 0..255.
            label_map: k + 1 for the k-th of `classes`, 0 background, 255 ignore.
            prompt: what the image shows.
            classes: names out of the run's classes; the mask gets their ids there.
            seed_counts: number of seeds of each class.

        Raises:
            OSError: a file cannot be written; the samples before this one stay valid.
        """
        ids, mask = self._ids(classes), self.mask(label_map, classes)
        areas = [float(np.mean(mask == class_id)) for class_id in ids]
        indexed = Image.fromarray(mask)
        indexed.putpalette(PALETTE.tobytes())
        pictures = (Image.fromarray(image), indexed, Image.fromarray(overlay(image, mask)))
        for part, picture in zip(PARTS, pictures, strict=True):
            write_whole(self.path(part, index), _png(picture))
        row = {
            "index": index,
            **{part: str(self.path(part, index).relative_to(self.folder)) for part in PARTS},
            "prompt": prompt,
            "classes": list(classes),
            "class_ids": ids,
            "area_fractions": areas,
            "seed_counts": seed_counts,
            "empty": [name for name, area in zip(classes, areas, strict=True) if not area],
            "ignored_fraction": float(np.mean(mask == IGNORE_INDEX)),
            **self._row_settings,
        }
        _append(self.folder / _MANIFEST, _line(row))
        self.rows[index] = row

    @typechecked
    def mask(
        self, label_map: UInt8[np.ndarray, "H W"], classes: tuple[str, ...]
    ) -> UInt8[np.ndarray, "H W"]:
        """Turns labels k + 1, for the k-th of `classes`, into the ids of the run."""
        to_id = np.zeros(IGNORE_INDEX + 1, np.uint8)
        to_id[IGNORE_INDEX] = IGNORE_INDEX
        to_id[1 : len(classes) + 1] = self._ids(classes)
        return to_id[label_map]

    def finish(self) -> None:
        """Sorts the manifest by index and draws the contact sheet of the first samples.

        Raises:
            OSError: a file cannot be written.
        """
        self._write_manifest()
        samples = [self._sheet_row(self.rows[i]) for i in sorted(self.rows)[:_SHEET_SAMPLES]]
        if samples:
            title = f"{len(self.rows)} images, model {self._row_settings['model']}"
            if len(samples) < len(self.rows):
                title += f", the first {len(samples)}"
            names = dict(enumerate(self.class_names, 1))
            self.write_picture(_SHEET, contact_sheet(samples, title=title, class_names=names))

    def write_picture(self, name: str, picture: Image.Image) -> None:
        """Writes a picture for people as `name` into the folder."""
        write_whole(self.folder / name, _png(picture))

    def path(self, part: str, index: int) -> Path:
        """File name of a sample's image, mask or overlay."""
        return self.folder / part / f"{index:06d}.png"

    def _ids(self, classes: tuple[str, ...]) -> list[int]:
        return [self.class_names.index(name) + 1 for name in classes]

    def _has_files(self, index: int) -> bool:
        return all(self.path(part, index).is_file() for part in PARTS)

    def _write_manifest(self) -> None:
        content = b"".join(_line(self.rows[i]) for i in sorted(self.rows))
        path = self.folder / _MANIFEST
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)

    def _sheet_row(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
        with Image.open(self.folder / row["image"]) as image:
            pixels = np.asarray(image)
        with Image.open(self.folder / row["mask"]) as mask:
            label_map = np.asarray(mask)
        facts = zip(row["classes"], row["area_fractions"], row["seed_counts"], strict=True)
        notes = [f"{name} {area:.1%} of the image, {seeds} seeds" for name, area, seeds in facts]
        return pixels, label_map, "\n".join([f"{row['index']}: {row['prompt']}", ", ".join(notes)])


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); choose a new folder") from error
    if not isinstance(settings, dict) or "seediff_jax_version" not in settings:
        raise ValueError(f"{path} is not of this program; choose a new folder")
    return settings


def _read_manifest(path: Path) -> dict[int, dict[str, Any]]:
    """Rows by index. A last line that was cut short counts as missing."""
    if not path.exists():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    rows = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[row["index"]] = row
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"{path}:{number}: no entry of this program; delete the line, and its sample is "
                "made again"
            ) from error
    return rows


def _append(path: Path, line: bytes) -> None:
    size = path.stat().st_size
    try:
        with open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, size)
        raise _named(error, path) from error


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, error.strerror, str(path))


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
