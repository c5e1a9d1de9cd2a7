"""Exact values against published and hand-computed numbers."""

import numpy as np
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


def test_equal_outcomes_have_no_difference():
    for outcomes in ([1], [0, 1, 1], [[0, 1], [1, 1]]):
        assert paired_difference(outcomes, outcomes) == (0, 0, 0)


def test_a_paired_difference_changes_sign_with_its_sides():
    a, b = np.random.default_rng(0).integers(0, 2, (2, 3, 40))
    mean, low, high = paired_difference(a, b)
    assert paired_difference(b, a) == pytest.approx((-mean, -high, -low))
    assert mean == pytest.approx(a.mean() - b.mean())
    assert low < mean < high
    assert paired_difference(a, b) == (mean, low, high)


def test_repeating_a_training_adds_no_certainty_but_scenes_do():
    a, b = np.random.default_rng(1).integers(0, 2, (2, 60))
    assert paired_difference([a, a, a], [b, b, b]) == pytest.approx(paired_difference(a, b))
    _, low, high = paired_difference(a, b)
    _, lower, higher = paired_difference(np.tile(a, 4), np.tile(b, 4))
    assert higher - lower == pytest.approx((high - low) / 2, rel=0.05)


def test_the_interval_holds_the_truth_nineteen_times_in_twenty():
    rng, held, truth = np.random.default_rng(2), 0, 0.1
    for _ in range(400):
        hard = rng.random((1, 120))  # a hard scene is hard for both, and for each of two trainings
        a = rng.random((2, 120)) < 0.2 + 0.6 * hard + truth
        b = rng.random((2, 120)) < 0.2 + 0.6 * hard
        _, low, high = paired_difference(a, b, resamples=500)
        held += low <= truth <= high
    assert 0.93 <= held / 400 <= 0.97


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1]), ([], []), (1, 0), ([[[1]]], [[[0]]])])
def test_outcomes_that_are_no_pairs_are_refused(a, b):
    with pytest.raises(ValueError, match="outcomes of the same scenes"):
        paired_difference(a, b)


def test_summaries():
    assert summarise_ms([]) == {"n": 0}
    assert summarise_ms(list(range(1, 102))) == {"p50": 51.0, "p95": 96.0, "mean": 51.0, "max": 101.0, "n": 101}
