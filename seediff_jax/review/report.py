"""Writes a page for the browser to judge a complete dataset.

    records -> rows of all samples, or of the worst; histograms per class -> report.html
    images and masks -> thumbnails, within the page or, for many samples, in files next to it

The page needs no network and no files but its thumbnails. It shows text as text, never as markup.
The dataset is only read, unless the report is written into it.
"""

import base64
import html
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seediff_jax.dataset.pictures import PALETTE, contour, contrast_palette
from seediff_jax.errors import UserError
from seediff_jax.files.folder import Folder, open_folder, open_parent
from seediff_jax.review.finished import ClassFacts, Finished, open_finished, read_class_facts
from seediff_jax.review.settings import ReportSettings

EMBEDDED = 500
"""Most samples whose thumbnails are within the page by default."""

_ASSETS = Path(__file__).parents[1] / "assets"
_MARK = b'content="seediff_jax report"'
_BINS = 20
_AT_A_TIME = 64
_OPACITY = 120


def write_report(folder: Folder, settings: ReportSettings) -> str:
    """Writes the report of a dataset.

    Args:
        folder: of a finished dataset.
        settings: what the report shows, and where it goes.

    Returns:
        The path or URL of the page.

    Raises:
        UserError: the folder is not a finished dataset, or damaged, or the output is something
            else than a report.
        OSError: a file cannot be read or written.
    """
    source = open_finished(folder)
    facts = read_class_facts(source)
    indices = _worst(facts, settings.worst)
    target, name = _target(folder, settings.output, len(indices))
    if target.exists(name) and _MARK not in target.read(name)[:1000]:
        raise UserError(
            f"{target.path(name)} is there and is not a report; give another name as output="
        )
    is_embedded = name != "index.html"
    content = {
        "folder": folder.url,
        "summary": _summary(source, len(indices)),
        "classes": _class_facts(source, facts),
        "settings": [[key, _text(value)] for key, value in source.settings.items()],
        "failed": _failed(source),
        "methods": source.method_names,
        "has_presence": not np.isnan(facts.presence).all(),
        "samples": _Rows(source, set(indices.tolist()), settings.thumbnail).make(
            None if is_embedded else target
        ),
    }
    target.make()
    target.write(name, _page(f"Report of {folder.url}", content))
    return target.path(name)


def _worst(facts: ClassFacts, count: int | None) -> np.ndarray:
    """The indices of the samples with the smallest scores, ascending."""
    if count is None:
        return facts.indices
    worst = np.full(len(facts.indices), np.inf)
    np.minimum.at(worst, facts.samples, facts.scores)
    return np.sort(facts.indices[np.argsort(worst, kind="stable")[:count]])


def _target(folder: Folder, output: str | None, count: int) -> tuple[Folder, str]:
    """The folder of the page, and its name."""
    if output is None:
        if count <= EMBEDDED:
            return folder, "report.html"
        return open_folder(folder.path("report")), "index.html"
    if output.endswith(".html"):
        return open_parent(output)
    return open_folder(output), "index.html"


def _summary(source: Finished, count: int) -> str:
    complete = source.complete
    parts = [
        f"{complete['samples']} samples by {source.settings.get('model', 'an unknown model')}",
        f"{complete['empty']} with an empty class",
        f"{complete['failed']} failed",
    ]
    if count < complete["samples"]:
        parts.append(f"the {count} of the smallest scores are shown")
    return ", ".join(parts)


def _class_facts(source: Finished, facts: ClassFacts) -> list[dict[str, Any]]:
    """Facts about each class for the page, over all samples and not only those shown."""
    found = []
    for class_id in np.unique(facts.class_ids).tolist():
        own = facts.class_ids == class_id
        scores, areas, presence = facts.scores[own], facts.areas[own], facts.presence[own]
        presence = presence[~np.isnan(presence)]
        found.append(
            {
                "id": class_id,
                "name": source.class_names[class_id - 1],
                "color": _css(PALETTE[class_id]),
                "samples": int(own.sum()),
                "empty": int((areas == 0).sum()),
                "mean": float(scores.mean()),
                "scores": np.histogram(scores, _BINS, (0, 1))[0].tolist(),
                "areas": np.histogram(areas, _BINS, (0, 1))[0].tolist(),
                "mean_presence": float(presence.mean()) if presence.size else None,
                "presence": np.histogram(presence, _BINS, (0, 1))[0].tolist(),
            }
        )
    return found


def _failed(source: Finished) -> list[list[Any]]:
    return [
        [record["index"], record.get("prompt", ""), record["failed"]]
        for record in source.failed_records()
    ]


