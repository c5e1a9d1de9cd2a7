"""Real units to about [-1, 1] and back, per robot and field. The statistics travel with the policy as JSON.

Every dimension is (x - center) * scale; how center and scale come about depends on what the dimension is:

    position-like     quantiles 1 % and 99 % go to -1 and 1 (nothing is clipped: the inverse is exact), unless rows lie
                      so far outside that they would pass -5 or 5: then the farthest goes there
    rotation          about zero, by one factor for the whole rotation; 6d, sines, cosines, quaternions stay as they are
    binary gripper    its two values go to -1 and 1, the smaller one to -1
    constant          goes to 0, with scale 1
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from padpolicy.data.actions import ActionSpec

_CONSTANT = 1e-6  # a smaller range, in the field's units, is no motion
_FAR = 5.0  # the farthest row: what moves less often than the quantiles see would lie at 1e4, in units of sensor jitter
_UNIT = re.compile(r"(^|_)(sin|cos|quat|q[wxyz]|rot6d|r6d|6d)(\d*)($|_)")
_ANGLE = re.compile(r"(^|_)(yaw|pitch|roll|rotvec|rx|ry|rz)(\d*)($|_)")


class Normalizer:
    """Built by `fit` or `from_json`."""

    def __init__(self, stats: dict[str, dict[str, dict[str, list[float]]]]) -> None:
        """Args: stats: robot -> field -> {"center": (D,), "scale": (D,)}."""
        self.stats = stats

    @classmethod
    def fit(
        cls,
        data: dict[str, dict[str, np.ndarray]],
        action_spec: ActionSpec,
        proprio_names: Sequence[str] = (),
    ) -> Normalizer:
        """Args: data: robot -> {"action": (N, A), "proprio": (N, P)}, all rows to learn from, real units.

        Raises:  ValueError for NaN, for no rows, where names and columns differ in number, and for a binary gripper
                 beyond its two values.
        """
        roles = {"action": _action_roles(action_spec), "proprio": [_proprio_role(name) for name in proprio_names]}
        grippers = {"action": action_spec.gripper_range}
        stats: dict[str, dict[str, dict[str, list[float]]]] = {}
        for robot, fields in data.items():
            for name, rows in fields.items():
                rows = np.asarray(rows, np.float64)
                if rows.ndim != 2 or rows.shape[1] != len(roles[name]) or len(rows) == 0:
                    raise ValueError(
                        f"normaliser of robot {robot!r}: {name} has shape {rows.shape}; "
                        f"expected (N > 0, {len(roles[name])})."
                    )
                if not np.isfinite(rows).all():
                    row, column = np.argwhere(~np.isfinite(rows))[0]
                    raise ValueError(
                        f"normaliser of robot {robot!r}: {name}[{row}, {column}] is NaN or infinite. "
                        "padpolicy validate names the episode."
                    )
                if name == "action" and (outside := action_spec.gripper_is_outside(rows)).any():
                    row = int(np.argmax(outside))
                    raise ValueError(
                        f"normaliser of robot {robot!r}: action[{row}, {rows.shape[1] - 1}] is {rows[row, -1]:g}, but the "
                        f"binary gripper is declared as gripper_range {action_spec.gripper_range}. Correct one of them; "
                        "padpolicy validate names the episode."
                    )
                stats.setdefault(robot, {})[name] = _fit_field(rows, roles[name], grippers.get(name))
        return cls(stats)

    def normalize(self, field: str, x: Tensor, robot: Sequence[str], has: Tensor | None = None) -> Tensor:
        """x (B, ..., D) in real units -> float32 of the same shape. Row b belongs to `robot[b]`.

        Rows without `has` (B,) bool are passed through: they are absent and need no statistic.

        Raises:  ValueError if a (robot, field) has no statistic, or one of another number of dimensions.
        """
        center, scale = self._table(field, x, robot, has)
        return (x.float() - center) * scale

    def unnormalize(self, field: str, x: Tensor, robot: Sequence[str], has: Tensor | None = None) -> Tensor:
        """The inverse of `normalize`."""
        center, scale = self._table(field, x, robot, has)
        return x.float() / scale + center

    def _table(self, field: str, x: Tensor, robot: Sequence[str], has: Tensor | None) -> tuple[Tensor, Tensor]:
        """center and scale of each row, (B, 1, ..., 1, D) float32."""
        if len(robot) != x.shape[0]:
            raise ValueError(f"{field}: {x.shape[0]} rows, but {len(robot)} robots.")
        absent = [False] * len(robot) if has is None else (~has).tolist()
        dim = x.shape[-1]
        centers, scales = [], []
        for name, is_absent in zip(robot, absent, strict=True):
            if is_absent:
                centers.append([0.0] * dim)
                scales.append([1.0] * dim)
                continue
            if field not in self.stats.get(name, {}):
                known = ", ".join(f"({r}, {f})" for r, fields in self.stats.items() for f in fields) or "none"
                raise ValueError(
                    f"no statistic for (robot {name!r}, field {field!r}); there are: {known}. Train with data of this "
                    "robot, or name the robot as in training."
                )
            entry = self.stats[name][field]
            if len(entry["center"]) != dim:
                raise ValueError(f"{field} of robot {name!r} has {dim} dims; its statistic has {len(entry['center'])}.")
            centers.append(entry["center"])
            scales.append(entry["scale"])
        shape = (len(robot), *[1] * (x.ndim - 2), dim)
        return (
            torch.tensor(centers, dtype=torch.float32, device=x.device).reshape(shape),
            torch.tensor(scales, dtype=torch.float32, device=x.device).reshape(shape),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the inverse."""
        return {"stats": self.stats}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Normalizer:
        for robot, fields in values["stats"].items():
            for name, entry in fields.items():
                numbers = np.array([entry["center"], entry["scale"]], np.float64)
                if not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
                    raise ValueError(f"statistic of (robot {robot!r}, field {name!r}) is damaged: {entry}.")
        return cls(values["stats"])


