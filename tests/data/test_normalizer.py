"""Normaliser: it undoes itself, and each kind of dimension is scaled as it should be."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from padpolicy.data.actions import ActionSpec
from padpolicy.data.normalizer import Normalizer

SPEC = ActionSpec("delta", ["x", "y", "yaw", "gripper"], 0.1, rotation="yaw", gripper="binary")
PROPRIO = ["x", "sin_yaw", "cos_yaw", "still"]


def make_data(n: int = 500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    action = np.stack(
        [rng.uniform(-2, 6, n), rng.normal(0, 1e-3, n), rng.uniform(-0.1, 0.4, n), rng.integers(0, 2, n)], 1
    )
    yaw = rng.uniform(-3, 3, n)
    return {"action": action, "proprio": np.stack([rng.uniform(0, 1, n), np.sin(yaw), np.cos(yaw), np.full(n, 7.0)], 1)}


def test_inverse_undoes_forward():
    data = make_data()
    normalizer = Normalizer.fit({"arm": data}, SPEC, PROPRIO)
    for field, rows in data.items():
        x = torch.tensor(rows, dtype=torch.float32).reshape(50, 10, -1)
        y = normalizer.unnormalize(field, normalizer.normalize(field, x, ["arm"] * 50), ["arm"] * 50)
        torch.testing.assert_close(y, x, atol=1e-6, rtol=1e-6)


def test_each_kind_of_dimension():
    data = make_data()
    normalizer = Normalizer.fit({"arm": data}, SPEC, PROPRIO)
    action = normalizer.normalize("action", torch.tensor(data["action"])[:, None], ["arm"] * 500)[:, 0].numpy()
    low, high = np.quantile(action[:, :2], [0.01, 0.99], axis=0)
    np.testing.assert_allclose([low, high], [[-1, -1], [1, 1]], atol=1e-4)
    entry = normalizer.stats["arm"]["action"]
    assert entry["center"][2] == 0 and abs(1 / entry["scale"][2] - np.quantile(data["action"][:, 2], 0.99)) < 1e-9
    assert sorted(set(action[:, 3])) == [-1, 1]
    proprio = normalizer.stats["arm"]["proprio"]
    assert proprio["center"][1:] == [0, 0, 7] and proprio["scale"][1:] == [1, 1, 1]


def test_a_gripper_that_never_moved_is_scaled_like_one_that_did():
    still = make_data()
    still["action"][:, 3] = 1
    entry = Normalizer.fit({"arm": still}, SPEC, PROPRIO).stats["arm"]["action"]
    assert (entry["center"][3], entry["scale"][3]) == (0.5, 2.0)


def test_a_grippers_values_go_to_minus_one_and_one_in_either_order():
    data = make_data()
    for values in ([0.0, 1.0], [1.0, 0.0]):
        spec = replace(SPEC, gripper_range=values)
        normalizer = Normalizer.from_json(Normalizer.fit({"arm": data}, spec, PROPRIO).to_json())
        action = normalizer.normalize("action", torch.tensor(data["action"]), ["arm"] * 500)
        assert torch.equal(action[:, 3].double(), torch.tensor(data["action"][:, 3]) * 2 - 1)


def test_a_gripper_beyond_its_values_is_refused():
    data = make_data()
    data["action"][:, 3] = data["action"][:, 3] * 2 - 1
    first = int(np.argmin(data["action"][:, 3]))
    with pytest.raises(ValueError, match=rf"action\[{first}, 3\] is -1, but .* gripper_range \[0.0, 1.0\]"):
        Normalizer.fit({"arm": data}, SPEC, PROPRIO)
    Normalizer.fit({"arm": data}, replace(SPEC, gripper_range=[1.0, -1.0]), PROPRIO)


def test_6d_rotations_are_left_alone():
    spec = ActionSpec("absolute", ["x", *"abcdef"], 0.1, rotation="6d")
    entry = Normalizer.fit({"arm": {"action": np.random.default_rng(0).normal(size=(50, 7))}}, spec).stats["arm"][
        "action"
    ]
    assert entry["center"][1:] == [0] * 6 and entry["scale"][1:] == [1] * 6


def test_rare_motion_is_not_constant():
    rows = np.zeros((1000, 4))
    rows[3, 0] = 5
    entry = Normalizer.fit({"arm": {"action": rows}}, SPEC).stats["arm"]["action"]
    assert entry["scale"][0] == 2 / 5


def test_rare_motion_beside_jitter_stays_in_reach():
    rows = np.random.default_rng(0).normal(0, 1e-5, (1008, 4))
    rows[:8, [0, 2]] = 0.4
    rows[:, 3] = 0
    scale = np.array(Normalizer.fit({"arm": {"action": rows}}, SPEC).stats["arm"]["action"]["scale"])
    np.testing.assert_allclose(scale[[0, 2]] * 0.4, 5, rtol=1e-3)
    assert scale[1] * rows[:, 1].std() > 0.3  # jitter alone is all there is to see


def test_rows_use_their_own_robot_and_absent_rows_need_none():
    a, b = make_data(), make_data()
    b["action"] = b["action"] * [10, 10, 10, 1]
    normalizer = Normalizer.fit({"a": a, "b": b}, SPEC, PROPRIO)
    x = torch.full((3, 2, 4), 0.5)
    x[2] = float("nan")
    got = normalizer.normalize("action", x, ["a", "b", ""], has=torch.tensor([True, True, False]))
    torch.testing.assert_close(got[0], normalizer.normalize("action", x[:1], ["a"])[0])
    torch.testing.assert_close(got[1], normalizer.normalize("action", x[1:2], ["b"])[0])
    assert not torch.equal(got[0], got[1])


def test_json_round_trip():
    normalizer = Normalizer.fit({"arm": make_data()}, SPEC, PROPRIO)
    assert Normalizer.from_json(json.loads(json.dumps(normalizer.to_json()))).stats == normalizer.stats


def test_a_missing_or_damaged_statistic_is_an_error():
    normalizer = Normalizer.fit({"arm": make_data()}, SPEC, PROPRIO)
    with pytest.raises(
        ValueError, match=r"no statistic for \(robot 'leg', field 'action'\); there are: \(arm, action\)"
    ):
        normalizer.normalize("action", torch.zeros(1, 4), ["leg"])
    with pytest.raises(ValueError, match="has 5 dims; its statistic has 4"):
        normalizer.normalize("action", torch.zeros(1, 5), ["arm"])
    values = normalizer.to_json()
    values["stats"]["arm"]["action"]["scale"][0] = 0
    with pytest.raises(ValueError, match="is damaged"):
        Normalizer.from_json(values)


def test_nan_in_the_data_is_named():
    data = make_data()
    data["action"][17, 2] = np.nan
    with pytest.raises(ValueError, match=r"action\[17, 2\] is NaN"):
        Normalizer.fit({"arm": data}, SPEC, PROPRIO)
