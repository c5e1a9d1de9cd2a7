"""The loop in virtual time: a real robot's side, real safety, a policy with known answers."""

from __future__ import annotations

import dataclasses

import fakes
import numpy as np
import pytest

from padpolicy.config import ConfigError, ControllerConfig
from padpolicy.control.clock import VirtualClock
from padpolicy.control.controller import Controller, check_fit
from padpolicy.control.planner import Answer, Later, LocalBrain, Request
from padpolicy.control.robot import Plan
from padpolicy.control.robots.virtual import VirtualRobot

DT = 0.1


class Counting:
    """Plans that say which plan they are: all actions of plan n are 0.1 + 0.013 n^2, so nothing agrees by chance."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Answer:
        self.requests.append(request)
        chunk = np.full((8, 1), 0.1 + 0.013 * request.number**2, np.float32)
        if request.prefix is not None:
            chunk[: request.prefix_len] = request.prefix[: request.prefix_len]
        return Answer(request, chunk)


def drive(execution: str, delay: int, seconds: float = 2.0, brain=None, exec_steps: int = 2, **robot):
    """The plans that were sent and the setpoints that came of them."""
    clock, plans = VirtualClock(), []
    robot = VirtualRobot(fakes.robot_config(**robot), clock)
    planner = Later(brain or Counting(), clock, lambda: delay * DT)
    cfg = ControllerConfig(execution=execution, exec_steps=exec_steps, loop_hz=20)
    spec = fakes.spec(obs_steps=1, action={"kind": "delta", "names": ["dx"], "dt_s": DT, "scale": [fakes.SPEED]})
    controller = Controller(
        robot, planner, spec, cfg, clock, on_plan=lambda plan, answer: plans.append((clock.now_s(), plan))
    )
    robot.reset()
    controller.begin("go right", seed=1)
    driven = controller.drive(seconds)
    return plans, np.array(robot.setpoints)[:, 0], driven, planner.brain


def test_a_waypoint_is_due_one_step_after_its_action_begins() -> None:
    plans, setpoints, _, _ = drive("naive", 0, seconds=0.4)
    now, plan = plans[0]
    assert now == 0.0 and plan.observed_at_s == 0.0
    np.testing.assert_allclose(plan.times_s, DT * np.arange(1, 9))
    np.testing.assert_allclose(plan.waypoints[:, 0], fakes.SPEED * 0.1 * np.arange(1, 9), rtol=1e-6)
    assert abs(setpoints[9] - 0.01) < 2e-3  # a tenth of a second later it is about there


@pytest.mark.parametrize("delay", [1, 3])
def test_rtc_tells_the_policy_what_will_run_and_gets_it_back(delay: int) -> None:
    plans, _, _, brain = drive("rtc", delay)
    assert [r.prefix_len for r in brain.requests] == [0] + [delay] * (len(brain.requests) - 1)
    for (_, old), (_, new) in zip(plans[:-1], plans[1:], strict=True):
        for time, point in zip(new.times_s[:delay], new.waypoints[:delay], strict=True):
            before = np.interp(time, old.times_s, old.waypoints[:, 0])
            assert abs(point[0] - before) < 1e-6, "what runs while it thinks is what the old plan said"


def test_naive_plans_do_not_agree_where_rtc_plans_do() -> None:
    """The law above can fail."""
    plans, _, _, _ = drive("naive", 3)
    (_, old), (_, new) = plans[1], plans[2]
    assert abs(new.waypoints[2, 0] - np.interp(new.times_s[2], old.times_s, old.waypoints[:, 0])) > 1e-4


@pytest.mark.parametrize("delay", [0, 2])
def test_sync_stands_still_while_it_thinks(delay: int) -> None:
    plans, setpoints, driven, _ = drive("sync", delay)
    for now, plan in plans:
        np.testing.assert_allclose(plan.times_s, now + DT * np.arange(1, 3))
    arrivals = [now for now, _ in plans]
    np.testing.assert_allclose(np.diff(arrivals), (2 + delay) * DT, atol=0.051)
    if delay:
        at = round((arrivals[1] - 0.02) * 100)
        assert abs(setpoints[at] - setpoints[at - 5]) < 1e-4
    assert driven.late == 0


def test_ensemble_averages_all_plans_for_a_moment() -> None:
    plans, _, _, brain = drive("ensemble", 0, seconds=0.25)
    (_, first), (_, second) = plans[:2]
    anchor = first.waypoints[0, 0]  # where plan 2 was made; the setpoint lags a little, so compare with its own times
    weights = np.exp(-0.01 * np.arange(2))
    own = second.waypoints[0, 0] * weights.sum() - weights[0] * np.interp(
        second.times_s[0], first.times_s, first.waypoints[:, 0]
    )
    assert abs(own / weights[1] - (anchor + 0.113 * fakes.SPEED)) < 3e-3
    assert len(brain.requests) >= 3, "it asks at every step"


def test_what_is_late_is_dropped_and_counted() -> None:
    _, _, driven, _ = drive("naive", 3)
    assert driven.late == 3 * (driven.plans - 1), "the first plan begins when it arrives"


def test_a_plan_that_was_refused_is_not_built_upon() -> None:
    """The robot stands still, so the next plan begins when it arrives, and no prefix is made of what never ran."""
    cfg = fakes.robot_config()
    far = fakes.robot_config(safety=dataclasses.replace(cfg.safety, max_jump=[1e-6])).safety
    plans, setpoints, driven, brain = drive("rtc", 2, safety=far)
    assert driven.interventions["jump"] == len(plans) > 2 and not np.abs(setpoints).any()
    assert [r.prefix_len for r in brain.requests] == [0] * len(brain.requests)
    for now, plan in plans:
        np.testing.assert_allclose(plan.times_s[0], now + DT)


def test_replan_drops_the_answer_under_way_and_stands_still_until_the_next() -> None:
    clock, sent = VirtualClock(), []
    robot = VirtualRobot(fakes.robot_config(), clock)
    spec = fakes.spec(obs_steps=1, action={"kind": "delta", "names": ["dx"], "dt_s": DT, "scale": [fakes.SPEED]})
    cfg = ControllerConfig(loop_hz=20)
    planner = Later(Counting(), clock, lambda: 2 * DT)
    controller = Controller(robot, planner, spec, cfg, clock, on_plan=lambda p, a: sent.append((clock.now_s(), p)))
    robot.reset()
    controller.begin("go right")
    controller.drive(1.05)
    assert planner.busy
    before, at = len(sent), clock.now_s()
    controller.replan()
    controller.drive(1.5)
    resumed, plan = sent[before]
    assert plan.observed_at_s >= at + 0.2 and resumed >= at + 0.4, "made of what it saw standing still"
    np.testing.assert_allclose(plan.times_s[0], resumed + DT)
    still = np.array(robot.setpoints)[round((at + 0.25) * 100) : round(resumed * 100), 0]
    assert len(still) > 10 and np.ptp(still) < 1e-9
    assert robot.status().interventions.get("out_of_order", 0) == 0


def test_it_drives_to_the_goal_and_stops_there() -> None:
    policy = fakes.FakePolicy(
        obs_steps=1, action={"kind": "delta", "names": ["dx"], "dt_s": DT, "scale": [fakes.SPEED]}
    )
    clock = VirtualClock()
    robot = VirtualRobot(fakes.robot_config(), clock)
    controller = Controller(robot, Later(LocalBrain(policy), clock, lambda: DT), policy.spec, ControllerConfig(), clock)
    robot.reset({"x": -0.2})
    controller.begin("go right")
    driven = controller.drive(5.0, lambda status: status.info["success"])
    assert driven.status.info["success"] and 0.5 < driven.seconds < 2.0
    assert set(driven.interventions) <= {"workspace"}, "its plans reach beyond the line's end, nothing else"
    assert all(abs(s - DT) < 1e-6 for s in driven.reaction_s)


def test_a_robot_that_is_another_is_refused() -> None:
    robot = VirtualRobot(fakes.robot_config(), VirtualClock()).spec
    check_fit(fakes.spec(), robot)
    for changes, said in (
        ({"cameras": ["wrist"]}, "looks through wrist"),
        ({"action": {"kind": "delta", "names": ["dx", "dy"], "dt_s": 0.1}}, "2 numbers"),
        ({"action": {"kind": "unknown", "names": ["dx"], "dt_s": 0.1}}, "unknown"),
        ({"proprio_dim": 3}, "feels 3 numbers"),
        ({"renderer": "gl"}, "drawn by 'rays'"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_fit(fakes.spec(**changes), robot)


def test_absolute_numbers_in_another_order_are_refused() -> None:
    robot = dataclasses.replace(VirtualRobot(fakes.robot_config(), VirtualClock()).spec, names=["elbow", "base"])
    action = {"kind": "absolute", "names": ["base", "elbow"], "dt_s": 0.1}
    with pytest.raises(ConfigError, match="in this order"):
        check_fit(fakes.spec(action=action, action_dim=2), robot)


def test_plans_are_numbered_from_nought_in_each_episode() -> None:
    plans, _, _, _ = drive("rtc", 1)
    numbers = [plan.number for _, plan in plans]
    assert numbers == list(range(len(plans))) and isinstance(plans[0][1], Plan)
