"""The robot's side of the boundary: one servo cycle after the other, whatever the policy's side does.

Plan -> Safety -> setpoint -> [inverse kinematics -> limits of the joints] -> Arm
                                                    pictures <- Arm
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from padpolicy.config import ConfigError, RobotConfig
from padpolicy.control.robot import Intervention, Observation, Plan, RobotSpec, Status
from padpolicy.control.robots.named import named
from padpolicy.control.safety import Limiter, Safety


class Arm(Protocol):
    """Hardware, or a simulation of it. D numbers of a setpoint, J joints that it solves for (none: J = 0)."""

    @property
    def names(self) -> Sequence[str]:
        """Of the D numbers, in order."""

    @property
    def grippers(self) -> Sequence[str]:
        """Those of them that are openings."""

    @property
    def joints(self) -> Sequence[str]:
        """Names of the J joints; empty where the setpoint is the joints."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """Name -> (H, W)."""

    @property
    def depth_cameras(self) -> Sequence[str]:
        """Those that also give depth."""

    @property
    def proprio_dim(self) -> int:
        """Numbers of `proprio`."""

    @property
    def renderer(self) -> str:
        """Which renderer draws its pictures; "" for real cameras."""

    @property
    def simulated(self) -> bool:
        """Whether its time passes in `write`, and nowhere else."""

    def reset(self, options: Mapping[str, Any]) -> np.ndarray:
        """Makes ready for an episode. Returns the setpoint (D,) that it stands at."""

    def measured(self) -> np.ndarray:
        """Where it is (D,)."""

    def solve(self, setpoint: np.ndarray) -> np.ndarray:
        """Joints (J,) for a setpoint."""

    def write(self, setpoint: np.ndarray, joints: np.ndarray, seconds: float) -> None:
        """Goes there in `seconds`. A simulation moves on by so much; hardware is only told."""

    def look(self) -> Mapping[str, np.ndarray]:
        """What it sees now: rgb_<cam>, depth_<cam>, proprio."""

    def info(self) -> Mapping[str, Any]:
        """What only a simulation knows; empty for hardware."""

    def close(self) -> None:
        """Lets go."""


def make_arm(cfg: RobotConfig) -> Arm:
    """The arm that a configuration names. Raises ConfigError for one that does not exist."""
    if cfg.kind == "tabletop":
        from padpolicy_envs.arm import TabletopArm

        return TabletopArm(**cfg.options)
    if cfg.kind == "lerobot":
        from padpolicy.control.robots.lerobot import LeRobotArm

        return LeRobotArm(cfg)
    if cfg.kind == "arm":
        return named(cfg.make)(**cfg.options)
    raise ConfigError(
        f"robot.kind={cfg.kind!r}: expected 'tabletop', 'lerobot' or 'arm'; robot=NAME takes one of ours."
    )


class Log:
    """Every plan that came and every setpoint that went, as JSON lines; nothing if the path is empty."""

    def __init__(self, path: str):
        self._file: TextIO | None = None
        if path:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w", buffering=1 << 16)

    def write(self, what: str, time_s: float, **values: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"what": what, "time_s": round(time_s, 6), **values}) + "\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Side:
    """Safety, an arm and its cameras under one time. Whoever owns it calls `advance`: a process, or virtual time.

    Args:  arm: hardware or simulation.   cfg: rates, limits, how bad the simulated cameras are.
           on_setpoint: hears every setpoint (D,).
    """

    def __init__(self, arm: Arm, cfg: RobotConfig, on_setpoint: Callable[[np.ndarray], None] = lambda setpoint: None):
        self.arm, self.cfg, self.on_setpoint = arm, cfg, on_setpoint
        self.log = Log(cfg.log)
        self.safety = Safety(cfg.safety, list(arm.names), list(arm.grippers), cfg.servo_hz, self._intervened)
        self.dt_s = 1 / cfg.servo_hz
        self.spec = RobotSpec(
            name=cfg.name,
            names=list(arm.names),
            grippers=list(arm.grippers),
            cameras=dict(arm.cameras),
            depth_cameras=list(arm.depth_cameras),
            proprio_dim=arm.proprio_dim,
            servo_hz=cfg.servo_hz,
            camera_hz=cfg.camera_hz,
            renderer=arm.renderer,
        )
        self._joints: Limiter | None = None
        self._rng = np.random.default_rng(0)

    def reset(self, now_s: float, options: Mapping[str, Any]) -> None:
        """Starts an episode at `now_s`."""
        start = np.asarray(self.arm.reset(options), np.float64)
        self.now_s = now_s
        self.safety.reset(now_s, start)
        if self.cfg.safety.joint.low:
            self._solved = np.asarray(self.arm.solve(start))
            self._joints = Limiter(self.cfg.safety.joint, self.dt_s, self._solved)
        self._rng = np.random.default_rng(int(options.get("seed", 0)))
        self._next_frame_s = now_s
        self._arriving: deque[tuple[float, Observation]] = deque()
        self._newest: Observation | None = None
        self.measured = self.arm.measured()
        self._logged = ""
        self.log.write("reset", now_s, setpoint=_rounded(start))
        self._watch()

    def offer(self, plan: Plan) -> None:
        """A plan came."""
        refusal = self.safety.offer(plan, self.now_s)
        self.log.write("plan", self.now_s, number=repr(getattr(plan, "number", None)), refused=refusal)

    def advance(self, to_s: float) -> None:
        """As many servo cycles as end by `to_s`.

        Hardware gets one at the most, however late it is: each setpoint is the motion of one cycle.
        """
        if not self.arm.simulated:
            self.now_s = max(self.now_s, to_s - self.dt_s)
        while self.now_s + self.dt_s <= to_s + 1e-9:
            self._cycle()

    def _cycle(self) -> None:
        setpoint = self.safety.setpoint(self.now_s, self.measured)
        joints = np.zeros(0)
        if self.arm.joints:
            joints = np.asarray(self.arm.solve(setpoint))
            if self._joints is not None:
                joints, self._solved = self._joints.follow(joints, (joints - self._solved) / self.dt_s), joints
        if self.safety.state != self._logged:
            self._logged = self.safety.state
            self.log.write(self._logged, self.now_s, reason=self.safety.reason)
            self.log.flush()
        self.log.write("setpoint", self.now_s + self.dt_s, value=_rounded(setpoint), joints=_rounded(joints))
        self.on_setpoint(setpoint)
        self.arm.write(setpoint, joints, self.dt_s)
        self.now_s += self.dt_s
        self.measured = self.arm.measured()
        self._watch()

    def _watch(self) -> None:
        """Takes the picture that is due, and lets in those that have arrived."""
        cfg = self.cfg
        if self.now_s >= self._next_frame_s - 1e-9:
            self._next_frame_s += 1 / cfg.camera_hz
            if self._rng.random() >= cfg.camera_drop or self._newest is None:
                late = cfg.camera_latency_s + cfg.camera_jitter_s * self._rng.random()
                seen = Observation(self.now_s, self.arm.look(), self.safety.target.copy())
                self._arriving.append((self.now_s + late, seen))
        while self._arriving and self._arriving[0][0] <= self.now_s + 1e-9:
            self._newest = self._arriving.popleft()[1]

    @property
    def newest(self) -> Observation | None:
        """The newest observation that has arrived."""
        return self._newest

    def status(self) -> Status:
        """How it is now."""
        safety = self.safety
        return Status(
            time_s=self.now_s,
            state=safety.state,
            reason=safety.reason,
            plan=safety.plan,
            commanded=safety.limiter.position.copy(),
            measured=np.asarray(self.measured, np.float64),
            interventions=dict(safety.interventions),
            last=safety.last,
            info=dict(self.arm.info()),
        )

    def _intervened(self, intervention: Intervention) -> None:
        self.log.write("intervention", intervention.time_s, kind=intervention.kind, detail=intervention.detail)

    def close(self) -> None:
        self.log.close()
        self.arm.close()


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{v:.9g}") for v in values]
