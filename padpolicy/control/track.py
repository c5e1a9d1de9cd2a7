"""Waypoints as a line in time: where to be at any moment between them. For both sides of the boundary. No torch."""

from __future__ import annotations

import numpy as np

SOON_S = 1e-6  # a waypoint due sooner than this is late: there is no line to it, only a jump


class Track:
    """Piecewise linear through waypoints; grippers take the value of the waypoint ahead at once.

    Before the first plan it stays at `start`, after the last waypoint it stays there. D numbers of a waypoint.

    Args:  start: (D,) where it begins.   instant: (D,) bool, True for grippers.
    """

    def __init__(self, start: np.ndarray, instant: np.ndarray):
        self.instant = np.asarray(instant, bool)
        self._times, self._points = np.array([-np.inf]), np.array(start, np.float64)[None]

    @property
    def end_s(self) -> float:
        """When the last waypoint is to be reached; -inf if there is none."""
        return float(self._times[-1])

    def put(self, now_s: float, times_s: np.ndarray, waypoints: np.ndarray) -> int:
        """Follows these (n,), (n, D) from now on, from wherever the track is now. Returns how many were too late."""
        here, _ = self.at(now_s)
        ahead = np.asarray(times_s) > now_s + SOON_S
        self._times = np.concatenate([[now_s], np.asarray(times_s, np.float64)[ahead]])
        self._points = np.concatenate([here[None], np.asarray(waypoints, np.float64)[ahead]])
        return int((~ahead).sum())

    def at(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and velocity (D,), float64, units and units per second."""
        i = int(np.searchsorted(self._times, time_s, side="left"))  # the waypoint ahead
        if i >= len(self._times):
            return self._points[-1].copy(), np.zeros(self._points.shape[1])
        ahead, before = self._points[i], self._points[max(i - 1, 0)]
        span = self._times[i] - self._times[i - 1] if i else np.inf
        velocity = np.where(self.instant, 0.0, (ahead - before) / span)
        position = np.where(self.instant, ahead, ahead - velocity * (self._times[i] - time_s) if i else ahead)
        return position, velocity
