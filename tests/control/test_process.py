"""The robot's own process: real time, a real pipe, real kills. What it did is read from its log, by its own clock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import fakes
import numpy as np
import pytest

from padpolicy.control.robot import Plan
from padpolicy.control.robots.process import RobotError, RobotProcess

CYCLE_S = 0.01


def read(log: Path) -> list[dict]:
    """Whole lines of a robot's log."""
    text = log.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def lines(log: Path, what: str) -> list[dict]:
    return [line for line in read(log) if line["what"] == what]


@pytest.fixture
def robot(tmp_path):
    robot = RobotProcess(fakes.robot_config(log=str(tmp_path / "robot.jsonl")))
    yield robot
    robot.close()


def ahead(number: int, value: float = 0.2) -> Plan:
    now = time.monotonic()
    return Plan(number, now - 0.1, now + 0.1 * np.arange(1, 9), np.full((8, 1), value))  # seen a moment ago


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_killed_or_hung_the_arm_holds_within_a_period_and_stops_by_the_watchdog(
    tmp_path: Path, how: signal.Signals
) -> None:
    log = tmp_path / "robot.jsonl"
    controller = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("drive_fake.py")), str(log)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert controller.stdout is not None
        controller.stdout.readline()
        wait(lambda: log.exists() and len(lines(log, "plan")) > 10)
        os.kill(controller.pid, how)
        wait(lambda: bool(lines(log, "stopped")))
    finally:
        controller.kill()  # also of what is hung
        controller.communicate()
    heard = lines(log, "plan")[-1]["time_s"]
    held = next(line for line in lines(log, "holding") if line["time_s"] > heard)
    stopped = lines(log, "stopped")[-1]
    assert 0 < held["time_s"] - heard <= 0.1 + 2 * CYCLE_S, "silence of one control period"
    assert abs(stopped["time_s"] - held["time_s"] - 1.0) <= 2 * CYCLE_S, "the watchdog's second"
    setpoints = [(s["time_s"], s["value"][0]) for s in lines(log, "setpoint")]
    still = [value for at, value in setpoints if held["time_s"] + 0.1 <= at <= stopped["time_s"]]
    assert len(still) > 50 and max(still) - min(still) < 1e-9, "braked, and did not move again"


def test_stop_over_http_stops_without_the_controller(robot: RobotProcess, tmp_path: Path) -> None:
    robot.reset()
    robot.command(ahead(0))
    with urllib.request.urlopen(urllib.request.Request(robot.stop_url + "/stop", method="POST")) as answer:
        assert json.load(answer) == {"stopping": True}
    wait(lambda: robot.status().state == "stopped")
    assert robot.status().reason == "HTTP"
    with urllib.request.urlopen(robot.stop_url + "/status") as answer:
        assert json.load(answer)["state"] == "stopped"


def test_a_signal_stops_it(robot: RobotProcess) -> None:
    robot.reset()
    os.kill(robot.pid, signal.SIGTERM)
    wait(lambda: robot.status().state == "stopped")
    assert robot.status().reason == "signal SIGTERM"


def test_closing_brakes_before_it_lets_go(robot: RobotProcess, tmp_path: Path) -> None:
    robot.reset()
    now = time.monotonic()
    robot.command(Plan(0, now - 0.1, now + 0.1 * np.arange(1, 11), 0.09 * np.arange(1, 11)[:, None]))
    wait(lambda: robot.beat() or robot.status().commanded[0] > 0.15)  # type: ignore[func-returns-value]
    robot.close()
    values = [line["value"][0] for line in lines(tmp_path / "robot.jsonl", "setpoint")]
    values += values[-1:] * 2  # the arm stays at the last
    speed, change = np.diff(values) / CYCLE_S, np.diff(values, n=2) / CYCLE_S**2
    assert speed.max() > 0.5 and np.abs(change).max() <= 100 * (1 + 1e-6), "no faster than its acceleration allows"


def test_a_reset_begins_anew(robot: RobotProcess) -> None:
    robot.reset({"x": 0.4})
    robot.command(ahead(5, 0.45))
    wait(lambda: robot.status().plan == 5)
    robot.stop("enough")
    wait(lambda: robot.status().state == "stopped")
    status = robot.reset({"x": -0.4})
    assert status.state == "holding" and status.plan == -1 and status.interventions == {}
    seen = robot.observe()
    assert (
        seen is not None and seen.commanded.tolist() == [-0.4] and seen.fields["proprio"].tolist() == [np.float32(-0.4)]
    )


def test_what_is_no_plan_is_refused_and_the_arm_lives(robot: RobotProcess) -> None:
    robot.reset()
    for garbage in ("plan", None, Plan(0, np.nan, np.zeros(3), np.zeros((3, 1))), Plan("x", 0, [], {}), 7):
        robot.command(garbage)  # type: ignore[arg-type]
    wait(lambda: sum(robot.status().interventions.values()) == 5)
    assert robot.status().plan == -1
    robot.command(ahead(0))
    wait(lambda: robot.status().plan == 0)


def test_an_arm_that_cannot_be_made_says_why() -> None:
    with pytest.raises(RobotError, match="robot.make='fakes:Nothing'"):
        RobotProcess(fakes.robot_config(make="fakes:Nothing"))
    with pytest.raises(RobotError, match=r"robot\.safety\.waypoint"):
        RobotProcess(fakes.robot_config(safety=type(fakes.robot_config().safety)()))


def test_a_process_that_has_gone_says_so(robot: RobotProcess) -> None:
    robot.reset()
    os.kill(robot.pid, signal.SIGKILL)
    with pytest.raises(RobotError, match="has ended"):
        wait(lambda: robot.beat() is not None)


def test_observations_come_at_the_cameras_rate_with_their_latency(tmp_path: Path) -> None:
    robot = RobotProcess(fakes.robot_config(camera_hz=50.0, camera_latency_s=0.2, log=str(tmp_path / "log")))
    try:
        robot.reset()
        seen: dict[float, float] = {}

        def look() -> bool:
            robot.beat()
            newest = robot.observe()
            if newest is not None:
                seen.setdefault(newest.time_s, time.monotonic())
            return len(seen) > 20

        wait(look)
        times = sorted(seen)
        assert all(arrived - taken >= 0.2 - CYCLE_S for taken, arrived in seen.items())
        steps = np.diff(times) / 0.02
        np.testing.assert_allclose(steps, np.round(steps), atol=0.02)
    finally:
        robot.close()
