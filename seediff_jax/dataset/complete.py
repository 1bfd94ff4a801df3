"""Completes a run whose shards are all finished: writes the manifest, other lists and pictures."""

import collections
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.dataset.checksums import (
    FAILED,
    DamagedFile,
    describe_file,
    json_with_checksum,
    read_checked,
    read_record,
)
from seediff_jax.dataset.formats.names import OTHER_METHODS_PART
from seediff_jax.dataset.pictures import contact_sheet
from seediff_jax.dataset.shards import COUNTS, Dataset, read_listing
from seediff_jax.files.folder import Folder, name_in_errors

MANIFEST, FAILED_LIST = "manifest.jsonl", "failed.jsonl"
SHEET = "contact_sheet.png"
COMPLETE = "shards/closed.json"
"""Written last: the number of samples, and the hashes of the files of the run."""

_SHEET_SAMPLES = 24


def read_complete(folder: Folder) -> dict[str, Any]:
    """Reads `shards/closed.json`: "num_images", COUNTS, and "files" as in a summary.

    Raises:
        DamagedFile: it is missing or damaged.
    """
    fault = "does not tell how many samples there are"
    return read_listing(folder, COMPLETE, ("num_images", *COUNTS), fault)


def complete_counts(folder: Folder) -> dict[str, int] | None:
    """Returns "num_images" and COUNTS of a complete folder; None for another one."""
    if not folder.exists(COMPLETE):
        return None
    try:
        content = read_complete(folder)
    except DamagedFile:
        return None  # the run writes it again
    return {name: content[name] for name in ("num_images", *COUNTS)}


def mark_incomplete(folder: Folder) -> None:
    """Marks a folder as incomplete, before samples are added."""
    folder.remove(COMPLETE)


def complete_run(dataset: Dataset, class_names: Sequence[str], model: str) -> dict[str, int]:
    """Writes the files of the whole run; all its shards must be finished.

    Returns:
        `COUNTS` of the run.

    Raises:
        DamagedFile: a finished file is not as it was written.
    """
    folder, shards = dataset.folder, range(dataset.layout.num_shards)
    lists = {name: dataset.scratch / name for name in (MANIFEST, FAILED_LIST)}
    counts = _write_lists(dataset, *lists.values())
    files: dict[str, Path] = {}
    for each in dataset.formats:
        files |= each.write_run(dataset.records, dataset.read, shards, dataset.scratch)
    if not counts["failed"]:
        lists.pop(FAILED_LIST).unlink()
        folder.remove(FAILED_LIST)
    files |= lists
    sheet = _draw_sheet(folder, dataset.records(), counts["samples"], class_names, model)
    if sheet is not None:
        files[SHEET] = dataset.scratch / SHEET
        with name_in_errors(files[SHEET]):
            sheet.save(files[SHEET])
    made = {name: describe_file(path) for name, path in files.items()}
    for name, path in files.items():
        folder.put(name, path)
    content = {"num_images": dataset.layout.num_images, **counts, "files": made}
    folder.write(COMPLETE, json_with_checksum(content))
    return counts


def _write_lists(dataset: Dataset, good: Path, failed: Path) -> dict[str, int]:
    """Writes the lines of all samples and of those that failed; returns `COUNTS`."""
    counts: collections.Counter[str] = collections.Counter()
    with (
        name_in_errors(dataset.scratch),
        open(good, "wb") as good_lines,
        open(failed, "wb") as failed_lines,
    ):
        for shard in range(dataset.layout.num_shards):
            lines, of_shard = dataset.lines(shard), dataset.counts(shard)
            counts.update(of_shard)
            if not of_shard["failed"]:  # most lines need not be parsed
                good_lines.write(lines)
                continue
            for line in lines.splitlines(keepends=True):
                record = read_record(dataset.folder, f"shards/{shard:05d}.jsonl", line)
                (failed_lines if FAILED in record else good_lines).write(line)
    return dict(counts)


def write_picture(folder: Folder, name: str, picture: Image.Image) -> None:
    """Writes a picture for people into the folder."""
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
    """Draws the first samples, where a format has files of their images and masks."""
    first = list(itertools.islice(records, _SHEET_SAMPLES))
    if not first or not {"image", "mask"} <= first[0].keys():
        return None
    title = f"{count} {'image' if count == 1 else 'images'}, model {model}"
    if len(first) < count:
        title += f", the first {len(first)}"
    try:
        samples = [_sheet_row(folder, record) for record in first]
    except DamagedFile:
        raise
    except (KeyError, TypeError, ValueError, Image.DecompressionBombError) as error:
        reason = f"its first records cannot be drawn: {type(error).__name__} {error}"
        raise DamagedFile(folder, "shards/00000.jsonl", reason) from error
    names, others = dict(enumerate(class_names, 1)), first[0].get("other_methods", ())
    headings = ("image", "mask", "overlay", *others) if len(samples[0][3]) else ()
    return contact_sheet(samples, title=title, class_names=names, headings=headings)


def _sheet_row(folder: Folder, row: Mapping[str, Any]) -> tuple[Any, ...]:
    image, label_map = (_pixels(folder, row, part) for part in ("image", "mask"))
    others: Sequence[np.ndarray] = ()
    if (part := OTHER_METHODS_PART.partition(".")[0]) in row:
        others = _pixels(folder, row, part).reshape(-1, *label_map.shape)
    facts = zip(row["classes"], row["area_fractions"], row["seed_counts"], strict=True)
    notes = [f"{name} {area:.1%} of the image, {seeds} seeds" for name, area, seeds in facts]
    caption = "\n".join([f"{row['index']}: {row['prompt']}", ", ".join(notes)])
    return image, label_map, caption, others


def _pixels(folder: Folder, row: Mapping[str, Any], part: str) -> np.ndarray:
    name = row[part]
    facts = {"sha256": row["sha256"][part + PurePosixPath(name).suffix]}
    with Image.open(io.BytesIO(read_checked(folder, name, facts))) as picture:
        return np.asarray(picture)