def _action_roles(spec: ActionSpec) -> list[str]:
    rotation = "unit" if spec.rotation == "6d" else "rotation"
    gripper = "binary" if spec.gripper == "binary" else "position"
    return [{"position": "position", "rotation": rotation, "gripper": gripper}[role] for role in spec.roles]


def _proprio_role(name: str) -> str:
    if _UNIT.search(name):
        return "unit"
    return "rotation" if _ANGLE.search(name) else "position"


def _fit_field(rows: np.ndarray, roles: list[str], gripper_range: Sequence[float] | None) -> dict[str, list[float]]:
    """rows (N, D) -> center and scale, (D,) each."""
    low, high = np.quantile(rows, [0.01, 0.99], axis=0)
    rare = high - low < _CONSTANT  # a dimension that moves in less than one row of a hundred still moves
    low, high = np.where(rare, rows.min(0), low), np.where(rare, rows.max(0), high)
    center = (low + high) / 2
    span = np.maximum(high - low, np.maximum(rows.max(0) - center, center - rows.min(0)) * 2 / _FAR)
    scale = 2 / np.where(span < _CONSTANT, 2.0, span)
    is_rotation = np.array([role == "rotation" for role in roles])
    if is_rotation.any():
        reach = np.maximum(np.maximum(np.abs(low), np.abs(high)), np.abs(rows).max(0) / _FAR)
        reach = float(reach[is_rotation].max())
        center[is_rotation], scale[is_rotation] = 0, 1 / reach if reach > _CONSTANT else 1
    is_unit = np.array([role == "unit" for role in roles])
    center[is_unit], scale[is_unit] = 0, 1
    if gripper_range is not None and "binary" in roles:
        low, high = sorted(gripper_range)
        center[roles.index("binary")], scale[roles.index("binary")] = (low + high) / 2, 2 / (high - low)
    return {"center": center.tolist(), "scale": scale.tolist()}
