"""The tabletop's arm as hardware."""

from __future__ import annotations

import numpy as np
import pytest
from padpolicy_envs import TASKS
from padpolicy_envs.arm import TabletopArm, task_of

SERVO_S = 0.01


@pytest.fixture(scope="module")
def arm():
    arm = TabletopArm(cameras=("front",), image_size=32)
    yield arm
    arm.close()


def go(arm: TabletopArm, setpoints: np.ndarray) -> np.ndarray:
    """Measured poses (n, 5) under setpoints (n, 5), one per servo cycle."""
    measured = []
    for setpoint in setpoints:
        arm.write(setpoint, arm.solve(setpoint), SERVO_S)
        measured.append(arm.measured())
    return np.array(measured)


def test_it_follows_a_line_within_millimetres_and_stands_where_it_was_sent(arm: TabletopArm) -> None:
    start = arm.reset({"task": "open_drawer", "seed": 3})
    np.testing.assert_allclose(arm.measured()[:4], start[:4], atol=2e-3)
    end = start + [0.05, -0.06, 0.04, 0.3, 0.0]
    share = np.linspace(0, 1, 51)[1:, None]
    line = start + share * (end - start)
    measured = go(arm, np.concatenate([line, np.repeat(end[None], 30, 0)]))
    assert np.abs(measured[10:50, :3] - line[10:, :3]).max() < 0.008
    assert np.abs(measured[-1, :3] - end[:3]).max() < 0.001 and abs(measured[-1, 3] - end[3]) < 0.01


def test_the_same_seed_is_the_same_scene_and_motion(arm: TabletopArm) -> None:
    runs = []
    for _ in range(2):
        start = arm.reset({"task": "touch_red_cube", "seed": 5})
        measured = go(arm, start + np.linspace(0, 1, 20)[:, None] * [0.03, 0, -0.03, 0, -1])
        runs.append((measured, arm.look()["rgb_front"]))
    assert np.array_equal(runs[0][0], runs[1][0]) and np.array_equal(runs[0][1], runs[1][1])


def test_words_stand_for_their_task(arm: TabletopArm) -> None:
    for name, task in TASKS.items():
        for i, words in enumerate(task.paraphrases):
            assert task_of(words) == {"task": name, "paraphrase": i}
        assert task_of(task.held_out_paraphrase) == {"task": name, "paraphrase": "held_out"}
    arm.reset({"instruction": "open the drawer", "seed": 1})
    info = arm.info()
    assert info["task"] == "open_drawer" and info["instruction"] == "open the drawer" and not info["success"]
    with pytest.raises(ValueError, match="'open the door': no task of the tabletop"):
        arm.reset({"instruction": "open the door"})


def test_it_looks_like_the_environment(arm: TabletopArm) -> None:
    import gymnasium

    env = gymnasium.make("padpolicy/Tabletop-v0", cameras=("front",), image_size=32)
    there, _ = env.reset(seed=7, options={"task": "lift_red_cube", "paraphrase": 0})
    arm.reset({"task": "lift_red_cube", "seed": 7, "paraphrase": 0})
    here = arm.look()
    assert here.keys() == there.keys() - {"instruction"}
    for name, value in here.items():
        assert np.array_equal(value, there[name]), name
    env.close()
