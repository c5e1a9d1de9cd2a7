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


def paired_difference(a: Sequence[bool], b: Sequence[bool], z: float = Z95) -> tuple[float, float, float]:
    """Difference of success rates a - b over the same episodes: (difference, low, high), each in [-1, 1].

    Pairing takes the difficulty of the scenes out of the comparison: only episodes where a and b disagree count.

    Raises:  ValueError for lists of different length, or empty ones.
    Source:  adjusted Wald interval, Bonett and Price, J. Educ. Behav. Stat. 37 (2012) 479, eq. 6.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired_difference: expected two lists over the same episodes, got {len(a)} and {len(b)}.")
    x, y, n = np.asarray(a, bool), np.asarray(b, bool), len(a)
    only_a, only_b = int((x & ~y).sum()), int((~x & y).sum())
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return (only_a - only_b) / n, max(-1.0, p - q - half), min(1.0, p - q + half)


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
