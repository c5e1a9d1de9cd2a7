"""The tabletop's arm as hardware: told where to be, a hundred times a second, not what to do ten times a second."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from . import scene as geometry
from .tabletop import CONTROL_DT, HOLD_STEPS, PROPRIO_LOW, Tabletop
from .tasks import TASKS

PHYSICS_DT = 0.002


class TabletopArm:
    """Setpoints in, pictures out, in steps of physics of 2 ms. A setpoint is x, y, z [m], yaw [rad], opening [0, 1].

    Args:  cameras, depth, image_size, renderer: as of Tabletop.
    """

    names = ("x", "y", "z", "yaw", "gripper")
    grippers = ("gripper",)
    joints = geometry.ARM_JOINTS
    proprio_dim = len(PROPRIO_LOW)
    simulated = True

    def __init__(self, **options: Any):
        self._env = Tabletop(**options)
        self._env.model.opt.timestep = PHYSICS_DT
        self.cameras = {camera: (self._env.image_size, self._env.image_size) for camera in self._env.cameras}
        self.depth_cameras = list(self._env.cameras) if self._env.depth else []
        self.renderer = self._env.renderer

    def reset(self, options: Mapping[str, Any]) -> NDArray[np.float64]:
        """Lays out a scene. Returns the setpoint [5] that the arm stands at.

        Options: `seed`, those of Tabletop.reset, and `instruction`, which stands for the task that it asks for.
        """
        options = dict(options)
        if words := options.pop("instruction", ""):
            options |= task_of(words)
        self._env.reset(seed=int(options.pop("seed", 0)), options=options)
        self._elapsed = self._checked = self._held_s = 0.0
        self._done = False
        return self._env.commanded_pose

    def measured(self) -> NDArray[np.float64]:
        """Where the hand is [5], as a setpoint would say it."""
        env = self._env
        return np.array([*env.tip, env.yaw, env.opening / geometry.GRIPPER_WIDTH])

    def solve(self, setpoint: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joint angles [6], radians, for a setpoint, near those of before."""
        return self._env._solve(self._env._joints, setpoint)

    def write(self, setpoint: NDArray[np.float64], joints: NDArray[np.float64], seconds: float) -> None:
        """Moves the servos' targets to `joints` and the setpoint's opening, in a straight line over `seconds`."""
        env, d = self._env, self._env.data
        velocity = (joints - env._joints) / seconds
        steps = max(round(seconds / PHYSICS_DT), 1)
        d.ctrl[6:] = setpoint[4] * geometry.FINGER_TRAVEL
        for i in range(1, steps + 1):  # the servos damp the joints' speed: leading by their lag cancels it
            d.ctrl[:6] = env._joints + velocity * (i * PHYSICS_DT + geometry.SERVO_LAG)
            mujoco.mj_step(env.model, d)
        env._joints = joints
        mujoco.mj_kinematics(env.model, d)
        mujoco.mj_camlight(env.model, d)
        self._elapsed += steps * PHYSICS_DT
        while self._checked + CONTROL_DT < self._elapsed + 1e-9:  # as often as Tabletop looks
            self._checked += CONTROL_DT
            assert env.task is not None
            self._held_s = self._held_s + CONTROL_DT if env.succeeded(env.task.name) else 0.0
            self._done |= self._held_s > (HOLD_STEPS - 0.5) * CONTROL_DT

    def look(self) -> dict[str, Any]:
        """Observation of Tabletop, without the instruction."""
        observation = self._env._observation()
        del observation["instruction"]
        return observation

    def info(self) -> dict[str, Any]:
        """What only a simulator knows: `success`, `instruction`, `task`, `limit_s` (seconds that the task is given)."""
        env = self._env
        assert env.task is not None
        return {
            "success": self._done,
            "instruction": env.instruction,
            "task": env.task.name,
            "limit_s": env.step_limit * CONTROL_DT,
        }

    def close(self) -> None:
        self._env.close()


def task_of(words: str) -> dict[str, Any]:
    """Reset options of the task that an instruction asks for. Raises ValueError if it is none of the tabletop's."""
    for task in TASKS.values():
        if words in task.paraphrases:
            return {"task": task.name, "paraphrase": task.paraphrases.index(words)}
        if words == task.held_out_paraphrase:
            return {"task": task.name, "paraphrase": "held_out"}
    near = difflib.get_close_matches(words, [task.paraphrases[0] for task in TASKS.values()], n=3)
    raise ValueError(f"instruction {words!r}: no task of the tabletop. It knows, for example: {'; '.join(near)}")
