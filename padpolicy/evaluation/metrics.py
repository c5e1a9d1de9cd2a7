"""Numbers that come with their uncertainty. numpy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % point of the normal distribution


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a success rate: (low, high) in [0, 1]; (0, 1) when nothing was tried.

    Raises:  ValueError unless 0 <= successes <= n.
    Source:  E. B. Wilson, JASA 22 (1927) 209. Unlike p +- 1.96 s it stays inside [0, 1] and has a width at 0 of n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: expected 0 <= successes <= n, got successes={successes}, n={n}.")
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the exact limits are 0 and 1; rounding would leave them 1e-17 away.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def summarise_ms(values_ms: Sequence[float]) -> dict[str, float]:
    """Latencies as {p50, p95, mean, max, n}, milliseconds; only n = 0 when there are none."""
    array = np.asarray(values_ms, np.float64)
    if not len(array):
        return {"n": 0}
    p50, p95 = np.percentile(array, [50, 95])
    return {
        "p50": round(float(p50), 2),
        "p95": round(float(p95), 2),
        "mean": round(float(array.mean()), 2),
        "max": round(float(array.max()), 2),
        "n": len(array),
    }
