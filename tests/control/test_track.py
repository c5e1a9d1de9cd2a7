"""Waypoints as a line in time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from padpolicy.control.track import Track

INSTANT = np.array([False, True])  # x, gripper


def test_it_stays_where_it_began_until_told() -> None:
    track = Track(np.array([0.5, 1.0]), INSTANT)
    position, velocity = track.at(123.0)
    assert position.tolist() == [0.5, 1.0] and velocity.tolist() == [0, 0]
    assert track.end_s == -np.inf


def test_straight_between_waypoints_and_grippers_at_once() -> None:
    track = Track(np.array([0.0, 1.0]), INSTANT)
    assert track.put(0.0, np.array([1.0, 2.0]), np.array([[2.0, 0.0], [2.0, 1.0]])) == 0
    position, velocity = track.at(0.5)
    assert position.tolist() == [1.0, 0.0] and velocity.tolist() == [2.0, 0.0]
    assert track.at(1.5)[0].tolist() == [2.0, 1.0]
    position, velocity = track.at(9.0)
    assert position.tolist() == [2.0, 1.0] and velocity.tolist() == [0.0, 0.0]


def test_late_waypoints_are_dropped_and_the_line_goes_on_from_where_it_is() -> None:
    track = Track(np.array([0.0, 0.0]), INSTANT)
    track.put(0.0, np.array([1.0]), np.array([[1.0, 0.0]]))
    assert track.put(0.5, np.array([0.2, 0.5, 0.7]), np.array([[9.0, 9.0], [8.0, 8.0], [0.7, 0.0]])) == 2
    assert track.at(0.5)[0].tolist() == [0.5, 0.0]
    np.testing.assert_allclose(track.at(0.6)[0], [0.6, 0.0])


@given(st.integers(1, 6), st.integers(0, 5), st.floats(0.01, 0.99))
def test_a_plan_that_repeats_what_is_under_way_changes_nothing(n: int, late: int, phase: float) -> None:
    """This is why plans that agree on their prefix join without a jerk."""
    rng = np.random.default_rng(n)
    times, points = 0.1 * np.arange(1, 9), rng.normal(size=(8, 2))
    one, two = Track(np.zeros(2), INSTANT), Track(np.zeros(2), INSTANT)
    one.put(0.0, times, points)
    two.put(0.0, times, points)
    two.put(0.1 * (late + phase), times, points)
    for time in np.linspace(0.1 * (late + phase), 1.0, 7):
        np.testing.assert_allclose(one.at(time)[0], two.at(time)[0], atol=1e-9)
