"""A study's arms in an order that means something, as curves: one SVG, without a script, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

WIDTH, HEIGHT = 190, 150  # of one plot
LEFT, TOP, APART, BETWEEN = 58, 40, 30, 48  # room for the axis, the titles, between the columns, between the rows
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2933 } .small { font-size: 11px; fill: #616e7c }
.page { fill: #fff } .grid { stroke: #e4e7eb } .line { fill: none; stroke-width: 2 }
.line, .bar { stroke: #2f6fab } circle { fill: #2f6fab }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb } .small { fill: #9aa5b1 } .page { fill: #10161d } .grid { stroke: #323f4b }
  .line, .bar { stroke: #7ab8f5 } circle { fill: #7ab8f5 }
}
"""


def draw(arms: Mapping[str, Any], curves: Mapping[str, Mapping[str, str]]) -> str:
    """One column for each curve; a row for the validation loss, where there is one, and one for success.

    Args:     arms: of a study's results.json.   curves: title -> label on the axis -> arm.
    Returns:  an <svg>; bars are the intervals of success, and a row has one scale. "" while no curve is whole.
    """
    whole = {title: curve for title, curve in curves.items() if set(curve.values()) <= set(arms)}
    if not whole:
        return ""
    shown = [arms[arm] for curve in whole.values() for arm in curve.values()]
    rows = [("success", "success_rate", 0.0, 1.0, "{:.0%}")]
    if all(row["validation_loss"] is not None for row in shown):
        losses = [row["validation_loss"] for row in shown]
        room = 0.15 * (max(losses) - min(losses)) or 0.1 * max(losses)
        low, high = max(min(losses) - room, 0.0), max(losses) + room
        rows.insert(0, ("validation loss of the actions", "validation_loss", low, high, "{:.3f}"))
    wide, tall = LEFT + len(whole) * (WIDTH + APART), TOP + len(rows) * (HEIGHT + BETWEEN)
    parts = [f'<rect class="page" width="{wide}" height="{tall}"/>']
    for j, (name, key, low, high, form) in enumerate(rows):
        y0 = TOP + j * (HEIGHT + BETWEEN)
        parts.append(f'<text class="small" x="{LEFT}" y="{y0 - 8}">{name}</text>')
        for i, curve in enumerate(whole.values()):
            x0 = LEFT + i * (WIDTH + APART)
            parts += _grid(x0, y0, [form.format(low + (high - low) * t / 4) for t in range(5)], labelled=i == 0)
            parts += _plot(x0, y0, list(curve), [arms[arm] for arm in curve.values()], key, low, high)
    for i, title in enumerate(whole):
        x = LEFT + i * (WIDTH + APART) + WIDTH / 2
        parts.append(f'<text x="{x}" y="16" text-anchor="middle">{escape(title)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" role="img">'
    return f"{head}<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"


def _grid(x0: float, y0: float, words: list[str], labelled: bool) -> list[str]:
    """Lines from the lowest value up, and what they stand for."""
    parts = []
    for t, word in enumerate(words):
        y = y0 + HEIGHT * (1 - t / (len(words) - 1))
        parts.append(f'<line class="grid" x1="{x0}" x2="{x0 + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if labelled:
            parts.append(f'<text class="small" x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{word}</text>')
    return parts


def _plot(x0: float, y0: float, labels: list[str], rows: list[Any], key: str, low: float, high: float) -> list[str]:
    def y(value: float) -> str:
        return f"{y0 + HEIGHT * (high - value) / (high - low):.1f}"

    at = [x0 + WIDTH * (i + 0.5) / len(rows) for i in range(len(rows))]
    points = " ".join(f"{x:.1f},{y(row[key])}" for x, row in zip(at, rows, strict=True))
    parts = [f'<polyline class="line" points="{points}"/>']
    for x, label, row in zip(at, labels, rows, strict=True):
        if key == "success_rate":
            below, above = (y(v) for v in row["ci95"])
            parts.append(f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{below}" y2="{above}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y(row[key])}" r="3.5"/>')
        where = f'x="{x:.1f}" y="{y0 + HEIGHT + 16}" text-anchor="middle"'
        parts.append(f'<text class="small" {where}>{escape(label)}</text>')
    return parts
