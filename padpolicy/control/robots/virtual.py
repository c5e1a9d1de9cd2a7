"""A robot in virtual time: its servo cycles run whenever the clock advances. For experiments that repeat exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from padpolicy.config import RobotConfig
from padpolicy.control.clock import VirtualClock
from padpolicy.control.robot import Observation, Plan, RobotSpec, Status
from padpolicy.control.robots.side import Side, make_arm


class VirtualRobot:
    """The robot's side in this process, moved by a `VirtualClock`."""

    def __init__(self, cfg: RobotConfig, clock: VirtualClock):
        self.setpoints: list[np.ndarray] = []  # of the episode, (D,) each, one per servo cycle
        self._side, self._clock = Side(make_arm(cfg), cfg, self.setpoints.append), clock
        clock.on_advance.append(self._advance)
        self._running = False

    @property
    def spec(self) -> RobotSpec:
        return self._side.spec

    def _advance(self, now_s: float) -> None:
        if self._running:
            self._side.advance(now_s)

    def reset(self, options: Mapping[str, Any] | None = None) -> Status:
        self.setpoints.clear()
        self._side.reset(self._clock.now_s(), dict(options or {}))
        self._running = True
        return self._side.status()

    def observe(self) -> Observation | None:
        return self._side.newest

    def command(self, plan: Plan) -> None:
        self._side.offer(plan)

    def beat(self) -> None:
        self._side.safety.beat(self._clock.now_s())

    def stop(self, reason: str) -> None:
        self._side.safety.stop(self._clock.now_s(), reason)

    def status(self) -> Status:
        return self._side.status()

    def close(self) -> None:
        self._running = False
        self._side.close()
