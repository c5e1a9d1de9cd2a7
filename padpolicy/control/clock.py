"""Time, real or virtual: the same loop runs in both."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds that only rise."""

    def now_s(self) -> float:
        """Now."""

    def sleep_until(self, time_s: float) -> None:
        """Returns at `time_s`, or at once if that is past."""


class RealClock:
    """The machine's monotonic clock: one for all its processes, so a robot's process shares it."""

    def now_s(self) -> float:
        return time.monotonic()

    def sleep_until(self, time_s: float) -> None:
        time.sleep(max(time_s - time.monotonic(), 0))


class VirtualClock:
    """Time that passes only when somebody sleeps. `on_advance` hears every new time, and moves the world there."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.on_advance: list[Callable[[float], None]] = []

    def now_s(self) -> float:
        return self._now_s

    def sleep_until(self, time_s: float) -> None:
        if time_s > self._now_s:
            self._now_s = time_s
            for hear in self.on_advance:
                hear(time_s)
