"""Exact values against published and hand-computed numbers."""

import math

import pytest

from padpolicy.evaluation.metrics import paired_difference, summarise_ms, wilson


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_known_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_laws():
    for n in (1, 7, 240):
        for k in range(n + 1):
            low, high = wilson(k, n)
            assert 0 <= low <= k / n <= high <= 1
            mirrored = wilson(n - k, n)
            assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]))
    with pytest.raises(ValueError, match="successes=3, n=2"):
        wilson(3, 2)


def test_paired_difference():
    # 3 only a, 1 only b, n=10: p = 4/12, q = 2/12.
    a = [True] * 3 + [False] + [True] * 3 + [False] * 3
    b = [False] * 3 + [True] + [True] * 3 + [False] * 3
    difference, low, high = paired_difference(a, b)
    half = 1.959963984540054 * math.sqrt((0.5 - (1 / 6) ** 2) / 12)
    assert (difference, low, high) == pytest.approx((0.2, 1 / 6 - half, 1 / 6 + half))
    swapped = paired_difference(b, a)
    assert swapped == pytest.approx((-difference, -high, -low))
    with pytest.raises(ValueError, match="got 1 and 0"):
        paired_difference([True], [])


def test_paired_is_narrower_than_unpaired_on_agreeing_scenes():
    a = [True] * 50 + [False] * 50
    b = [True] * 48 + [False] * 52
    _, low, high = paired_difference(a, b)
    assert high - low < 0.12  # two independent rates of 100 would give 0.28


def test_summaries():
    assert summarise_ms([]) == {"n": 0}
    assert summarise_ms(list(range(1, 102))) == {"p50": 51.0, "p95": 96.0, "mean": 51.0, "max": 101.0, "n": 101}
