"""Actions and waypoints: exact values, and the two directions undo each other."""

import itertools
import json

import numpy as np
import pytest

from padpolicy.data.actions import IDENTITY_6D, ActionSpec, from_waypoints, hold_action, to_waypoints

ROTATION_NAMES = {"none": [], "yaw": ["yaw"], "6d": [f"r{i}" for i in range(6)]}


def make_spec(kind: str, rotation: str = "none", frame: str = "base", gripper: str = "binary") -> ActionSpec:
    names = ["x", "y", "z", *ROTATION_NAMES[rotation], *(["gripper"] if gripper != "none" else [])]
    return ActionSpec(kind, names, dt_s=0.1, frame=frame, rotation=rotation, gripper=gripper, scale=[0.02] * len(names))


def random_waypoints(spec: ActionSpec, n: int, rng: np.random.Generator) -> np.ndarray:
    waypoints = rng.uniform(-1, 1, (n, spec.dim))
    if spec.rotation == "6d":
        for row in waypoints:
            rotation, _ = np.linalg.qr(rng.standard_normal((3, 3)))
            row[spec.rotation_part] = rotation[:2].ravel()
    return waypoints


COMBINATIONS = [
    (kind, rotation, frame)
    for kind, rotation, frame in itertools.product(
        ("absolute", "delta", "relative_to_chunk_start"), ("none", "yaw", "6d"), ("base", "tool")
    )
    if not (frame == "tool" and rotation == "none")
]


@pytest.mark.parametrize(("kind", "rotation", "frame"), COMBINATIONS)
def test_from_waypoints_undoes_to_waypoints(kind, rotation, frame):
    spec, rng = make_spec(kind, rotation, frame), np.random.default_rng(0)
    waypoints = random_waypoints(spec, 9, rng)
    anchor, target = waypoints[0], waypoints[1:]
    chunk = from_waypoints(target, anchor, spec)
    np.testing.assert_allclose(to_waypoints(chunk, anchor, spec), target, atol=1e-9)


def test_deltas_add_up_from_the_anchor_in_si_units():
    spec = make_spec("delta", "yaw")
    chunk = np.array([[1, 0, 0, 0.5, 1], [1, 0, -1, 0.5, 0]])
    got = to_waypoints(chunk, np.array([0.1, 0.2, 0.3, 0, 9]), spec)
    np.testing.assert_allclose(got, [[0.12, 0.2, 0.3, 0.01, 1], [0.14, 0.2, 0.28, 0.02, 0]])


def test_tool_deltas_follow_the_tool():
    spec = ActionSpec("delta", ["x", "y", "z", "yaw"], 0.1, frame="tool", rotation="yaw")
    got = to_waypoints(np.array([[0, 0, 0, np.pi / 2], [1, 0, 0, 0]]), np.zeros(4), spec)
    np.testing.assert_allclose(got[1], [0, 1, 0, np.pi / 2], atol=1e-12)


def test_relative_actions_do_not_add_up():
    spec = ActionSpec("relative_to_chunk_start", ["x"], 0.1)
    assert to_waypoints(np.array([[1.0], [1.0]]), np.array([2.0]), spec).tolist() == [[3.0], [3.0]]


def test_absolute_actions_ignore_the_anchor():
    spec = ActionSpec("absolute", ["x"], 0.1)
    assert to_waypoints(np.array([[1.0], [2.0]]), np.array([50.0]), spec).tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize("rotation", ["none", "yaw", "6d"])
def test_hold_moves_nothing_and_keeps_the_gripper(rotation):
    spec = make_spec("delta", rotation)
    anchor = random_waypoints(spec, 1, np.random.default_rng(1))[0]
    hold = hold_action(spec, np.full(spec.dim, 0.7))
    reached = to_waypoints(np.stack([hold, hold]), anchor, spec)
    np.testing.assert_allclose(reached[:, : spec.dim - 1], np.tile(anchor[:-1], (2, 1)), atol=1e-12)
    assert hold[-1] == 0.7
    if rotation == "6d":
        assert hold[spec.rotation_part].tolist() == IDENTITY_6D.tolist()


def test_hold_of_absolute_actions_repeats_the_last():
    assert hold_action(make_spec("absolute", "yaw"), np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]


def test_roles_and_json_round_trip():
    spec = make_spec("delta", "yaw")
    assert spec.roles == ["position"] * 3 + ["rotation", "gripper"]
    assert ActionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_binary_gripper_may_be_between_its_values_not_beyond():
    spec = ActionSpec("delta", ["x", "gripper"], 0.1, gripper="binary", gripper_range=[1, -1])
    rows = np.array([[9, -1], [9, 1], [9, 0.3], [9, 1.0001], [9, 1.1], [9, -2]])
    assert spec.gripper_is_outside(rows).tolist() == [False] * 4 + [True] * 2
    assert not ActionSpec("delta", ["x", "gripper"], 0.1, gripper="continuous").gripper_is_outside(rows).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "deltas"}, "action kind is 'deltas'"),
        ({"rotation": "6d"}, "cannot hold rotation '6d'"),
        ({"scale": [1.0]}, "action scale has 1 entries for 2"),
        ({"dt_s": 0}, "dt_s is 0"),
        ({"frame": "tool"}, "frame 'tool' needs x, y, z"),
        ({"gripper_range": [1, 1]}, "gripper_range is [1.0, 1.0]; expected two values that differ"),
        ({"gripper_range": [0, 1, 2]}, "gripper_range is [0.0, 1.0, 2.0]; expected two values"),
        ({"colour": 1}, "unknown entries ['colour']"),
    ],
)
def test_contradictions_are_errors(change, message):
    values = {"kind": "delta", "names": ["x", "gripper"], "dt_s": 0.1, "gripper": "binary"} | change
    with pytest.raises(ValueError, match=message.replace("[", r"\[").replace("]", r"\]")):
        ActionSpec.from_dict(values)


def test_wrong_shapes_are_named():
    spec = make_spec("delta")
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \(T, 4\)"):
        to_waypoints(np.zeros((2, 3)), np.zeros(4), spec)
    with pytest.raises(ValueError, match=r"anchor has shape \(3,\)"):
        to_waypoints(np.zeros((2, 4)), np.zeros(3), spec)
