"""What lies between a policy and a robot: three small messages and the protocol that carries them.

      the robot's side                        the policy's side
      Arm -> Safety -> servo    Observation ->    Controller -> Planner
             ^ limits, watchdog   <- Plan

Times are seconds on the *robot's* clock everywhere: a policy's computer only ever adds to the time of an observation.
A `waypoint` is laid out as an action (data/actions.py), every part absolute, positions in metres or radians.

Letters: n waypoints, D numbers of a waypoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass
class Observation:
    """What the robot saw at one moment."""

    time_s: float  # when the cameras saw it, not when it arrived
    fields: Mapping[str, np.ndarray]  # rgb_<cam>, depth_<cam>, proprio as in batch.py, without time or batch axis
    commanded: np.ndarray  # (D,) float64: the setpoint of that moment, which waypoints are anchored at


@dataclass
class Plan:
    """Where to be, and when. What lies in the past when it arrives is dropped, never caught up."""

    number: int  # rising: a plan with an older number is refused
    observed_at_s: float  # of the observation that it was made from
    times_s: np.ndarray  # (n,) float64, rising: when each waypoint is to be reached
    waypoints: np.ndarray  # (n, D) float64


@dataclass
class Intervention:
    """Something that Safety did not let through as it was asked for."""

    time_s: float
    kind: str  # one word: see safety.KINDS
    detail: str  # what was asked for, what the limit is


@dataclass
class Status:
    """How the robot's side is. `interventions` counts by kind since the last reset."""

    time_s: float
    state: str  # "moving", "holding" (nothing fresh to do: it brakes and waits) or "stopped" (only reset() ends that)
    reason: str  # why it holds or has stopped; "" while it moves
    plan: int  # number of the newest accepted plan; -1 before the first
    commanded: np.ndarray  # (D,) the present setpoint
    measured: np.ndarray  # (D,) where the robot is, in the layout of a waypoint
    interventions: dict[str, int] = field(default_factory=dict)
    last: Intervention | None = None
    info: dict[str, Any] = field(default_factory=dict)  # what a simulated robot knows besides: success, instruction, …


@dataclass
class RobotSpec:
    """What a robot says of itself."""

    name: str  # key of the normaliser
    names: list[str]  # of the D numbers of a waypoint, in order
    grippers: list[str]  # those of them that are openings: commanded at once, not led along a line
    cameras: dict[str, tuple[int, int]]  # name -> (H, W) of its pictures
    depth_cameras: list[str]
    proprio_dim: int
    servo_hz: float  # setpoints a second
    camera_hz: float  # observations a second
    renderer: str = ""  # which renderer draws its pictures; "" if real cameras do


class Robot(Protocol):
    """A robot as the controller sees it. No call waits for motion or for a camera, except `reset`."""

    spec: RobotSpec

    def reset(self, options: Mapping[str, Any] | None = None) -> Status:
        """Starts an episode: clears plans, counts and a stop. Simulated robots lay the scene out as `options` say."""

    def observe(self) -> Observation | None:
        """The newest observation; None before the first."""

    def command(self, plan: Plan) -> None:
        """Hands a plan over. What Safety says of it shows in `status`."""

    def beat(self) -> None:
        """Tells the robot's side that the controller is alive: silence makes it hold."""

    def stop(self, reason: str) -> None:
        """Brakes to a stand, as hard as the limits allow, and stays so until `reset`."""

    def status(self) -> Status:
        """How it is now."""

    def close(self) -> None:
        """Stops and lets go."""
