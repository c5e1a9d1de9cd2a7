"""Hostile plans through Safety: not one setpoint may leave a limit.

    python scripts/hostile_plans.py --plans 1000000 --seed 0

Random, NaN, infinite, huge, late, reordered, duplicated, malformed and good plans are offered to Safety with the limits
of a table-top arm; between them run servo cycles, some without a sign of life, some with a wild measured pose. Of every
setpoint: is it inside the workspace, and are its differences inside velocity, acceleration and jerk? Prints counts by
kind and the largest share of each limit that was used; the exit code is 1 if any was exceeded. The same seed gives the
same plans and the same answer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

import numpy as np

from padpolicy.config import LimitsConfig, SafetyConfig
from padpolicy.control.robot import Plan
from padpolicy.control.safety import KINDS, Safety

NAMES = ["x", "y", "z", "yaw", "gripper"]
LIMITS = LimitsConfig(
    low=[0.29, -0.28, 0.008, -1.7, 0.0],
    high=[0.67, 0.28, 0.26, 1.7, 1.0],
    velocity=[0.6, 0.6, 0.6, 4.0, 5.0],
    acceleration=[8.0, 8.0, 8.0, 50.0, 60.0],
    jerk=[400.0, 400.0, 400.0, 2500.0, 3000.0],
)
CONFIG = SafetyConfig(
    waypoint=LIMITS, lead=[0.08, 0.08, 0.08, 0.8, np.inf], max_jump=[0.15, 0.15, 0.15, 1.5, np.inf], watchdog_s=0.5
)
LOW, HIGH = np.array(LIMITS.low), np.array(LIMITS.high)
SERVO_HZ = 100.0
BLOCK = 20_000  # setpoints that are checked at once
WILD = [np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, 1e16, 1.0]
GARBAGE = [None, "plan", [], [[0.0] * 5], 10**400, True, 1j, b"\0", {}, np.float64(1), np.zeros((2, 2, 2)), object()]


def good(rng: np.random.Generator, number: int, now_s: float, here: np.ndarray) -> Plan:
    """A plan of a lively policy: a random walk from where the robot is, sometimes across the border."""
    n = int(rng.integers(2, 17))
    observed_at_s = now_s - rng.uniform(0, 0.1)
    speed = rng.choice([0.1, 0.5, 1.0, 3.0]) * np.array(LIMITS.velocity)
    dt_s = rng.choice([0.01, 0.05, 0.1])
    start = np.where(rng.random(5) < 0.1, rng.choice([LOW, HIGH]), here)
    waypoints = start + np.cumsum(rng.normal(size=(n, 5)) * speed * dt_s, axis=0)
    return Plan(number, observed_at_s, observed_at_s + dt_s * np.arange(n), waypoints)


def hostile(rng: np.random.Generator, plan: Plan, now_s: float) -> Plan:
    """The plan, spoilt in one of many ways."""
    times, waypoints = plan.times_s, plan.waypoints
    kind = rng.integers(12)
    if kind == 0:  # wild numbers among the waypoints
        for _ in range(rng.integers(1, 4)):
            waypoints[rng.integers(len(waypoints)), rng.integers(5)] = rng.choice(WILD)
    elif kind == 1:  # wild times
        times[rng.integers(len(times))] = rng.choice(WILD)
    elif kind == 2:  # all over the place
        plan.waypoints = rng.normal(size=waypoints.shape) * 10.0 ** rng.integers(-320, 308)
    elif kind == 3:  # reordered, duplicated
        plan.number = int(plan.number - rng.integers(1, 5))
    elif kind == 4:  # from another time
        plan.observed_at_s = float(rng.choice([now_s - 10, now_s + 10, now_s - 0.79, *WILD]))
    elif kind == 5:  # late
        plan.times_s = times - rng.choice([0.1, 1.0, 10.0])
    elif kind == 6:  # due at nearly the same moment
        plan.times_s = now_s + np.cumsum(np.full(len(times), rng.choice([0.0, 1e-16, 1e-7, 2e-6, 1e-5, 1e-3])))
    elif kind == 7:  # backwards
        plan.times_s = times[::-1].copy()
    elif kind == 8:  # something else in a field
        field = str(rng.choice(["number", "observed_at_s", "times_s", "waypoints"]))
        setattr(plan, field, GARBAGE[rng.integers(len(GARBAGE))])
    elif kind == 9:  # another shape or type
        odd = [waypoints[:-1], waypoints.T, waypoints[:, :4], waypoints[None], waypoints.astype(object)]
        odd += [waypoints.astype(str), waypoints.astype(complex), np.zeros((0, 5)), np.zeros((1001, 5)), waypoints > 0]
        plan.waypoints = odd[rng.integers(len(odd))]
    elif kind == 10:  # to and fro between the corners, as fast as may be
        corners = np.where(rng.random(waypoints.shape) < 0.5, LOW, HIGH)
        plan.waypoints = np.clip(corners, waypoints[0] - 0.14, waypoints[0] + 0.14)
    else:  # integers, single precision, far futures
        plan.waypoints = waypoints.astype(rng.choice([np.int8, np.uint64, np.float16, np.float32, np.longdouble]))
        plan.times_s = times + np.r_[np.zeros(len(times) - 1), 10.0 ** rng.integers(0, 309)]
    return plan


class Referee:
    """Holds setpoints against the limits, a block at a time; the last three go on to the next block."""

    def __init__(self) -> None:
        self.share = dict.fromkeys(("workspace", "velocity", "acceleration", "jerk"), 0.0)
        self.violations = self.setpoints = 0
        self._row: list[np.ndarray] = []
        self._fresh = 0

    def begin(self, start: np.ndarray) -> None:
        """A new episode, which stands still at `start`."""
        self.check()
        self._row, self._fresh = [start] * 3, 0

    def see(self, setpoint: np.ndarray) -> None:
        self._row.append(setpoint)
        self._fresh += 1
        if self._fresh >= BLOCK:
            self.check()

    def check(self) -> None:
        if not self._fresh:
            return
        row = np.array(self._row)
        used = {"workspace": np.abs(row[3:] - (LOW + HIGH) / 2) / ((HIGH - LOW) / 2)}
        for order, key in enumerate(("velocity", "acceleration", "jerk"), 1):
            used[key] = np.abs(np.diff(row, order, axis=0)) * SERVO_HZ**order / np.array(getattr(LIMITS, key))
        for key, share in used.items():
            self.share[key] = max(self.share[key], float(share.max()))
            self.violations += int((~(share <= 1 + 1e-9)).sum())  # a NaN is one, too
        self.setpoints += self._fresh
        self._row, self._fresh = self._row[-3:], 0


def run(plans: int, seed: int) -> tuple[Referee, Counter[str], int]:
    """Offers so many plans. Returns the referee, interventions by kind, and how many plans were accepted."""
    rng = np.random.default_rng(seed)
    safety = Safety(CONFIG, NAMES, ["gripper"], SERVO_HZ)
    referee, counts, accepted = Referee(), Counter[str](), 0
    now_s, number, seen = 0.0, 0, 0
    arm = np.zeros(5)
    for offered in range(plans):
        if offered == 0 or safety.state == "stopped" and rng.random() < 0.3 or rng.random() < 1e-4:
            counts += safety.interventions
            arm = np.where(rng.random(5) < 0.2, rng.choice([LOW, HIGH]), rng.uniform(LOW, HIGH))
            safety.reset(now_s, arm)
            referee.begin(arm)
            number = 0
        number += 1
        plan = good(rng, number, now_s, safety.limiter.position)
        if rng.random() < 0.6:
            with np.errstate(all="ignore"):
                plan = hostile(rng, plan, now_s)
        answer = safety.offer(plan, now_s)
        accepted += not answer
        number = max(number - 5, safety.plan) if answer else safety.plan
        if rng.random() < 2e-3:
            safety.stop(now_s, "a person")
        pause = rng.random()  # no plans for longer than `max_plan_age_s`; no beats for longer than `silence_s`
        for _ in range(rng.integers(*((100, 250) if pause < 0.002 else (20, 80) if pause < 0.015 else (0, 5)))):
            luck = rng.random()
            measured = None if luck < 0.5 else arm
            if luck > 0.97:
                measured = rng.choice(WILD, 5) if luck > 0.99 else rng.normal(size=5) * 10.0 ** rng.integers(-3, 4)
            setpoint = safety.setpoint(now_s, measured)
            referee.see(setpoint)
            if luck < 0.9:  # otherwise it is blocked
                arm = arm + 0.7 * (setpoint - arm)
            now_s += 1 / SERVO_HZ
            if luck < 0.8 and not 0.002 < pause < 0.015:
                safety.beat(now_s)
            seen += 1
    referee.check()
    assert referee.setpoints == seen
    return referee, counts + safety.interventions, accepted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.perf_counter()
    referee, counts, accepted = run(args.plans, args.seed)
    print(f"{args.plans} plans, {accepted} accepted; {referee.setpoints} setpoints; seed {args.seed}")
    for kind in KINDS:
        print(f"  {kind:12s} {counts[kind]:9d}")
    print("largest share of a limit that was used:")
    for key, share in referee.share.items():
        print(f"  {key:12s} {share:.9f}")
    print(f"violations     {referee.violations}")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return int(referee.violations > 0)


if __name__ == "__main__":
    sys.exit(main())
