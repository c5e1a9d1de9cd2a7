"""The whole robot's side on the real simulator, in virtual time: demonstrations play through safety and succeed."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from padpolicy_envs import rollout_expert

from padpolicy import config
from padpolicy.config import ControllerConfig
from padpolicy.control.clock import VirtualClock
from padpolicy.control.controller import Controller
from padpolicy.control.planner import Later
from padpolicy.control.robots.virtual import VirtualRobot
from padpolicy.data.collect import ENVS
from padpolicy.deploy.replay import Recorded


@pytest.fixture(scope="module")
def world():
    clock = VirtualClock()
    cfg = config.load("deploy", ["out=unused", "robot=tabletop", "robot.camera_hz=10"]).robot
    cfg.safety.max_plan_age_s = 60.0  # a recording looks only once
    cfg.options = {"cameras": ["front"], "image_size": 16}  # nobody looks
    robot = VirtualRobot(cfg, clock)
    yield clock, robot, cfg
    robot.close()


TASKS = ("open_drawer", "touch_red_cube", "press_red_button", "push_red_cube_left", "lift_red_cube")


def test_demonstrations_succeed_again_through_plans_safety_and_servo_and_no_limit_is_passed(world) -> None:
    clock, robot, cfg = world
    env = gymnasium.make("padpolicy/Tabletop-v0", cameras=())
    action, succeeded = ENVS["padpolicy/Tabletop-v0"].action, 0
    for seed, task in enumerate(TASKS):
        recorded = Recorded(np.array([told for _, _, told, _ in rollout_expert(env, seed, task)]), action, "tabletop")
        cfg_loop = ControllerConfig(execution="naive", exec_steps=1000, loop_hz=20)
        controller = Controller(robot, Later(recorded, clock, lambda: 0.0), recorded.spec, cfg_loop, clock)
        robot.reset({"task": task, "seed": seed})
        controller.begin("replay")
        succeeded += controller.drive(recorded.seconds + 0.5, lambda s: s.info["success"]).status.info["success"]
        setpoints, limits = np.array(robot.setpoints), cfg.safety.waypoint
        assert (setpoints >= np.array(limits.low) - 1e-9).all() and (setpoints <= np.array(limits.high) + 1e-9).all()
        for order, name in enumerate(("velocity", "acceleration", "jerk"), 1):
            rate = np.abs(np.diff(setpoints, n=order, axis=0)) * cfg.servo_hz**order
            assert (rate <= np.array(getattr(limits, name)) * (1 + 1e-4)).all(), name
    assert succeeded >= len(TASKS) - 1, "smoothed motion may miss once"


def test_a_blocked_arm_is_not_wound_up(world) -> None:
    """The setpoint waits for an arm that presses on the table, and says so."""
    clock, robot, cfg = world
    from padpolicy.control.robot import Plan

    robot.reset({"task": "open_drawer", "seed": 3})
    robot.beat()
    start = robot.status().commanded
    low = np.array([start[0], start[1], cfg.safety.waypoint.low[2], 0.0, 0.0])
    arm = robot._side.arm
    arm.write = lambda setpoint, joints, seconds: None  # the brakes are on
    try:
        now = clock.now_s()
        robot.command(
            Plan(0, now, now + 0.1 * np.arange(1, 11), start + np.linspace(0, 1, 11)[1:, None] * (low - start))
        )
        for i in range(20):
            robot.beat()
            clock.sleep_until(now + 0.05 * (i + 1))
        status = robot.status()
        assert status.interventions.get("lead", 0) >= 1
        assert (np.abs(status.commanded - status.measured)[:3] <= np.array(cfg.safety.lead[:3]) + 5e-3).all()
    finally:
        del arm.write