def _css(colour: np.ndarray) -> str:
    return f"rgb({', '.join(map(str, colour.tolist()))})"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Rows:
    """The rows of samples, with their thumbnails.

    Args:
        source: the dataset.
        indices: of the samples.
        edge: longer edge of a thumbnail in pixels.
    """

    def __init__(self, source: Finished, indices: set[int], edge: int):
        self._source, self._indices, self._edge = source, indices, edge

    def make(self, folder: Folder | None) -> list[list[Any]]:
        """Makes the rows; thumbnails are written to the folder or, without one, into the rows."""
        rows, files = [], {}
        with tempfile.TemporaryDirectory() as scratch:
            for record, sources in self._source.sources(self._indices, Path(scratch)):
                image, mask = self._source.read_pixels(record, sources)
                others = self._source.read_other_masks(record, sources)
                masks = mask[None] if others is None else np.stack([mask, *others])
                thumbnails, palette = make_thumbnails(image, masks, self._edge)
                with self._source.decoding(record):
                    row = _row(record, self._source.presence(record), palette)
                rows.append(row)
                if folder is None:
                    row += [_data_url(*thumbnail) for thumbnail in thumbnails.items()]
                    continue
                index = record["index"]
                stem = f"thumbs/{index // 1000:03d}/{index:06d}"
                files |= {f"{stem}.{ending}": content for ending, content in thumbnails.items()}
                if len(files) >= _AT_A_TIME:
                    _write(folder, files)
            if files:
                _write(folder, files)
        return rows


def _write(folder: Folder, files: dict[str, bytes]) -> None:
    name, content = files.popitem()
    folder.write_all(files, {name: content})
    files.clear()


def _row(
    record: Mapping[str, Any], presences: Sequence[float | None], palette: np.ndarray
) -> list[Any]:
    columns = (record["class_ids"], record["scores"], record["area_fractions"])
    seeds = record.get("seed_counts") or [0] * len(columns[0])
    facts = [
        [class_id, score, round(area, 6), count, presence, _css(palette[class_id])]
        for class_id, score, area, count, presence in zip(*columns, seeds, presences, strict=True)
    ]
    others = record.get("other_methods", {}).values()
    least = [min(each["scores"], default=0) for each in others]
    return [record["index"], str(record.get("prompt", "")), facts, least]


def make_thumbnails(
    image: np.ndarray, masks: np.ndarray, edge: int
) -> tuple[dict[str, bytes], np.ndarray]:
    """Makes small pictures of a sample.

    Args:
        image: uint8 `[h, w, 3]`, or `[h, w]` of grey.
        masks: class ids by every method, uint8 `[m, h, w]`.
        edge: longer edge in pixels; smaller images keep their size.

    Returns:
        By their endings: "jpg", the image; and "png", of every method half transparent class
        colours and, below, the lines around the classes. Then the colours, of `contrast_palette`:
        uint8 `[256, 3]`, the same for all methods, so that one legend fits.
    """
    height, width = masks.shape[1:]
    factor = min(1.0, edge / max(height, width))
    size = tuple(max(1, round(side * factor)) for side in (width, height))
    photo = Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    layers = np.zeros((len(masks), 2, size[1], size[0], 4), np.uint8)
    scaled = [Image.fromarray(mask).resize(size, Image.Resampling.NEAREST) for mask in masks]
    labels = np.stack([np.asarray(each) for each in scaled])
    pixels = np.tile(np.asarray(photo).reshape(-1, 3), (len(masks), 1))
    palette = contrast_palette(pixels, labels.ravel())
    for small, (colours, lines) in zip(labels, layers, strict=True):
        colours[..., :3] = palette[small]
        colours[..., 3] = np.where(small, _OPACITY, 0)
        light, dark = contour(small)
        lines[light] = 255
        lines[dark] = (0, 0, 0, 255)
    jpg, png = io.BytesIO(), io.BytesIO()
    photo.save(jpg, "JPEG", quality=82)
    Image.fromarray(layers.reshape(-1, size[0], 4)).save(png, "PNG", optimize=True)
    return {"jpg": jpg.getvalue(), "png": png.getvalue()}, palette


def _data_url(ending: str, content: bytes) -> str:
    kind = {"jpg": "jpeg"}.get(ending, ending)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _page(title: str, content: Mapping[str, Any]) -> bytes:
    """Builds the page.

    In a script element, only "<" could end the data or begin a comment.
    """
    parts = {
        "title": html.escape(title),
        "css": (_ASSETS / "report.css").read_text(encoding="utf-8"),
        "js": (_ASSETS / "report.js").read_text(encoding="utf-8"),
        "data": json.dumps(content, allow_nan=False).replace("<", "\\u003c"),
    }
    pieces = (_ASSETS / "report.html").read_text(encoding="utf-8").split("@")
    return "".join(parts.get(piece, piece) for piece in pieces).encode()
