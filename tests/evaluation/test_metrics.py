"""Exact values against published and hand-computed numbers."""

import pytest

from padpolicy.evaluation.metrics import summarise_ms, wilson


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


def test_summaries():
    assert summarise_ms([]) == {"n": 0}
    assert summarise_ms(list(range(1, 102))) == {"p50": 51.0, "p95": 96.0, "mean": 51.0, "max": 101.0, "n": 101}
