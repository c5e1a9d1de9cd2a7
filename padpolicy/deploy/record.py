"""What a robot did, as a dataset of ours: it can be trained on, looked at (`padpolicy info --html`) and replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from padpolicy.control.robot import Observation, RobotSpec
from padpolicy.data.actions import ActionSpec, from_waypoints, hold_action
from padpolicy.data.store import Episode, Store, StoreSpec


class Recorder:
    """Keeps one row per action step; an episode reaches the disk when it ends, whole or not at all.

    The action of a row is what the arm was told until the next one, after Safety: not what the policy asked for.

    Args:  path: the store; it is made, or appended to.   action: the space that actions are written in.
           first: any observation of the robot: it says what there is to record.
    """

    def __init__(self, path: str | Path, robot: RobotSpec, action: ActionSpec, first: Observation):
        self.action = action
        self._rows: list[Observation] = []
        wanted = StoreSpec(
            cameras={name: {"size": list(size)} for name, size in robot.cameras.items()},
            depth_cameras=[name for name in robot.depth_cameras if f"depth_{name}" in first.fields],
            proprio={"names": [f"proprio {i}" for i in range(robot.proprio_dim)]} if robot.proprio_dim else None,
            action=action,
            robot=robot.name,
            renderer=robot.renderer,
            dt_s=action.dt_s,
        )
        path = Path(path)
        self._store = Store.open(path, "a") if path.exists() else Store.create(path, wanted)
        if self._store.fields.keys() != wanted.fields().keys():
            self._store.close()
            raise ValueError(
                f"{path} records {sorted(self._store.fields)}, this robot gives {sorted(wanted.fields())}."
            )

    def begin(self) -> None:
        """Forgets rows that were not kept."""
        self._rows = []

    def seen(self, observation: Observation) -> None:
        """One more observation; those closer together than the action steps are passed over."""
        if not self._rows or observation.time_s >= self._rows[-1].time_s + self.action.dt_s - 1e-3:
            self._rows.append(observation)

    def keep(self, instruction: str, success: bool, seed: int, source: str) -> bool:
        """Writes the episode. Returns False if it was too short to be one."""
        rows = self._rows
        if len(rows) < 2:
            return False
        actions = [
            from_waypoints(after.commanded[None], before.commanded, self.action)[0]
            for before, after in zip(rows[:-1], rows[1:], strict=True)
        ]
        actions.append(hold_action(self.action, actions[-1]))
        arrays: dict[str, Any] = {
            name: np.stack([np.asarray(row.fields[name]) for row in rows])
            for name in self._store.fields
            if name != "action"
        }
        if "proprio" in arrays:
            arrays["proprio"] = arrays["proprio"].astype(np.float32)
        arrays["timestamp"] = np.array([row.time_s - rows[0].time_s for row in rows])
        arrays["action"] = np.array(actions, np.float32)
        self._store.append(Episode(arrays, task=instruction, success=success, seed=seed, source=source))
        return True

    def close(self) -> None:
        self._store.close()
