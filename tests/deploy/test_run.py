"""A policy drives an arm in its own process, in real time; the recording drives it again."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fakes

from padpolicy.config import ConfigError, ControllerConfig, DeployConfig, LimitsConfig, ReplayConfig
from padpolicy.control.planner import Beside, LocalBrain
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Store
from padpolicy.data.validate import validate
from padpolicy.deploy import deploy, replay
from padpolicy.deploy.replay import Recorded
from padpolicy.deploy.run import Key, drive

ACTION = {"kind": "delta", "names": ["dx"], "dt_s": 0.1, "scale": [fakes.SPEED]}


def driven(out: Path, **changes) -> tuple[dict, list[str]]:
    policy, said = fakes.FakePolicy(obs_steps=1, action=ACTION), []
    # Patient limits: a test machine that is busy must not fail it.
    safety = dataclasses.replace(fakes.robot_config().safety, silence_s=5.0, watchdog_s=20.0, max_observation_age_s=5.0)
    safety.max_plan_age_s = 10.0
    cfg = DeployConfig(
        out=str(out),
        checkpoint="fake",
        instruction="go right",
        seconds=20.0,
        page=False,
        robot=fakes.robot_config(safety=safety, name=""),
        controller=ControllerConfig(execution="naive"),
    )
    return drive(dataclasses.replace(cfg, **changes), Beside(LocalBrain(policy)), policy.spec, said.append), said


def test_it_reaches_the_goal_and_leaves_a_recording_a_log_and_results(tmp_path: Path) -> None:
    results, said = driven(tmp_path, episodes=2, seed=3)
    assert results["succeeded"] == 2 and [e["seed"] for e in results["episodes"]] == [3, 4]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert any("done after" in line for line in said)
    with Store.open(tmp_path / "recording.zarr") as store:
        assert store.n_episodes == 2 and store.meta["episode_success"].all() and store.robot == "fake"
        assert store.tasks[0]["paraphrases"] == ["go right"]
        start, stop = store.bounds(0)
        x = store.read("proprio", start, stop)[:, 0]
        moved = store.read("action", start, stop)[:-1, 0] * fakes.SPEED
        np.testing.assert_allclose(np.diff(x), moved, atol=0.03)  # what was commanded is what it did, but for its lag
        assert abs(moved.sum() - (x[-1] - x[0])) < 0.03
    assert not [f for f in validate(tmp_path / "recording.zarr") if f.level == "error"]
    log = [json.loads(line) for line in (tmp_path / "robot.jsonl").read_text().splitlines()]
    assert {"reset", "plan", "setpoint", "moving"} <= {line["what"] for line in log}


def test_a_recording_drives_the_robot_again(tmp_path: Path) -> None:
    driven(tmp_path / "first")
    cfg = ReplayConfig(
        path=str(tmp_path / "first/recording.zarr"), out=str(tmp_path / "again"), page=False, robot=fakes.robot_config()
    )
    cfg.robot.safety = dataclasses.replace(cfg.robot.safety, silence_s=5.0, watchdog_s=20.0, max_observation_age_s=5.0)
    results = replay(cfg, lambda said: None)
    assert results["succeeded"] == 1 and results["episodes"][0]["instruction"] == "go right"
    with pytest.raises(ConfigError, match="numbers"):
        two = LimitsConfig(*([value] * 2 for (value,) in vars(cfg.robot.safety.waypoint).values()))
        safety = dataclasses.replace(cfg.robot.safety, waypoint=two, max_jump=[1.0, 1.0])
        robot = dataclasses.replace(cfg.robot, make="fakes:FakeArm2", safety=safety)
        replay(dataclasses.replace(cfg, robot=robot), lambda said: None)


def test_an_episode_longer_than_a_plan_can_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="1001 steps; a plan can have 1000"):
        Recorded(np.zeros((1001, 1)), ActionSpec.from_dict(ACTION), "fake")


def test_a_dry_run_sends_nothing(tmp_path: Path) -> None:
    results, _ = driven(tmp_path, dry_run=True, seconds=1.0)
    log = [json.loads(line) for line in (tmp_path / "robot.jsonl").read_text().splitlines()]
    assert results["episodes"][0]["plans"] > 0 and not [line for line in log if line["what"] == "plan"]
    assert {line["value"][0] for line in log if line["what"] == "setpoint"} == {0.0}
    assert not (tmp_path / "recording.zarr").exists()


def test_enter_stops_the_robot_while_it_drives_and_is_left_alone_afterwards(monkeypatch) -> None:
    stopped, (keyboard, terminal) = [], os.openpty()
    with os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        robot = SimpleNamespace(stop=stopped.append)
        with Key(robot):  # type: ignore[arg-type]
            os.write(keyboard, b"\n")
            while not stopped:
                time.sleep(0.01)
        with Key(robot):  # type: ignore[arg-type]
            pass
        os.write(keyboard, b"y\n")
        assert stdin.readline() == "y\n" and stopped == ["key"]
    os.close(keyboard)


def test_it_needs_one_policy(tmp_path: Path) -> None:
    for given in ({}, {"checkpoint": "a", "server": "ws://b"}):
        with pytest.raises(ConfigError, match="needs one of checkpoint"):
            deploy(DeployConfig(out=str(tmp_path), **given))


def test_a_policy_that_knows_no_prefix_is_not_given_one(tmp_path: Path) -> None:
    cfg = DeployConfig(
        out=str(tmp_path),
        checkpoint="tabletop",
        brain="thread",
        device="cpu",
        controller=ControllerConfig(execution="rtc"),
    )
    with pytest.raises(ConfigError, match="prefix_share above 0"):
        deploy(cfg, lambda said: None)
