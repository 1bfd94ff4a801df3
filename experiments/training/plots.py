"""A bar chart as SVG, without a plotting library."""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_LABELS, _PLOT, _ROW, _TOP = 240, 420, 20, 56
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44")


class Bar(NamedTuple):
    """A row of the chart.

    Attributes:
        group: rows of one group stand together.
        name: label.
        values: in [0, 1], one per series; None where there is none.
        errors: half-lengths of the error bars, one per series.
    """

    group: str
    name: str
    values: tuple[float | None, ...]
    errors: tuple[float, ...]


def draw_bars(bars: Sequence[Bar], series: Sequence[str], title: str) -> str:
    """Draws horizontal bars with error bars, on an axis from 0 to 1; returns the SVG text."""
    parts, y, group = [], _TOP, bars[0].group if bars else ""
    for bar in bars:
        y += 8 if bar.group != group else 0
        group = bar.group
        parts.append(_text(_LABELS - 8, y + _ROW * 0.7, bar.name, "end"))
        thickness = (_ROW - 4) / len(series)
        for k, (value, error) in enumerate(zip(bar.values, bar.errors, strict=True)):
            if value is not None:
                parts.append(_bar(y + 1 + k * thickness, thickness - 1, value, error, _COLOURS[k]))
        y += _ROW
    width, height = _LABELS + _PLOT + 40, y + 28
    axis = []
    for tick in range(0, 11, 2):
        x = _LABELS + _PLOT * tick / 10
        axis.append(f'<line x1="{x}" y1="{_TOP - 4}" x2="{x}" y2="{y}" stroke="#dddddd"/>')
        axis.append(_text(x, y + 16, f"{tick / 10:.1f}", "middle"))
    legend = [_text(_LABELS, 18, title, "start")]
    for k, name in enumerate(series):
        x = _LABELS + 160 * k
        legend.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{_COLOURS[k]}"/>')
        legend.append(_text(x + 16, 39, name, "start"))
    body = "\n".join([*axis, *legend, *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _bar(y: float, thickness: float, value: float, error: float, colour: str) -> str:
    length, middle = _PLOT * value, y + thickness / 2
    low, high = (_LABELS + _PLOT * min(1, max(0, value + side * error)) for side in (-1, 1))
    return (
        f'<rect x="{_LABELS}" y="{y:.1f}" width="{length:.1f}" height="{thickness:.1f}" '
        f'fill="{colour}"/>'
        f'<line x1="{low:.1f}" y1="{middle:.1f}" x2="{high:.1f}" y2="{middle:.1f}" stroke="black"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
