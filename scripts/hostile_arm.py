"""Hostile plans against the live arm: its own log must show no setpoint outside any limit.

python scripts/hostile_arm.py --seconds 600 --out runs/hostile

Random, not finite, huge, late, reordered, duplicated and malformed plans go to the simulated arm in its own process, in
real time, mixed with sane ones, silences and resets. Then the log is read: position, velocity, acceleration and jerk of
every setpoint, and of the joints behind it, against the configuration. Exit code 1 if one is outside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy import config
from padpolicy.config import LimitsConfig
from padpolicy.control.robot import Plan
from padpolicy.control.robots.process import RobotProcess

TOLERANCE = 1e-5  # of a limit: the log has nine digits


def hostile(rng: np.random.Generator, number: int, now: float, here: np.ndarray) -> Any:
    """Something that calls itself a plan."""
    times = now + 0.1 * np.arange(1, 17)
    walk = here + np.cumsum(rng.uniform(-0.05, 0.05, (16, 5)), axis=0)
    kind = rng.integers(10)
    if kind == 0:
        return Plan(number, now - 0.05, times, walk)
    if kind == 1:
        walk[rng.integers(16), rng.integers(5)] = rng.choice([np.nan, np.inf, -np.inf])
        return Plan(number, now - 0.05, times, walk)
    if kind == 2:
        return Plan(number, now - 0.05, times, walk * 10.0 ** rng.integers(1, 300))
    if kind == 3:
        return Plan(number, now - rng.uniform(0, 20), times - rng.uniform(0, 3), walk)
    if kind == 4:
        return Plan(number - int(rng.integers(5)), now - 0.05, times, walk)
    if kind == 5:
        return Plan(number, now - 0.05, rng.permutation(times), walk)
    if kind == 6:
        return Plan(number, now - 0.05, times, walk[:, : rng.integers(5)])
    if kind == 7:
        return (None, "plan", 3.5, np.zeros(3), [1, 2], Plan("x", None, [], {}))[rng.integers(6)]  # type: ignore[arg-type]
    if kind == 8:
        return Plan(number, now - 0.05, now + 1e-4 * np.arange(1, 17), here + rng.uniform(-0.19, 0.19, (16, 5)))
    return Plan(number, now - 0.05, times, here + rng.choice([-0.19, 0.19], (16, 5)))


def worst(values: np.ndarray, dt_s: float, limits: LimitsConfig) -> dict[str, float]:
    """The largest share of each limit that consecutive values (n, D) used; 1 is the limit itself."""
    shares = {
        "position": float(
            np.maximum(
                (np.array(limits.low) - values) / (np.array(limits.high) - limits.low),
                (values - limits.high) / (np.array(limits.high) - limits.low),
            ).max()
            + 1
        )
    }
    for order, name in enumerate(("velocity", "acceleration", "jerk"), 1):
        if len(values) > order:
            rate = np.abs(np.diff(values, n=order, axis=0)) / dt_s**order
            shares[name] = float((rate / np.array(getattr(limits, name))).max())
    return shares


def check(log: Path, cfg: config.RobotConfig) -> tuple[dict[str, float], int, Counter[str]]:
    """Largest shares, setpoints read, interventions by kind."""
    shares: dict[str, float] = {}
    total, kinds = 0, Counter[str]()
    lines = (json.loads(line) for line in log.open())
    for fresh, group in itertools.groupby(lines, key=lambda line: line["what"] == "reset"):
        if fresh:
            continue
        episode = list(group)
        kinds.update(line["kind"] for line in episode if line["what"] == "intervention")
        setpoints = [line for line in episode if line["what"] == "setpoint"]
        total += len(setpoints)
        for key, limits in (("value", cfg.safety.waypoint), ("joints", cfg.safety.joint)):
            values = np.array([line[key] for line in setpoints])
            for name, share in worst(values, 1 / cfg.servo_hz, limits).items() if len(values) else ():
                name = f"{name} of {'setpoints' if key == 'value' else 'joints'}"
                shares[name] = max(shares.get(name, 0.0), share)
    return shares, total, kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    cfg = config.load("deploy", ["robot=tabletop", f"out={args.out}"]).robot
    cfg.log = str(Path(args.out) / "robot.jsonl")
    rng, robot, sent, resets = np.random.default_rng(args.seed), RobotProcess(cfg), 0, 0
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        status = robot.reset({"seed": int(rng.integers(1000))})
        resets += 1
        for number in range(10, 10 + int(rng.integers(100, 3000))):
            status = robot.status()
            robot.command(hostile(rng, number, status.time_s, status.commanded))
            sent += 1
            if status.state == "stopped" or time.monotonic() > end:
                break
            if rng.random() < 0.02:
                time.sleep(rng.uniform(0, 1.5 if rng.random() < 0.1 else 0.2))
            elif rng.random() < 0.2:
                time.sleep(rng.uniform(0, 0.02))
            if rng.random() < 0.0005:
                robot.stop("hostile")
    robot.close()
    shares, setpoints, kinds = check(Path(cfg.log), cfg)
    print(f"{sent} plans in {args.seconds:g} s, {resets} episodes, {setpoints} setpoints. Interventions: {dict(kinds)}")
    outside = {name: share for name, share in shares.items() if share > 1 + TOLERANCE}
    for name, share in shares.items():
        print(f"  {name:28} at most {share:.6f} of the limit")
    print(f"outside a limit: {outside or 'none'}")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
