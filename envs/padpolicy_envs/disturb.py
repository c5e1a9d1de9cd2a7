"""Things that go wrong in the middle of an episode: what a monitor has to notice.

Importing this registers `padpolicy/DisturbedTabletop-v0`: the tabletop inside a `Disturbed` wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import mujoco
import numpy as np

from . import scene as geometry
from .tabletop import Tabletop
from .tasks import OBJECT_AREA

KINDS = ("moved", "covered", "blocked", "swapped")
MOVE = (0.06, 0.12)  # metres that a moved object is displaced by, along the table
BLOCK_STEPS = 10  # control steps that a blocked arm stays blocked: 1 s
_CLEAR = 0.085  # from a displaced object's new place to everything else, centre to centre, metres
_NEAR = 0.08  # objects closer than this to the fingertips are not touched: they are held, or about to be
_SEIZED = 1e5  # damping of a seized joint, N m s/rad


class Disturbed(gymnasium.Wrapper):
    """A tabletop in which something goes wrong once, before a step of the episode.

    `reset(options={..., "disturb": {"kind": kind, "at": n, "seed": s}})`; without it nothing happens. Kinds:

    - "moved": the task's object is put 6 to 12 cm away on the table, where nothing else stands.
    - "covered": from then on the front camera sees one colour, and no depth.
    - "blocked": the joints of the arm (not the fingers) do not turn for one second, whatever they are told.
    - "swapped": the task's object and another one exchange places.

    What moves objects waits, after step `at`, until they stand on the table and the fingertips are 8 cm away; that
    may be never. `info["disturbed_at"]` is the number of steps that had been taken when it happened, -1 until then;
    `info["commanded_pose"]` is a list here.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        """Wrap `padpolicy/Tabletop-v0`. Raises TypeError for another environment."""
        super().__init__(env)
        if not isinstance(env.unwrapped, Tabletop):
            raise TypeError(f"Disturbed: expected a Tabletop, got {type(env.unwrapped).__name__}")
        self.table: Tabletop = env.unwrapped
        dofs = self.table._arm_dof
        self._damping = self.table.model.dof_damping[dofs].copy()
        self._kind, self._at, self._rng = "", 0, np.random.default_rng(0)
        self._steps, self._happened, self._colour = 0, -1, np.zeros(3, np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode. Raises ValueError for an unknown kind or a wrong step."""
        options = dict(options or {})
        wish = dict(options.pop("disturb", {}))
        self._kind, self._at = wish.pop("kind", ""), wish.pop("at", 0)
        self._rng = np.random.default_rng(wish.pop("seed", 0))
        if self._kind not in ("", *KINDS) or self._at < 0 or wish:
            raise ValueError(
                f"disturb: expected kind (one of {KINDS}), at (0 or more) and seed; got kind={self._kind!r}, "
                f"at={self._at}, and {sorted(wish)}"
            )
        self._steps, self._happened = 0, -1
        self._colour = self._rng.integers(0, 90, 3).astype(np.uint8)
        self._seize(False)
        observation, info = self.env.reset(seed=seed, options=options)
        return observation, self._told(info)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """As the tabletop's; what goes wrong does so before the arm moves."""
        if self._kind and self._happened < 0 and self._steps >= self._at and self._disturb():
            self._happened = self._steps
        if self._kind == "blocked" and self._happened >= 0 and self._steps >= self._happened + BLOCK_STEPS:
            self._seize(False)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._steps += 1
        if self._kind == "covered" and self._happened >= 0:
            observation = dict(observation)
            if "rgb_front" in observation:
                observation["rgb_front"] = np.broadcast_to(self._colour, observation["rgb_front"].shape).copy()
            if "depth_front" in observation:
                observation["depth_front"] = np.zeros_like(observation["depth_front"])
        return observation, float(reward), terminated, truncated, self._told(info)

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "commanded_pose": info["commanded_pose"].tolist(), "disturbed_at": self._happened}

    def _seize(self, seized: bool) -> None:
        self.table.model.dof_damping[self.table._arm_dof] = _SEIZED if seized else self._damping

    def _disturb(self) -> bool:
        """Whether it could be done now."""
        if self._kind == "blocked":
            self._seize(True)
        moves: dict[str, Callable[[], bool]] = {"moved": self._move, "swapped": self._swap}
        return moves[self._kind]() if self._kind in moves else True

    def _free(self) -> dict[int, np.ndarray]:
        """Slot -> xy of the objects that stand on the table, away from the hand."""
        state = self.table.state()
        places = [state.objects[placed.name] for placed in self.table.scene.objects]
        return {
            slot: place[:2].copy()
            for slot, place in enumerate(places)
            if abs(place[2] - geometry.CUBE_HALF) < 0.004 and np.linalg.norm(place - state.tip) > _NEAR
        }

    def _target(self) -> int | None:
        """Slot of the object that the task is about; of the first one, where it is about none."""
        assert self.table.task is not None
        names = [placed.name for placed in self.table.scene.objects]
        slot = names.index(self.table.task.object) if self.table.task.object else 0
        return slot if slot in self._free() else None

    def _move(self) -> bool:
        slot = self._target()
        if slot is None:
            return False
        here = self._free()[slot]
        others = [
            self.table.data.xpos[self.table._slot_body[i]][:2]
            for i in range(len(self.table.scene.objects))
            if i != slot
        ]
        others += [placed.xy for placed in self.table.scene.buttons]
        others += [self.table.tip[:2]]
        if self.table.scene.tray is not None:
            others.append(self.table.scene.tray.xy)
        low, high = np.array(OBJECT_AREA).T
        for _ in range(200):
            angle, far = self._rng.uniform(-np.pi, np.pi), self._rng.uniform(*MOVE)
            there = here + far * np.array([np.cos(angle), np.sin(angle)])
            at_drawer = self.table.scene.drawer is not None and there[1] < self.table.scene.drawer.y + 0.25
            beside_drawer = at_drawer and abs(there[0] - self.table.scene.drawer.x) < 0.11
            if (there > low).all() and (there < high).all() and not beside_drawer:
                if all(np.linalg.norm(there - other) > _CLEAR for other in others):
                    self._put(slot, there)
                    return True
        return False

    def _swap(self) -> bool:
        slot, free = self._target(), self._free()
        others = [other for other in free if other != slot]
        if slot is None or not others:
            return False
        other = int(self._rng.choice(others))
        self._put(slot, free[other])
        self._put(other, free[slot])
        return True

    def _put(self, slot: int, xy: np.ndarray) -> None:
        """Sets an object down at xy, at rest, turned as it is."""
        model, data, address = self.table.model, self.table.data, self.table._slot_qpos[slot]
        data.qpos[address : address + 2] = xy
        start = model.body_dofadr[self.table._slot_body[slot]]
        data.qvel[start : start + 6] = 0
        mujoco.mj_forward(model, data)


def _make(**settings: Any) -> gymnasium.Env:
    return Disturbed(Tabletop(**settings))


if "padpolicy/DisturbedTabletop-v0" not in gymnasium.registry:
    gymnasium.register("padpolicy/DisturbedTabletop-v0", entry_point="padpolicy_envs.disturb:_make")
