"""Small charts as inline SVG: no script, no network; colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WIDTH, HEIGHT = 640, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34  # room for labels


def loss_curve(steps: Sequence[float], losses: Sequence[float]) -> str:
    """Training loss over steps, on a logarithmic axis: what was measured, faint, and its running mean.

    Returns:  an <svg> element; an empty string for fewer than two finite positive points.
    """
    x, y = np.asarray(steps, np.float64), np.asarray(losses, np.float64)
    good = np.isfinite(x) & np.isfinite(y) & (y > 0)
    x, y = x[good], y[good]
    if len(x) < 2 or x[-1] <= x[0]:
        return ""
    low, high = math.log10(y.min()), math.log10(y.max())
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)

    def px(step: float) -> float:
        return LEFT + (step - x[0]) / (x[-1] - x[0]) * (WIDTH - LEFT - RIGHT)

    def py(loss: float) -> float:
        return TOP + (high - math.log10(loss)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(values: np.ndarray) -> str:
        return "M" + "L".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(x, values, strict=True))

    half = len(y) // 40  # the running mean spans a twentieth of the run
    padded = np.pad(np.log(y), half, mode="reflect", reflect_type="odd") if half else np.log(y)
    mean = np.exp(np.convolve(padded, np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid"))

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="training loss over steps">']
    for tick in _log_ticks(10**low, 10**high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{py(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i, step in enumerate(np.linspace(x[0], x[-1], 5)):
        anchor = ("start", "middle", "middle", "middle", "end")[i]
        parts.append(
            f'<text class="tick" x="{px(step):.1f}" y="{HEIGHT - 12}" text-anchor="{anchor}">{step:.0f}</text>'
        )
    parts.append(f'<path class="raw" d="{path(y)}"/><path class="mean" d="{path(mean)}"/></svg>')
    return "".join(parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high: 1, 2, 5 times powers of ten, or powers of ten alone; at most six."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [float(f"{m}e{e}") for e in decades for m in steps if low <= float(f"{m}e{e}") <= high]
        if len(ticks) <= 6:
            break
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else [float(f"{math.sqrt(low * high):.2g}")]
