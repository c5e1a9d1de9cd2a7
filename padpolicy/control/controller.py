"""The closed loop at a fixed rate: it never waits for the network, which thinks beside it.

Action i of a plan is carried out between t + i*dt and t + (i+1)*dt, where t is when the observation was seen: waypoint
i is due at t + (i+1)*dt, and what is late when the plan arrives is dropped. Only a plan for a robot that stands still,
as the first one does, begins when it arrives. There are four ways to join plans:

    sync      asks, waits standing still, carries out `exec_steps`, asks again; its plan begins when it arrives
    naive     the newest plan wins from the moment it arrives
    ensemble  waypoints of all plans for one moment are averaged, the older ones a little more (ACT, arXiv 2304.13705)
    rtc       what will run while the network thinks is given to it as the clean start of the new plan, so both agree
              there (training-time real-time chunking, arXiv 2512.05964; `diffusion.prefix_share` trains it)

     seen at t                         plan arrives
        |--- prefix: runs anyway --------|--- new ---------------------->
    old =================================.......
    new      the same, as it was given   ================================
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from padpolicy.config import ConfigError, ControllerConfig
from padpolicy.control.chunking import ObservationBuffer
from padpolicy.control.clock import Clock
from padpolicy.control.planner import Answer, Planner, Request
from padpolicy.control.robot import Observation, Plan, Robot, RobotSpec, Status
from padpolicy.control.track import Track
from padpolicy.data.actions import ActionSpec, from_waypoints, to_waypoints
from padpolicy.data.letterbox import fitted
from padpolicy.spec import PolicySpec

PAUSE_S = 0.3  # after an alarm: until the robot stands and its cameras have seen it
SLOW = 0.5  # of the speed that was planned, after an alarm that slows it down


@dataclass
class Drive:
    """What came of driving a robot for a while."""

    status: Status  # how it was left
    seconds: float = 0.0
    plans: int = 0
    reaction_s: list[float] = field(default_factory=list)  # per plan: from the observation to its arrival
    late: int = 0  # waypoints that were past when their plan arrived
    interventions: Counter[str] = field(default_factory=Counter)


def check_fit(policy: PolicySpec, robot: RobotSpec) -> None:
    """Raises ConfigError, saying what differs and what to do, if a policy cannot drive a robot."""
    action = ActionSpec.from_dict(policy.action)
    if action.kind == "unknown":
        raise ConfigError("the kind of the policy's actions is unknown, so nobody can say what they command.")
    if action.rotation == "6d":
        raise ConfigError("the policy commands rotations as 6d; robots are led along x, y, z and yaw, or joints.")
    if action.dim != len(robot.names):
        raise ConfigError(
            f"the policy commands {action.dim} numbers ({', '.join(action.names)}), the robot takes "
            f"{len(robot.names)} ({', '.join(robot.names)}). It was trained for another robot."
        )
    if action.kind == "absolute" and action.names != robot.names and sorted(action.names) == sorted(robot.names):
        raise ConfigError(
            f"the policy commands {', '.join(action.names)} in this order, the robot takes {', '.join(robot.names)}. "
            "Reorder the robot's."
        )
    missing = [c for c in policy.cameras if c not in robot.cameras]
    missing += [f"depth of {c}" for c in policy.depth_cameras if c not in robot.depth_cameras]
    if missing:
        raise ConfigError(
            f"the policy looks through {', '.join(missing)}; the robot has {', '.join(robot.cameras) or 'no camera'}. "
            "Name its cameras as the policy does, or train without."
        )
    if policy.proprio_dim and policy.proprio_dim != robot.proprio_dim:
        raise ConfigError(f"the policy feels {policy.proprio_dim} numbers, the robot gives {robot.proprio_dim}.")
    if policy.renderer and robot.renderer and policy.renderer != robot.renderer:
        raise ConfigError(
            f"the robot's pictures are drawn by {robot.renderer!r}, the policy learned from {policy.renderer!r}; their "
            f"pixels differ. Use robot.options.renderer={policy.renderer}."
        )


class Controller:
    """Drives a robot by a planner. All state of an episode is here and in the robot; `begin` clears it.

    Args:   robot, planner: see their protocols.   spec: what the policy needs and gives.
            clock: the robot's.
            on_observation, on_plan: hear what was seen, and what was sent with the answer behind it.
    Raises: ConfigError if policy and robot do not fit.
    """

    def __init__(
        self,
        robot: Robot,
        planner: Planner,
        spec: PolicySpec,
        cfg: ControllerConfig,
        clock: Clock,
        on_observation: Callable[[Observation], None] = lambda seen: None,
        on_plan: Callable[[Plan, Answer], None] = lambda plan, answer: None,
    ):
        check_fit(spec, robot.spec)
        self.robot, self.planner, self.spec, self.cfg, self.clock = robot, planner, spec, cfg, clock
        self.on_observation, self.on_plan = on_observation, on_plan
        self.action = ActionSpec.from_dict(spec.action)
        self._instant = np.array([role == "gripper" for role in self.action.roles])
        self._reactions: deque[float] = deque(maxlen=cfg.latency_window)  # outlives episodes
        self.imagine = False  # ask for the imagined future with the next plans

    def begin(self, instruction: str, seed: int = 0) -> None:
        """A new episode; the robot has just been reset."""
        self.instruction, self.seed = instruction, seed
        self.number = 0
        self._buffer = ObservationBuffer.of(self.spec)
        self._seen: Observation | None = None
        self._asked: Observation | None = None  # what the request under way was made from
        self._stale = False  # its answer is not wanted any more
        self._sent: Track | None = None  # what the robot was told, as it follows it; None: it stands still
        self._sent_s = -math.inf  # when
        self._recent: list[tuple[np.ndarray, np.ndarray]] = []  # plans (times, waypoints), newest last, for `ensemble`
        self._next_s = -math.inf  # not asked for before
        self.reaction_s: list[float] = []
        self.late = 0
        self.pace = 1.0  # below 1: slower than planned

    def drive(self, seconds: float, done: Callable[[Status], bool] = lambda status: False) -> Drive:
        """Runs the loop until `done`, the robot has stopped, or `seconds` are over."""
        start = self.clock.now_s()
        tick = 0
        while True:
            status = self.tick()
            tick += 1
            now = self.clock.now_s()
            if done(status) or status.state == "stopped" or now - start >= seconds - 1e-9:
                return Drive(
                    status, now - start, self.number, self.reaction_s, self.late, Counter(status.interventions)
                )
            behind = math.floor((now - start) * self.cfg.loop_hz + 1e-6)
            tick = max(tick, behind)  # a loop that was held up goes on from now, it does not catch up
            self.clock.sleep_until(start + tick / self.cfg.loop_hz)

    def tick(self) -> Status:
        """Once around: hear the robot, take in a plan, ask for the next. Never waits. Returns how the robot is."""
        self.robot.beat()
        status = self.robot.status()
        if status.time_s > self._sent_s + 2 / self.robot.spec.servo_hz and (
            status.plan < self.number - 1 or (status.state == "holding" and status.plan >= 0)
        ):  # it refused the plan, or follows it no longer
            self._sent, self._recent = None, []
        seen = self.robot.observe()
        if seen is not None and (self._seen is None or seen.time_s > self._seen.time_s):
            self._seen = seen
            self._buffer.push(seen.time_s, fitted(seen.fields, self.spec.image_size))
            self.on_observation(seen)
        self._fetch()
        if self._seen is not None and not self.planner.busy and self._wants(self._seen):
            self._ask(self._seen)
            self._fetch()  # virtual time without delay
        return status

    def replan(self) -> None:
        """What was planned is not to be trusted: the robot stands still until there is a plan of what it sees then."""
        self._stale = self.planner.busy
        self._sent, self._recent = None, []
        if self._seen is None or not self.number:
            return
        now, status = self.clock.now_s(), self.robot.status()
        self._next_s = self._seen.time_s + PAUSE_S
        stay = Plan(self.number, self._seen.time_s, np.array([now + self.spec.dt_s]), status.commanded[None])
        self.number += 1
        self._sent_s = now
        self.robot.command(stay)

    # ------------------------------------------------------------------------------------------------ asking

    def _wants(self, seen: Observation) -> bool:
        return seen.time_s >= self._next_s - 1e-6

    def _ask(self, seen: Observation) -> None:
        prefix, length = self._prefix(seen) if self.cfg.execution == "rtc" else (None, 0)
        self._asked, self._stale = seen, False
        self._standing = self._sent is None
        self._next_s = seen.time_s + (1 if self.cfg.execution == "ensemble" else self.cfg.exec_steps) * self.spec.dt_s
        self.planner.ask(
            Request(
                sample=self._buffer.sample(self.spec, self.instruction, self.spec.robot),
                observed_at_s=seen.time_s,
                number=self.number,
                seed=self.seed,
                prefix=prefix,
                prefix_len=length,
                imagine=self.imagine,
                steps=self.cfg.steps,
                guidance=self.cfg.guidance,
                temperature=self.cfg.temperature,
            )
        )

    def expected_reaction_s(self) -> float:
        """How long after its observation the next plan will arrive: a quantile of the latest ones; 0 before any."""
        if not self._reactions:
            return 0.0
        return float(np.quantile(self._reactions, self.cfg.latency_quantile))

    def _prefix(self, seen: Observation) -> tuple[np.ndarray | None, int]:
        """The actions (T, A) that will run before the next plan arrives, and how many of them there are."""
        if self._sent is None:
            return None, 0
        dt, T = self.spec.dt_s, self.spec.chunk_steps
        steps = min(math.ceil(self.expected_reaction_s() / dt - 1e-6), T - 1)
        times = seen.time_s + dt * np.arange(1, steps + 1)
        times = times[times <= self._sent.end_s + 1e-6]
        if not len(times):
            return None, 0
        prefix_TA = np.zeros((T, self.action.dim), np.float32)
        waypoints = np.stack([self._sent.at(time)[0] for time in times])
        prefix_TA[: len(times)] = from_waypoints(waypoints, seen.commanded, self.action)
        return prefix_TA, len(times)

    # ------------------------------------------------------------------------------------------------ answers

    def _fetch(self) -> None:
        answer = self.planner.poll()
        if answer is None or self._asked is None:
            return
        asked, now = self._asked, self.clock.now_s()
        if self._stale:
            return
        self._reactions.append(now - asked.time_s)
        self.reaction_s.append(now - asked.time_s)
        plan = self._plan(asked, answer, now)
        if self._sent is None:
            self._sent = Track(asked.commanded, self._instant)
        self.late += self._sent.put(now, plan.times_s, plan.waypoints)
        self.number += 1
        self._sent_s = now
        self.robot.command(plan)
        self.on_plan(plan, answer)

    def _plan(self, asked: Observation, answer: Answer, now: float) -> Plan:
        """The answer as waypoints in time."""
        dt, mode = self.spec.dt_s, self.cfg.execution
        waypoints = to_waypoints(answer.chunk_TA, asked.commanded, self.action)
        start = asked.time_s
        if mode == "sync" or self._standing:  # it stood still meanwhile
            start = now
            self._next_s = now + (self._next_s - asked.time_s)
        if mode == "sync":
            waypoints = waypoints[: self.cfg.exec_steps]
        times = start + dt / self.pace * np.arange(1, len(waypoints) + 1)
        if mode == "ensemble":
            self._recent = [(t, w) for t, w in self._recent if t[-1] > now] + [(times, waypoints)]
            waypoints = self._averaged(times)
        return Plan(self.number, asked.time_s, times, waypoints)

    def _averaged(self, times: np.ndarray) -> np.ndarray:
        """Mean of all recent plans at each of these moments, the i-th oldest with weight exp(-decay * i)."""
        total, weight = np.zeros((len(times), self.action.dim)), np.zeros((len(times), 1))
        for i, (own_times, own) in enumerate(self._recent):
            share = math.exp(-self.cfg.ensemble_decay * i)
            covered = times <= own_times[-1] + 1e-6
            at = np.stack([np.interp(times, own_times, column) for column in own.T], axis=1)
            total += np.where(covered[:, None], share * at, 0)
            weight += np.where(covered[:, None], share, 0)
        return total / weight
