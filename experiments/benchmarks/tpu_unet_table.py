"""Makes the table of UNet calls on TPUs from docs/tpu_unet.json; needs no libtpu."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.benchmarks.measuring import MIB, markdown_table

JSON_FILE = Path(__file__).parents[2] / "docs" / "tpu_unet.json"

_HEADER = (
    *("slice", "images", "attention", "GB moved", "roofline, ms", "temporaries, MiB"),
    *("recording adds: GB", "ms", "MiB"),
)


def render_calls(content: Mapping[str, Any]) -> str:
    """Formats the results as a Markdown table, one row per slice, batch and attention."""
    return markdown_table(_HEADER, _rows(content["results"]))


def _rows(results: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    for key in sorted(results, key=_order):
        row, attention, kind = key.rsplit("/", 2)
        if kind != "recorded":
            continue
        topology, images = row.rsplit("/", 1)
        whole, plain = results[key], results.get(f"{row}/{attention}/plain")
        if "refused" in whole:
            yield [topology, images, attention, "does not fit", *[""] * 5]
            continue
        cells = _figures(whole)
        yield [topology, images, attention, *map("{:,.1f}".format, cells), *_added(cells, plain)]


def _order(key: str) -> tuple[str, int, str, str]:
    topology, images, attention, kind = key.split("/")
    return topology, int(images), attention, kind


def _added(cells: list[float], plain: Mapping[str, Any] | None) -> list[str]:
    if plain is None or "refused" in plain:
        return [""] * 3
    gigabytes, milliseconds, mib = map(lambda a, b: a - b, cells, _figures(plain))
    share = 100 * milliseconds / (cells[1] - milliseconds)
    return [f"{gigabytes:.1f}", f"{milliseconds:.1f} ({share:+.1f} %)", f"{mib:,.0f}"]


def _figures(result: Mapping[str, Any]) -> list[float]:
    return [result["bytes"] / 1e9, 1e3 * result["roofline_s"], result["temporaries"] / MIB]


def render_parts(result: Mapping[str, Any]) -> str:
    """Formats the bytes of a call by part of the UNet as a Markdown table, largest first."""
    parts = sorted(result["parts"].items(), key=lambda part: -part[1])
    rows = ((name, f"{count / 1e9:.1f}") for name, count in parts)
    return markdown_table(("part of the UNet", "GB moved"), rows)
