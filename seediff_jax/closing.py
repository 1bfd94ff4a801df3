"""What a complete run gets beside its shards: whole lists, and pictures for people."""

import collections
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.dataset import FAILED, Dataset, describe_file
from seediff_jax.pictures import contact_sheet
from seediff_jax.seals import COUNTS, read_checked
from seediff_jax.storage import Folder

MANIFEST, SHEET = "manifest.jsonl", "contact_sheet.png"
CLOSED = "shards/closed.json"
"""Written last of all: how many samples there are, and the hashes of the whole lists."""

_SHEET_SAMPLES = 24


def closed_counts(folder: Folder) -> dict[str, int] | None:
    """What `close` returned for a complete folder, with "num_images" beside; None for another."""
    if not folder.exists(CLOSED):
        return None
    try:
        content = json.loads(folder.read(CLOSED))
        return {name: int(content[name]) for name in ("num_images", *COUNTS)}
    except (ValueError, TypeError, KeyError):
        return None  # damaged: closing makes it again


def reopen(folder: Folder) -> None:
    """Marks a folder as incomplete, before samples are added."""
    folder.remove(CLOSED)


def close(dataset: Dataset, class_names: Sequence[str], model: str) -> dict[str, int]:
    """Writes what a complete run has; all its shards are sealed.

    Returns:
        `seals.COUNTS` of all shards.

    Raises:
        DamagedFile: a finished file is not as it was written.
        OSError: a file cannot be written.
    """
    folder, shards = dataset.folder, range(dataset.layout.num_shards)
    lists = {name: dataset.scratch / name for name in (MANIFEST, "failed.jsonl")}
    counts = _write_lists(dataset, *lists.values())
    files: dict[str, Path] = {}
    for each in dataset.formats:
        files |= each.closing_files(
            lambda: (r for r in dataset.records() if FAILED not in r),
            dataset.read,
            shards,
            dataset.scratch,
        )
    if not counts["failed"]:
        lists.pop("failed.jsonl").unlink()
        folder.remove("failed.jsonl")
    files |= lists
    good_records = (r for r in dataset.records() if FAILED not in r)
    if sheet := _draw_sheet(folder, good_records, counts["samples"], class_names, model):
        files[SHEET] = dataset.scratch / SHEET
        sheet.save(files[SHEET])
    made = {name: describe_file(path) for name, path in files.items()}
    for name, path in files.items():
        folder.put(name, path)
    content = {"num_images": dataset.layout.num_images, **counts, "files": made}
    folder.write(CLOSED, (json.dumps(content, indent=1) + "\n").encode())
    return counts


def _write_lists(dataset: Dataset, good: Path, failed: Path) -> dict[str, int]:
    """Writes the lines of all samples, of those that failed apart; returns what `close` does."""
    counts: collections.Counter[str] = collections.Counter()
    with open(good, "wb") as good_lines, open(failed, "wb") as failed_lines:
        for shard in range(dataset.layout.num_shards):
            lines, of_shard = dataset.lines(shard), dataset.counts(shard)
            counts.update(of_shard)
            if not of_shard["failed"]:  # a million lines are not parsed in vain
                good_lines.write(lines)
                continue
            for line in lines.splitlines(keepends=True):
                (failed_lines if FAILED in json.loads(line) else good_lines).write(line)
    return dict(counts)


def write_picture(folder: Folder, name: str, picture: Image.Image) -> None:
    """Writes a picture for people as `name` into the folder."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    folder.write(name, content.getvalue())


def _draw_sheet(
    folder: Folder,
    records: Iterable[Mapping[str, Any]],
    count: int,
    class_names: Sequence[str],
    model: str,
) -> Image.Image | None:
    """The first samples, where a format holds their images and masks as files."""
    first = list(itertools.islice(records, _SHEET_SAMPLES))
    if not first or not {"image", "mask"} <= first[0].keys():
        return None
    title = f"{count} images, model {model}"
    if len(first) < count:
        title += f", the first {len(first)}"
    samples = [_sheet_row(folder, record) for record in first]
    names = dict(enumerate(class_names, 1))
    return contact_sheet(samples, title=title, class_names=names)


def _sheet_row(folder: Folder, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, str]:
    image, label_map = (_pixels(folder, row, part) for part in ("image", "mask"))
    facts = zip(row["classes"], row["area_fractions"], row["seed_counts"], strict=True)
    notes = [f"{name} {area:.1%} of the image, {seeds} seeds" for name, area, seeds in facts]
    return image, label_map, "\n".join([f"{row['index']}: {row['prompt']}", ", ".join(notes)])


def _pixels(folder: Folder, row: Mapping[str, Any], part: str) -> np.ndarray:
    name = row[part]
    facts = {"sha256": row["sha256"][part + PurePosixPath(name).suffix]}
    with Image.open(io.BytesIO(read_checked(folder, name, facts))) as picture:
        return np.asarray(picture)
