"""A controller in a process of its own, to be killed: drives FakeArm to and fro, and says when it has begun."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    import fakes
    import numpy as np

    from padpolicy.control.robot import Plan
    from padpolicy.control.robots.process import RobotProcess

    robot = RobotProcess(fakes.robot_config(log=sys.argv[1]))
    robot.reset()
    print(robot.stop_url, flush=True)
    for number in range(10_000):
        now = time.monotonic()
        times = now + 0.1 * np.arange(1, 21)  # two seconds ahead: what holds the arm is not the end of the plan
        robot.command(Plan(number, now - 0.01, times, 0.3 * np.sin(3 * times)[:, None]))
        time.sleep(0.05)


if __name__ == "__main__":
    main()
