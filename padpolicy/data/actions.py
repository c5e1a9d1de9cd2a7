"""What an action is, and how any chunk of actions becomes absolute waypoints.

numpy only: the robot's computer imports it. An action is laid out as [position ... | rotation ... | gripper].
Position means whatever moves along axes: metres of an end-effector, or joint angles. A *waypoint* has the layout
of an action, but every part of it is absolute and in SI units: position in metres or radians, rotation as yaw in
radians or as 6d, gripper as commanded.

Waypoints are anchored at the pose *commanded* (not measured) at observation time, so a tracking error is not
added up and a delta that was dropped is not lost for good.

Letters: T action steps, A action dims. `6d` is the first two rows of the rotation matrix, row after row (Zhou et
al., "On the continuity of rotation representations", CVPR 2019, in the row order of robomimic and pytorch3d).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KINDS = ("absolute", "delta", "relative_to_chunk_start", "unknown")
ROTATION_DIMS = {"none": 0, "yaw": 1, "6d": 6}
GRIPPERS = ("binary", "continuous", "none")
IDENTITY_6D = np.array([1, 0, 0, 0, 1, 0], np.float64)


@dataclass
class ActionSpec:
    """The meaning of each action dimension. Raises ValueError where the parts contradict each other."""

    kind: str  # "absolute", "delta" (from the step before), "relative_to_chunk_start" (from the anchor), or "unknown":
    #            a policy can be trained on that, but nobody can say what its numbers command, so no robot obeys it
    names: list[str]  # one per dimension, in order
    dt_s: float  # seconds from one action to the next
    frame: str = "base"  # "base": deltas along fixed axes; "tool": along the end-effector's own axes
    rotation: str = "none"  # "none", "yaw" or "6d"
    gripper: str = "none"  # "binary", "continuous" or "none"; the last dimension
    units: list[str] = field(default_factory=list)  # one per dimension, for people: "m", "rad", "1"
    scale: list[float] = field(default_factory=list)  # SI units per unit (0.02: a 1 moves 2 cm)
    gripper_range: list[float] = field(default_factory=lambda: [0.0, 1.0])  # values of a binary gripper: closed, open

    def __post_init__(self) -> None:
        self.names, self.units, self.scale = (
            list(self.names),
            list(self.units),
            [float(s) for s in self.scale],
        )
        self.gripper_range = [float(v) for v in self.gripper_range]
        for name, value, choices in (
            ("kind", self.kind, KINDS),
            ("rotation", self.rotation, tuple(ROTATION_DIMS)),
            ("gripper", self.gripper, GRIPPERS),
            ("frame", self.frame, ("base", "tool")),
        ):
            if value not in choices:
                raise ValueError(f"action {name} is {value!r}; expected one of {', '.join(choices)}.")
        if self.n_position < 0:
            raise ValueError(
                f"{self.dim} action names cannot hold rotation {self.rotation!r} and gripper {self.gripper!r}."
            )
        if self.frame == "tool" and (self.rotation == "none" or self.n_position != 3):
            raise ValueError("frame 'tool' needs x, y, z and a rotation ('yaw' or '6d'); else use 'base'.")
        self.units = self.units or ["1"] * self.dim
        self.scale = self.scale or [1.0] * self.dim
        for name, n in (("units", len(self.units)), ("scale", len(self.scale))):
            if n != self.dim:
                raise ValueError(f"action {name} has {n} entries for {self.dim} names {self.names}.")
        if not self.dt_s > 0:
            raise ValueError(f"action dt_s is {self.dt_s}; expected seconds, more than 0.")
        if len(set(self.gripper_range)) != 2 or len(self.gripper_range) != 2 or not np.isfinite(self.gripper_range).all():
            raise ValueError(f"action gripper_range is {self.gripper_range}; expected two values that differ.")

    @property
    def dim(self) -> int:
        return len(self.names)

    @property
    def n_position(self) -> int:
        return self.dim - ROTATION_DIMS[self.rotation] - (self.gripper != "none")

    @property
    def position(self) -> slice:
        return slice(0, self.n_position)

    @property
    def rotation_part(self) -> slice:
        return slice(self.n_position, self.n_position + ROTATION_DIMS[self.rotation])

    @property
    def gripper_part(self) -> slice:
        return slice(self.dim - (self.gripper != "none"), self.dim)

    @property
    def roles(self) -> list[str]:
        """Per dimension "position", "rotation" or "gripper"."""
        counts = (self.n_position, ROTATION_DIMS[self.rotation], int(self.gripper != "none"))
        return [role for role, n in zip(("position", "rotation", "gripper"), counts, strict=True) for _ in range(n)]

    def gripper_is_outside(self, action_NA: np.ndarray) -> np.ndarray:
        """(N,) bool: where a binary gripper is beyond its two values; between them it may be."""
        if self.gripper != "binary":
            return np.zeros(len(action_NA), bool)
        low, high = sorted(self.gripper_range)
        slack = 1e-3 * (high - low)  # float32
        return (action_NA[:, -1] < low - slack) | (action_NA[:, -1] > high + slack)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` is its inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ActionSpec:
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"action spec has unknown entries {unknown}; expected some of {sorted(known)}.")
        if missing := sorted({"kind", "names", "dt_s"} - set(values)):
            raise ValueError(f"action spec lacks {missing}.")
        return cls(**values)


def hold_action(spec: ActionSpec, last_A: np.ndarray) -> np.ndarray:
    """The action (A,), dtype of `last_A`, that pads a chunk after it: no motion, the gripper stays."""
    hold_A = np.array(last_A)
    if spec.kind == "delta":
        hold_A[spec.position] = 0
        hold_A[spec.rotation_part] = IDENTITY_6D if spec.rotation == "6d" else 0
    return hold_A


def to_waypoints(chunk_TA: np.ndarray, anchor_A: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """A chunk of environment actions as absolute waypoints.

    Args:    chunk_TA: actions in environment units.
             anchor_A: the waypoint commanded at observation time (its gripper entry is not read).
    Returns: (T, A) float64; waypoint i is what action i commands.
    Raises:  ValueError if the shapes do not fit the spec.
    """
    chunk_TA, anchor_A = _checked(chunk_TA, anchor_A, spec)
    waypoints_TA = chunk_TA * _scale(spec)
    if spec.kind == "absolute":
        return waypoints_TA
    pose_A = anchor_A
    for i, step_A in enumerate(waypoints_TA):
        waypoints_TA[i] = _moved(pose_A, step_A, spec)
        if spec.kind == "delta":
            pose_A = waypoints_TA[i]
    return waypoints_TA


def from_waypoints(waypoints_TA: np.ndarray, anchor_A: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """Inverse of `to_waypoints`: the chunk (T, A) float64 with these waypoints (yaw differences in -pi..pi)."""
    waypoints_TA, anchor_A = _checked(waypoints_TA, anchor_A, spec)
    step_TA = waypoints_TA.copy()
    if spec.kind != "absolute":
        before_TA = np.concatenate([anchor_A[None], waypoints_TA[:-1]]) if spec.kind == "delta" else anchor_A[None]
        before_T33 = np.broadcast_to(_matrices(before_TA[:, spec.rotation_part], spec), (len(step_TA), 3, 3))
        after_T33 = _matrices(waypoints_TA[:, spec.rotation_part], spec)
        move = waypoints_TA[:, spec.position] - before_TA[:, spec.position]
        if spec.frame == "tool":
            move = np.einsum("tji,tj->ti", before_T33, move)
        step_TA[:, spec.position] = move
        if spec.rotation == "yaw":
            turn = waypoints_TA[:, spec.rotation_part] - before_TA[:, spec.rotation_part]
            step_TA[:, spec.rotation_part] = (turn + np.pi) % (2 * np.pi) - np.pi
        elif spec.rotation == "6d":
            back_T33 = before_T33.transpose(0, 2, 1)
            turn_T33 = back_T33 @ after_T33 if spec.frame == "tool" else after_T33 @ back_T33
            step_TA[:, spec.rotation_part] = turn_T33[:, :2].reshape(-1, 6)
    return step_TA / _scale(spec)


def _checked(chunk_TA: np.ndarray, anchor_A: np.ndarray, spec: ActionSpec) -> tuple[np.ndarray, np.ndarray]:
    chunk_TA, anchor_A = np.asarray(chunk_TA, np.float64), np.asarray(anchor_A, np.float64)
    if chunk_TA.ndim != 2 or chunk_TA.shape[1] != spec.dim:
        raise ValueError(f"chunk has shape {chunk_TA.shape}; expected (T, {spec.dim}): {spec.names}.")
    if spec.kind == "unknown":
        raise ValueError(
            "the kind of these actions is 'unknown', so they cannot become waypoints and no robot may be sent them. Find "
            "out whether they are absolute or delta, and convert the recording with --action-kind."
        )
    if anchor_A.shape != (spec.dim,):
        raise ValueError(f"anchor has shape {anchor_A.shape}; expected ({spec.dim},): {spec.names}.")
    return chunk_TA, anchor_A


def _scale(spec: ActionSpec) -> np.ndarray:
    scale_A = np.array(spec.scale)
    scale_A[spec.gripper_part] = 1  # a gripper command has no SI unit
    if spec.rotation == "6d":
        scale_A[spec.rotation_part] = 1  # entries of a rotation matrix
    return scale_A


def _moved(pose_A: np.ndarray, step_A: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """The waypoint that one step (SI units) away from the waypoint `pose_A` is."""
    there_A = step_A.copy()  # keeps the gripper as commanded
    pose_33 = _matrices(pose_A[None, spec.rotation_part], spec)[0]
    move = step_A[spec.position]
    there_A[spec.position] = pose_A[spec.position] + (pose_33 @ move if spec.frame == "tool" else move)
    if spec.rotation == "yaw":
        there_A[spec.rotation_part] = pose_A[spec.rotation_part] + step_A[spec.rotation_part]
    elif spec.rotation == "6d":
        turn_33 = _matrices(step_A[None, spec.rotation_part], spec)[0]
        turned_33 = pose_33 @ turn_33 if spec.frame == "tool" else turn_33 @ pose_33
        there_A[spec.rotation_part] = turned_33[:2].ravel()
    return there_A


def _matrices(rotation: np.ndarray, spec: ActionSpec) -> np.ndarray:
    """(n, 0 | 1 | 6) rotations as matrices (n, 3, 3); 6d is made orthonormal (Gram-Schmidt)."""
    matrices = np.tile(np.eye(3), (len(rotation), 1, 1))
    if spec.rotation == "yaw":
        c, s = np.cos(rotation[:, 0]), np.sin(rotation[:, 0])
        matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1] = c, -s, s, c
    elif spec.rotation == "6d":
        first, second = rotation[:, :3], rotation[:, 3:]
        first = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
        second = second - (first * second).sum(1, keepdims=True) * first
        second = second / np.maximum(np.linalg.norm(second, axis=1, keepdims=True), 1e-9)
        matrices = np.stack([first, second, np.cross(first, second)], 1)
    return matrices
