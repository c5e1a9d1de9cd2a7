"""The last word on the robot's side: what reaches the servo is inside every limit, whatever was planned.

    plan --offer--> refused, or followed          Safety: what may be followed, and for how long
                        |
             target of this cycle
                        v
                    Limiter --> setpoint           Limiter: how; can always still stop inside the workspace

No torch, no threads, and no clock: every time is handed in, in seconds on the robot's clock.

Letters: n waypoints, D numbers of a waypoint (or joints).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ruckig import ControlInterface, InputParameter, Ruckig, RuckigError, Synchronization, Trajectory

from padpolicy.config import ConfigError, LimitsConfig, SafetyConfig
from padpolicy.control.robot import Intervention, Plan
from padpolicy.control.track import SOON_S, Track

KINDS: dict[str, str] = {
    "malformed": "A plan was not n rising times with n x D numbers, and was refused.",
    "not_finite": "A plan held a NaN or an infinity, and was refused.",
    "stopped": "A plan came after a stop and before the next reset, and was refused.",
    "out_of_order": "A plan's number was not above that of the newest accepted one, and it was refused.",
    "stale": "A plan was made from an observation that was too old or lay in the future, and was refused.",
    "late": "A plan's waypoints all lay in the past, and it was refused.",
    "jump": "The next waypoint was too far from the present setpoint: the plan was refused, or not taken up again.",
    "workspace": "Waypoints lay outside the workspace; its border was taken instead.",
    "lead": "The robot lagged too far behind, as when it is blocked; the setpoint waited for it.",
    "measured": "The measured pose was not D finite numbers; the robot held.",
    "silence": "Nothing was heard from the controller; the robot held.",
    "age": "The observation behind the plan in use grew too old; the robot held.",
    "watchdog": "The robot had held for too long, and stopped.",
    "stop": "Somebody stopped the robot.",
}

_MARGIN = 1e-6  # share of a limit that is never used, so that rounding cannot exceed it
_SLACK = 1e-9  # share of a limit that repeated rounding may cost
_PACE = 0.9  # share of the velocity limit that a target's own speed may take: some must be left to catch up with
_AHEAD_S = 1e-3  # clocks of one machine may differ by so much
_MOST = 1000  # waypoints of a plan

_State = tuple[list[float], list[float], list[float]]  # position, velocity, acceleration of D numbers


class _Range(NamedTuple):
    """What is used of the limits of one number."""

    low: float
    high: float
    slack: float  # what rounding may add to low and high
    velocity: float
    acceleration: float
    jerk: float


class Limiter:
    """A jerk-limited follower of a moving target, one servo cycle at a time. Its D numbers move independently.

    After every cycle the state can still be braked to a stand inside low..high within all limits: a step towards the
    target is taken only if the braking that would follow it was computed and stays inside, and what is left of the
    braking of the cycle before is taken otherwise. So the positions it gives, `dt_s` apart, stay inside low..high, and
    their first, second and third differences inside velocity, acceleration and jerk.

    `position`, `velocity` and `acceleration` are (D,) float64; `braking_s` (D,) is the time in which any steady
    speed is braked.

    Args:    limits: D values each, as `check_config` wants them.   dt_s: one servo cycle.
             start_D: where it stands at first.   names: of the D numbers, for errors.
    Raises:  ValueError if `start_D` is not D numbers inside low..high.
    """

    def __init__(self, limits: LimitsConfig, dt_s: float, start_D: np.ndarray, names: Sequence[str] | None = None):
        self.dt_s, self.names = dt_s, names or [f"start[{i}]" for i in range(len(limits.low))]
        self.low, self.high, v, a, j = (
            np.array(values, np.float64)
            for values in (limits.low, limits.high, limits.velocity, limits.acceleration, limits.jerk)
        )
        self.braking_s = v / a + a / j
        self._rates = [(rates * (1 - _MARGIN)).tolist() for rates in (v, a, j)]
        dims = len(v)
        self._ruckig = Ruckig(dims)
        self._chase, self._halt = InputParameter(dims), InputParameter(dims)
        self._halt.control_interface = ControlInterface.Velocity
        for request in (self._chase, self._halt):
            request.synchronization = Synchronization.No
            request.max_velocity, request.max_acceleration, request.max_jerk = self._rates
        self._path, self._braking, self._spare = Trajectory(dims), Trajectory(dims), Trajectory(dims)
        self.reset(start_D)

    def reset(self, start_D: np.ndarray) -> None:
        """Stands at `start_D`. Raises ValueError as the class does."""
        start = np.array(start_D, np.float64)
        if start.shape != self.low.shape:
            raise ValueError(f"start has shape {start.shape}, expected {self.low.shape}.")
        for name, at, low, high in zip(self.names, start, self.low, self.high, strict=True):
            if not low <= at <= high:
                raise ValueError(
                    f"{name}={at:.6g} is outside {low:.6g} to {high:.6g}: move it inside before the start."
                )
        slack = _SLACK * (self.high - self.low)
        inner = np.minimum(self.low + 2 * slack, start), np.maximum(self.high - 2 * slack, start), slack
        self._ranges = [_Range(*row) for row in zip(*(x.tolist() for x in inner), *self._rates, strict=True)]
        state = start.tolist(), [0.0] * len(start), [0.0] * len(start)
        if not all(self._brakes_inside(*state)):
            raise ValueError(f"no braking can be computed within velocity, acceleration, jerk of {self._rates}.")
        self._begin(*state)

    @property
    def position(self) -> np.ndarray:
        return np.clip(self._state[0], self.low, self.high)  # rounding may cost a billionth of the range

    @property
    def velocity(self) -> np.ndarray:
        return np.array(self._state[1])

    @property
    def acceleration(self) -> np.ndarray:
        return np.array(self._state[2])

    def follow(self, target_D: np.ndarray, target_velocity_D: np.ndarray) -> np.ndarray:
        """The position (D,) after this cycle, on the quickest way to where the target is then, moving as it does.

        Args:  target_D: where the target is at the end of the cycle; clipped to low..high.
               target_velocity_D: how it moves, units/s; clipped to what can still be braked before the border.
               If one of their numbers is not finite it brakes.
        """
        state = self._chased(np.asarray(target_D, float).tolist(), np.asarray(target_velocity_D, float).tolist())
        if state is None:
            return self.brake()
        inside = self._brakes_inside(*state)
        if not all(inside):  # those numbers brake, the others go on
            p, v, a = (
                [new if ok else old for new, old, ok in zip(*pair, inside, strict=True)]
                for pair in zip(state, self._braked(), strict=True)
            )
            state, inside = (p, v, a), self._brakes_inside(p, v, a)
        if not all(inside):
            return self.brake()
        self._begin(*state)
        return self.position

    def brake(self) -> np.ndarray:
        """The position (D,) after one cycle of the quickest stop."""
        self._state = self._braked()
        self._elapsed_s += self.dt_s
        return self.position

    def _chased(self, target: list[float], target_velocity: list[float]) -> _State | None:
        """The state after a cycle of the quickest way; None if there is no such way.

        In the frame that moves with the target, the target stands still at 0 and the limits of velocity are shifted.
        """
        if not all(map(math.isfinite, target + target_velocity)):
            return None
        at, pace = [], []
        for x, v, r in zip(target, target_velocity, self._ranges, strict=True):
            x = min(max(x, r.low), r.high)
            # Braking from v takes v/2 (v/a + a/j), or less: solved for v, what may still move towards a border.
            ramp, most = r.acceleration**2 / (2 * r.jerk), _PACE * r.velocity
            up = math.sqrt(ramp**2 + 2 * r.acceleration * (r.high - x)) - ramp
            down = math.sqrt(ramp**2 + 2 * r.acceleration * (x - r.low)) - ramp
            at.append(x)
            pace.append(min(max(v, -down, -most), up, most))
        chase, dt = self._chase, self.dt_s
        most = self._rates[0]
        chase.current_position = [p - x + u * dt for p, x, u in zip(self._state[0], at, pace, strict=True)]
        chase.current_velocity = [v - u for v, u in zip(self._state[1], pace, strict=True)]
        chase.current_acceleration = self._state[2]
        chase.max_velocity = [v - u for v, u in zip(most, pace, strict=True)]
        chase.min_velocity = [-v - u for v, u in zip(most, pace, strict=True)]
        try:
            self._ruckig.calculate(chase, self._path)
        except (RuckigError, ValueError):  # beyond its numerics; ValueError: a result without a name
            return None
        p, v, a = self._path.at_time(dt)
        return [q + x for q, x in zip(p, at, strict=True)], [w + u for w, u in zip(v, pace, strict=True)], a

    def _brakes_inside(self, position: list[float], velocity: list[float], acceleration: list[float]) -> list[bool]:
        """For each number, whether braking from this state stays inside the limits. Leaves the braking in `_spare`."""
        halt = self._halt
        halt.current_position, halt.current_velocity, halt.current_acceleration = position, velocity, acceleration
        try:
            self._ruckig.calculate(halt, self._spare)
        except (RuckigError, ValueError):
            return [False] * len(position)
        ends = self._spare.at_time(self._spare.duration)[0]
        return [_inside(*x) for x in zip(position, velocity, acceleration, ends, self._ranges, strict=True)]

    def _braked(self) -> _State:
        """The state one cycle further along the braking that was checked."""
        time_s, duration = self._elapsed_s + self.dt_s, self._braking.duration
        if time_s < duration:
            return self._braking.at_time(time_s)
        stand = [0.0] * len(self._ranges)
        return self._braking.at_time(duration)[0], stand, stand

    def _begin(self, position: list[float], velocity: list[float], acceleration: list[float]) -> None:
        """Takes the state whose braking is in `_spare`."""
        self._state = position, velocity, acceleration
        self._braking, self._spare = self._spare, self._braking
        self._elapsed_s = 0.0  # how far along `_braking` it is


def _inside(p: float, v: float, a: float, end: float, r: _Range) -> bool:
    """Whether braking from position p, velocity v, acceleration a, which comes to a stand at `end`, stays inside."""
    way = math.copysign(1.0, a)
    turn, root = p, a * a + 2 * r.jerk * v * way
    if v * way < 0 < root:  # it turns round once: it moves one way and is accelerated the other way for long enough
        t = (abs(a) - math.sqrt(root)) / r.jerk
        turn = p + v * t + a * t * t / 2 - way * r.jerk * t**3 / 6
    peak = v + a * abs(a) / (2 * r.jerk)  # velocity once the acceleration is gone
    return (
        min(p, end, turn) >= r.low - r.slack
        and max(p, end, turn) <= r.high + r.slack
        and max(abs(v), abs(peak)) <= r.velocity * (1 + _SLACK)
        and abs(a) <= r.acceleration * (1 + _SLACK)
    )


_ENDED = "plan ended"


class Safety:
    """What may be followed, and for how long: between the plans that arrive and the servo.

    Every servo cycle asks for a `setpoint`; plans are offered as they come. It moves while there is a fresh plan and a
    controller that is heard. Otherwise it holds: it brakes and waits, and goes on when the cause is gone, as if what is
    left of the plan had just arrived. A hold that lasts too long, and `stop`, end the episode.

    `state` and `reason` are as in `Status`; `plan` is the number of the newest accepted plan, -1 before the first;
    `interventions` counts by kind (see KINDS) since the last reset, `last` is the newest; `limiter` holds the setpoint,
    `target` (D,) is where that is led in this cycle: what was commanded, and what new plans are anchored at.

    Args:    names: of the D numbers of a waypoint.   grippers: those of them that are commanded at once.
             servo_hz: setpoints a second.   on_event: hears every intervention.
    Raises:  ConfigError as `check_config` does; ValueError for a gripper that is not among the names.
    """

    def __init__(
        self,
        cfg: SafetyConfig,
        names: list[str],
        grippers: list[str],
        servo_hz: float,
        on_event: Callable[[Intervention], None] | None = None,
    ):
        check_config(cfg, names)
        unknown = sorted(set(grippers) - set(names))
        if unknown:
            raise ValueError(f"Safety: gripper {unknown[0]!r} is not among the names {', '.join(names)}.")
        if not 0 < servo_hz < math.inf:
            raise ValueError(f"Safety: servo_hz={servo_hz}, expected cycles a second, more than 0.")
        self.cfg, self.names = cfg, list(names)
        self._on_event = on_event
        self._instant = np.array([name in grippers for name in names])
        self._max_jump = np.array(cfg.max_jump, np.float64)
        self._lead = np.array(cfg.lead or [np.inf] * len(names), np.float64)
        limits = cfg.waypoint
        self.limiter = Limiter(limits, 1 / servo_hz, (np.array(limits.low) + np.array(limits.high)) / 2, names)
        # A gripper is told to open or close by values around its ends: that they are passed a little says nothing.
        self._trifle = np.where(self._instant, 0.02 * (self.limiter.high - self.limiter.low), 0.0)
        # Where the track changes speed, the setpoint begins to do so before: early enough for its slowest number.
        self._preview_s = float(self.limiter.braking_s[~self._instant].max(initial=0.0))
        self._clear(-np.inf)
        self._begun, self.state, self.reason = False, "stopped", "no episode yet: reset comes first"

    def reset(self, now_s: float, start_D: np.ndarray) -> None:
        """Begins an episode with the setpoint at `start_D` (D,): no plan, no counts, no stop.

        Raises:  ValueError, naming the number, if that is not finite or outside the workspace; all stays as it was.
        """
        self.limiter.reset(start_D)
        self._clear(now_s)
        self._begun = True

    def _clear(self, now_s: float) -> None:
        self.state, self.reason, self.plan = "holding", "no plan yet", -1
        self.interventions: Counter[str] = Counter()
        self.last: Intervention | None = None
        self._cause = ""  # kind of the present hold, "" if it is none
        self._leading = False  # the present cycles' target is too far from the measured pose
        self._heard_s = self._held_since_s = now_s
        self._observed_at_s = -np.inf
        self._times, self._waypoints = np.zeros(0), np.zeros((0, len(self.names)))  # of the plan, inside the workspace
        self._track = Track(self.limiter.position, self._instant)
        self.target = self.limiter.position

    def beat(self, now_s: float) -> None:
        """The controller is alive."""
        self._heard_s = now_s

    def stop(self, now_s: float, reason: str) -> None:
        """Brakes to a stand and stays so until `reset`. The first reason is kept."""
        if self.state != "stopped":
            self._stop(now_s, "stop", str(reason))

    def offer(self, plan: Plan, now_s: float) -> str:
        """Takes a plan to follow, if it may be followed. Counts as a beat.

        Returns:  "" if it was accepted, else the kind (see KINDS) of what speaks against it. Never raises for what a
                  plan holds. Waypoints that are past are left out; those outside the workspace are moved to its border.
        """
        self.beat(now_s)
        try:
            number, observed_at_s, times, waypoints = _read(plan, len(self.names))
        except Exception as error:  # whatever a hostile object does when it is looked at
            return self._refuse(
                now_s, "malformed", str(error)[:200] if type(error) is ValueError else type(error).__name__
            )
        if not (math.isfinite(observed_at_s) and np.isfinite(times).all() and np.isfinite(waypoints).all()):
            return self._refuse(now_s, "not_finite", f"plan {number}: {self._not_finite(times, waypoints)}")
        with np.errstate(over="ignore"):
            steps = np.diff(times)
        if not (steps >= SOON_S).all():
            i = int(np.argmin(steps))
            return self._refuse(
                now_s, "malformed", f"plan {number}: waypoint {i + 1} is due {steps[i]:.3g} s after the one before"
            )
        if self.state == "stopped":
            return self._refuse(now_s, "stopped", f"plan {number}: stopped ({self.reason})")
        if number <= self.plan:
            return self._refuse(now_s, "out_of_order", f"plan {number} after plan {self.plan}")
        age_s = now_s - observed_at_s
        if not -_AHEAD_S <= age_s <= self.cfg.max_observation_age_s:
            return self._refuse(
                now_s,
                "stale",
                f"plan {number}: its observation is {age_s:.4g} s old; at most {self.cfg.max_observation_age_s:g}",
            )
        ahead = times > now_s + SOON_S
        if not ahead.any():
            return self._refuse(
                now_s, "late", f"plan {number}: its last waypoint was due {now_s - times[-1]:.4g} s ago"
            )
        first = int(np.argmax(ahead))
        if far := self._far(waypoints[first]):
            return self._refuse(now_s, "jump", f"plan {number}, waypoint {first}: {far}")
        inside = np.clip(waypoints, self.limiter.low, self.limiter.high)
        over = np.abs(inside - waypoints)
        if (outside := over > self._trifle).any():
            row, i = np.argwhere(outside)[0]
            self._count(
                now_s,
                "workspace",
                f"plan {number}, waypoint {row}: {self.names[i]}={waypoints[row, i]:.4g}; "
                f"{self.limiter.low[i]:g} to {self.limiter.high[i]:g}",
            )
        if self.plan < 0:
            self._held_since_s = now_s
        self.plan, self._observed_at_s = number, observed_at_s
        self._times, self._waypoints = times[ahead], inside[ahead]
        if self.state == "moving":
            self._track.put(now_s, self._times, self._waypoints)
        return ""

    def setpoint(self, now_s: float, measured_D: np.ndarray | None = None) -> np.ndarray:
        """The setpoint (D,) float64 for the cycle that begins now; to be called once per cycle.

        Args:    measured_D: where the robot is, in the layout of a waypoint, if that is known.
        Raises:  RuntimeError before the first reset.
        """
        if not self._begun:
            raise RuntimeError("Safety.setpoint: no episode yet; call reset(now_s, start_D) first.")
        if self.state == "stopped":
            return self._brake()
        pose = None if measured_D is None else _pose(measured_D, len(self.names))
        cause, reason = self._held_by(now_s, measured_D is not None and pose is None)
        if not reason:
            if self.state == "holding":  # take up what is left of the plan, from where it stands
                self._track = Track(self.limiter.position, self._instant)
                left = self._times > now_s + SOON_S
                self._track.put(now_s, self._times[left], self._waypoints[left])
            self.state, self.reason, self._cause = "moving", "", ""
            return self._follow(now_s, pose)
        if cause and cause != self._cause:
            self._count(now_s, cause, reason)
        if self.state == "moving":
            self._held_since_s = now_s
        settles = reason == _ENDED and (self.state == "moving" or self.reason == _ENDED)  # on its last waypoint
        self.state, self.reason, self._cause = "holding", reason, cause
        if self.plan >= 0 and now_s - self._held_since_s >= self.cfg.watchdog_s:
            self._stop(now_s, "watchdog", f"held for {self.cfg.watchdog_s:g} s: {reason}")
        elif settles:
            return self._follow(now_s, pose)
        self._leading = False
        return self._brake()

    def _held_by(self, now_s: float, lost: bool) -> tuple[str, str]:
        """Why it must hold: the kind of intervention, "" if it is none, and the reason, "" if there is none."""
        if self.plan < 0:
            return "", "no plan yet"
        if lost:
            return "measured", f"the measured pose is not {len(self.names)} finite numbers"
        if now_s - self._heard_s > self.cfg.silence_s:
            return "silence", f"nothing heard for {self.cfg.silence_s:g} s"
        if self._times[-1] <= now_s + SOON_S:
            return "", _ENDED
        if now_s - self._observed_at_s > self.cfg.max_plan_age_s:
            return "age", f"the plan's observation is older than {self.cfg.max_plan_age_s:g} s"
        if self.state == "holding":
            far = self._far(self._waypoints[int(np.argmax(self._times > now_s + SOON_S))])
            return ("jump", f"next waypoint of plan {self.plan}: {far}") if far else ("", "")
        return "", ""

    def _brake(self) -> np.ndarray:
        self.target = self.limiter.brake()
        return self.limiter.position

    def _follow(self, now_s: float, pose: np.ndarray | None) -> np.ndarray:
        """One cycle along the track, no further from the measured pose than `lead`."""
        end_s = now_s + self.limiter.dt_s
        target, pace = self._track.at(end_s)
        if self._preview_s:
            pace = np.where(self._instant, 0.0, (self._track.at(end_s + self._preview_s)[0] - target) / self._preview_s)
        if pose is not None:
            near = np.minimum(np.maximum(target, pose - self._lead), pose + self._lead)
            led = near != target
            if led.any() and not self._leading:
                i = int(np.argmax(led))
                self._count(
                    now_s,
                    "lead",
                    f"{self.names[i]}: asked {target[i]:.4g}, measured {pose[i]:.4g}; at most {self._lead[i]:g} apart",
                )
            self._leading, target, pace = bool(led.any()), near, np.where(led, 0.0, pace)
        self.target = target
        return self.limiter.follow(target, pace)

    def _far(self, waypoint: np.ndarray) -> str:
        """Which number of a waypoint is further than `max_jump` from the setpoint; "" if none."""
        here = self.limiter.position
        distance = np.abs(waypoint - here)
        if (distance <= self._max_jump).all():
            return ""
        i = int(np.argmax(distance > self._max_jump))
        return (
            f"{self.names[i]}={waypoint[i]:.4g} is {distance[i]:.4g} from the setpoint {here[i]:.4g}; "
            f"at most {self._max_jump[i]:g}"
        )

    def _not_finite(self, times: np.ndarray, waypoints: np.ndarray) -> str:
        if not np.isfinite(waypoints).all():
            row, i = np.argwhere(~np.isfinite(waypoints))[0]
            return f"waypoint {row}: {self.names[i]}={waypoints[row, i]}"
        return "a time of a waypoint" if not np.isfinite(times).all() else "the time of its observation"

    def _refuse(self, now_s: float, kind: str, detail: str) -> str:
        self._count(now_s, kind, detail)
        return kind

    def _stop(self, now_s: float, kind: str, reason: str) -> None:
        self.state, self.reason = "stopped", reason
        self._count(now_s, kind, reason)

    def _count(self, now_s: float, kind: str, detail: str) -> None:
        self.interventions[kind] += 1
        self.last = Intervention(now_s, kind, detail)
        if self._on_event is not None:
            self._on_event(self.last)


def _read(plan: Plan, dims: int) -> tuple[int, float, np.ndarray, np.ndarray]:
    """Number, observed_at_s, times (n,) and waypoints (n, D) of a plan. Raises ValueError if they are none."""
    number, observed_at_s = plan.number, plan.observed_at_s
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or not -(2**63) <= number < 2**63:
        raise ValueError(f"number: expected a whole number, got {type(number).__name__}")
    if isinstance(observed_at_s, bool) or not isinstance(observed_at_s, int | float | np.integer | np.floating):
        raise ValueError(f"observed_at_s: expected seconds, got {type(observed_at_s).__name__}")
    arrays = []
    for name, values, shape in (("times_s", plan.times_s, "(n,)"), ("waypoints", plan.waypoints, f"(n, {dims})")):
        if type(values) is not np.ndarray or values.dtype.kind not in "fiu":
            got = values.dtype if type(values) is np.ndarray else type(values).__name__
            raise ValueError(f"{name}: expected an array {shape} of numbers, got {got}")
        arrays.append(values)
    times, waypoints = arrays
    n = times.shape[0] if times.ndim == 1 else 0
    if not 1 <= n <= _MOST or waypoints.shape != (n, dims):
        raise ValueError(
            f"times_s {times.shape} and waypoints {waypoints.shape}: expected (n,) and (n, {dims}), n from 1 to {_MOST}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # a long double may become an infinity
        return int(number), float(observed_at_s), times.astype(np.float64), waypoints.astype(np.float64)


def _pose(measured: Any, dims: int) -> np.ndarray | None:
    """A measured pose (D,), or None if it is not D finite numbers."""
    try:
        pose = np.asarray(measured, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return pose if pose.shape == (dims,) and np.isfinite(pose).all() else None


def check_config(cfg: SafetyConfig, names: Sequence[str], prefix: str = "robot.safety") -> None:
    """Raises ConfigError, naming the setting, for limits that are no limits of these D numbers of a waypoint.

    `joint` is for as many joints as it has, none by default. `lead` may be left out, and single numbers of `lead` and
    `max_jump` may be .inf: no limit.
    """
    dims = len(names)
    _check_limits(cfg.waypoint, names, f"{prefix}.waypoint")
    _check_limits(cfg.joint, [f"joint {i}" for i in range(len(cfg.joint.low))], f"{prefix}.joint")
    for key, values in (("max_jump", cfg.max_jump), ("lead", cfg.lead)):
        if len(values) != dims and not (key == "lead" and not values):
            raise ConfigError(f"{prefix}.{key} has {len(values)} numbers; expected {dims}: {', '.join(names)}.")
        for name, value in zip(names, values, strict=False):
            if not value > 0:
                raise ConfigError(f"{prefix}.{key}={values}: {name} is {value}; expected more than 0.")
    for key in ("max_observation_age_s", "max_plan_age_s", "silence_s", "watchdog_s"):
        value = getattr(cfg, key)
        if not 0 < value < math.inf:
            raise ConfigError(f"{prefix}.{key}={value}: seconds, more than 0.")


def _check_limits(limits: LimitsConfig, names: Sequence[str], prefix: str) -> None:
    for key, values in vars(limits).items():
        if len(values) != len(names):
            raise ConfigError(f"{prefix}.{key} has {len(values)} numbers; expected {len(names)}: {', '.join(names)}.")
        for name, value in zip(names, values, strict=True):
            if not math.isfinite(value) or not (value > 0 or key in ("low", "high")):
                raise ConfigError(
                    f"{prefix}.{key}={values}: {name} is {value}; expected a finite number"
                    f"{'' if key in ('low', 'high') else ' above 0'}."
                )
    for name, low, high in zip(names, limits.low, limits.high, strict=True):
        if not low < high:
            raise ConfigError(f"{prefix}.low={limits.low}: {name} is {low}, not below {prefix}.high, {high}.")
