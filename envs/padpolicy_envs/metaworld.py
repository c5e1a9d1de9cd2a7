"""The gymnasium environment `padpolicy/MetaWorld-v0`: MetaWorld's 50 tasks for policies that see and are told.

It needs the package metaworld (`pip install padpolicy[metaworld]`) and OpenGL, with or without a GPU.
"""

from __future__ import annotations

import string
import warnings
from collections.abc import Iterator
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from . import gl
from .metaworld_tasks import TASKS, Task, get_task
from .rollout import Moment, rollout
from .text_space import Instruction, worded

__all__ = ["TASKS", "MetaWorld", "rollout_expert"]

CAMERAS = ("corner4", "gripperPOV", "corner", "corner2", "corner3", "topview", "behindGripper")
RENDERERS = ("gl", "egl", "osmesa")
QUALITIES = ("fast", "paper")
STEP_LIMIT = 500  # MetaWorld's own
FAR = 60.0  # metres; what is farther away has no depth: 65.535 m is the end of uint16
PICTURE_SIZE = 256
FIXED_SEED = 0  # of the layout that goals="fixed" always shows
IDLE = 12  # simulators kept for later: 90 MB each
MAX_TEXT = 96
HAND_LOW, HAND_HIGH = (-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7)  # MetaWorld's bounds, metres
GAIN = 10.0  # of `towards`, per metre: what most of MetaWorld's scripted policies use
_CULLED = 5  # a geom group that is not drawn


class MetaWorld(gymnasium.Env):
    """A Sawyer arm that does what one sentence says, in one of MetaWorld's 50 scenes.

    Actions, float32 [4] in -1..1, at 80 Hz: MetaWorld's own. The first three move the *commanded* position of the hand
    by 1 cm per unit along x, y, z, inside the task's bounds; the arm follows it. The last one is the effort of the
    fingers: 1 closes, -1 opens.

    Observation, a dict (cameras, depth and size are chosen by the constructor):

    | key               | type, shape        | meaning                                                              |
    |-------------------|--------------------|----------------------------------------------------------------------|
    | `rgb_<camera>`    | uint8 [H, W, 3]    | colour picture; `corner4` sees the table, `gripperPOV` is the wrist's |
    | `depth_<camera>`  | uint16 [H, W]      | millimetres along the optical axis, 0 = invalid (farther than 60 m)  |
    | `proprio`         | float32 [4]        | measured x, y, z of the hand (m), opening of the fingers (1 = 10 cm) |
    | `instruction`     | str                | what to do                                                           |

    Goals and objects are seen, never told: the vector of MetaWorld's state stays inside.

    Reward is MetaWorld's own (0 to 10). `info["success"]` stays true once MetaWorld has said success, and the episode
    terminates there; it is truncated at `step_limit` (MetaWorld's limit, 500, is the most).

    `reset(seed=, options=)`: all randomness comes from the seed. Options, all of them optional:

    - `task`: a name in `TASKS`; without it the constructor's, and without that one is drawn.
    - `paraphrase`: an index (0 is the canonical wording) or "held_out"; without it one of training's is drawn.

    Args:
        task: of every episode whose options name none; "" draws one.
        cameras: what is drawn, of MetaWorld's cameras. Its corner cameras hang upside down: pictures are turned.
        depth: draw depth, too; it comes with the colours.
        image_size: pixels a side.
        renderer: "egl", "osmesa", or "gl" for the one that MUJOCO_GL names or the machine has.
        quality: "paper" draws as MetaWorld does by default, with shadows, reflections and smoothed edges, 15 times
            slower in software; "fast" without. Their pixels differ, so `renderer` says "gl" or "gl paper" afterwards.
        goals: "random": objects and goals are drawn anew in each episode; "fixed": a task always looks the same, as
            in data sets recorded with MetaWorld's frozen vectors.
        step_limit: 1 to 500.
        render_mode: "rgb_array" for `render()`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def __init__(
        self,
        task: str = "",
        cameras: tuple[str, ...] = ("corner4", "gripperPOV"),
        depth: bool = True,
        image_size: int = 96,
        renderer: str = "gl",
        quality: str = "fast",
        goals: str = "random",
        step_limit: int = STEP_LIMIT,
        render_mode: str | None = None,
    ) -> None:
        """Choose; nothing is loaded before the first reset."""
        for name, value, choices in (
            *(("cameras", camera, CAMERAS) for camera in cameras),
            ("renderer", renderer, RENDERERS),
            ("quality", quality, QUALITIES),
            ("goals", goals, ("random", "fixed")),
            ("render_mode", render_mode, (None, "rgb_array")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
        if not 1 <= step_limit <= STEP_LIMIT:
            raise ValueError(f"step_limit: expected 1 to {STEP_LIMIT}, MetaWorld's own limit, got {step_limit}")
        _import_metaworld()
        self.cameras, self.depth, self.image_size = tuple(cameras), bool(depth), int(image_size)
        self.backend, self.quality, self.goals, self.step_limit = renderer, quality, goals, int(step_limit)
        self.renderer = "gl paper" if quality == "paper" else "gl"
        self.render_mode, self._default = render_mode, get_task(task).name if task else ""

        self.action_space = spaces.Box(-1, 1, (4,), np.float32)
        entries: dict[str, spaces.Space] = {}
        size = (self.image_size, self.image_size)
        for camera in self.cameras:
            entries[f"rgb_{camera}"] = spaces.Box(0, 255, (*size, 3), np.uint8)
            if self.depth:
                entries[f"depth_{camera}"] = spaces.Box(0, 65535, size, np.uint16)
        entries["proprio"] = spaces.Box(np.float32([*HAND_LOW, 0]), np.float32([*HAND_HIGH, 1]), dtype=np.float32)
        entries["instruction"] = Instruction(MAX_TEXT, charset=string.ascii_lowercase + " ")
        self.observation_space = spaces.Dict(entries)

        self.task: Task | None = None
        self.instruction = ""
        self._simulator: _Simulator | None = None

    @property
    def data(self) -> mujoco.MjData:
        """The physics of the present episode."""
        return self.simulator.env.data

    @property
    def simulator(self) -> _Simulator:
        if self._simulator is None:
            raise gymnasium.error.ResetNeeded("call reset() first")
        return self._simulator

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; see the class for `options`."""
        super().reset(seed=seed)
        options = dict(options or {})
        if unknown := set(options) - {"task", "paraphrase"}:
            raise ValueError(f"reset options: expected task, paraphrase, got {sorted(unknown)}; remove them")
        # Every draw is made whether it is used or not, so that options never shift the others.
        scene_seed = int(self.np_random.integers(2**31))
        drawn_task = list(TASKS)[self.np_random.integers(len(TASKS))]
        drawn_wording = int(self.np_random.integers(2**31))

        task = get_task(options.get("task") or self._default or drawn_task)
        self.instruction = worded(task, options.get("paraphrase", drawn_wording % len(task.paraphrases)))
        if self._simulator is None or self._simulator.task != task.name:
            self._give_back()
            self._simulator = _take(task.name, self.quality, max(self.image_size, PICTURE_SIZE))
        self.task, self._steps, self._success = task, 0, False
        self.scene_seed = FIXED_SEED if self.goals == "fixed" else scene_seed
        self.state = self.simulator.reset(self.scene_seed)
        return self._observation(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for an eightieth of a second; `action` is float [4], clipped to -1..1."""
        action = np.asarray(action, np.float32)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(
                f"action: expected 4 finite numbers, got shape {action.shape} with values {action}; see action_space"
            )
        self.state, reward, success = self.simulator.step(np.clip(action, -1, 1))
        self._steps += 1
        self._success = self._success or success
        truncated = self._steps >= self.step_limit and not self._success
        return self._observation(), reward, self._success, truncated, self._info()

    def expert_action(self) -> NDArray[np.float32]:
        """The action float32 [4], clipped to -1..1, of MetaWorld's scripted policy in the present state."""
        return self.simulator.expert_action(self.state)

    def towards(self, waypoint: NDArray[np.float64]) -> tuple[NDArray[np.float32], bool]:
        """The action [4] that drives the measured hand to a pose, and whether it is within a centimetre of it.

        Args:  waypoint: x, y, z in metres and the effort of the fingers, [4].
        """
        error = np.asarray(waypoint[:3], np.float64) - self.state[:3]
        move = np.clip(GAIN * error, -1, 1)
        return np.append(move, np.clip(waypoint[3], -1, 1)).astype(np.float32), bool(np.linalg.norm(error) < 0.01)

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {}
        for camera in self.cameras:
            rgb, depth = self.simulator.draw(camera, self.image_size, self.backend)
            observation[f"rgb_{camera}"] = rgb
            if self.depth:
                observation[f"depth_{camera}"] = depth
        space = cast(spaces.Box, self.observation_space["proprio"])
        observation["proprio"] = np.clip(self.state[:4].astype(np.float32), space.low, space.high)
        observation["instruction"] = self.instruction
        return observation

    def _info(self) -> dict[str, Any]:
        assert self.task is not None
        return {
            "success": self._success,
            "task": self.task.name,
            "family": self.task.family,
            "instruction": self.instruction,
            "commanded_pose": np.append(self.data.mocap_pos[0], 0.0),
            "scene_seed": self.scene_seed,
            "renderer": self.renderer,
        }

    def render(self) -> NDArray[np.uint8] | None:
        """A larger picture of the first camera, uint8 [256, 256, 3]."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() without render_mode: make the environment with render_mode="rgb_array"')
            return None
        return self.simulator.draw((*self.cameras, "corner4")[0], PICTURE_SIZE, self.backend)[0]

    def camera_info(self) -> dict[str, dict[str, Any]]:
        """Per camera: `size` [h, w]; `intrinsics` 3x3 in pixels; `extrinsics` 4x4, or None where the camera moves.

        Pixel (u, v) of the turned picture has its centre at u + 0.5, v + 0.5. Extrinsics take camera coordinates
        (x right, y down, z forward, metres) to the world. They are those of the present task.
        """
        info, model = {}, self.simulator.env.model
        for camera in self.cameras:
            focal = self.image_size / 2 / np.tan(np.deg2rad(model.camera(camera).fovy[0]) / 2)
            centre = self.image_size / 2
            turned = -1 if camera.startswith("corner") else 1
            pose = np.eye(4)
            pose[:3, :3] = self.data.camera(camera).xmat.reshape(3, 3) * [turned, -turned, -1]
            pose[:3, 3] = self.data.camera(camera).xpos
            moves = bool(model.camera(camera).bodyid[0])
            info[camera] = {
                "size": [self.image_size, self.image_size],
                "intrinsics": [[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]],
                "extrinsics": None if moves else pose.tolist(),
            }
        return info

    def close(self) -> None:
        """Leave the simulator to the next environment of this process."""
        self._give_back()

    def _give_back(self) -> None:
        if self._simulator is not None:
            _give(self._simulator)
            self._simulator = None


def expert_action(env: gymnasium.Env) -> NDArray[np.float32]:
    """The action float32 [4] of MetaWorld's scripted policy in the environment's present state."""
    return cast(MetaWorld, env.unwrapped).expert_action()


def rollout_expert(env: gymnasium.Env, seed: int, task: str, noise: float = 0.0) -> Iterator[Moment]:
    """Play one episode of the expert; see `rollout.rollout`. Actions are [4], disturbances last 0.1 to 0.4 s."""
    return rollout(env, seed, task, noise, expert_action, stretch=(8, 33))


class _Simulator:
    """One of MetaWorld's environments, made repeatable, and what draws it."""

    def __init__(self, task: str, quality: str, buffer_size: int) -> None:
        import metaworld
        from metaworld.policies import ENV_POLICY_MAP

        self.task, self.quality, self.buffer_size = task, quality, buffer_size
        self.env = env = metaworld.ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        self.expert = ENV_POLICY_MAP[f"{task}-v3"]()
        # MetaWorld's own way (set_task with pickled vectors) has 50 layouts; this one draws each from its seed.
        env._partially_observable, env._freeze_rand_vec = False, False
        env.seeded_rand_vec, env._set_task_called = True, True
        env.__dict__.pop("sawyer_observation_space", None)  # cached before the goal was in it
        self._groups = env.model.geom_group.copy()
        self._canvas: gl.Canvas | None = None

    def reset(self, seed: int) -> NDArray[np.float64]:
        """MetaWorld's state [39] after a reset that is a function of the seed."""
        self.env.seed(seed)
        state, _ = self.env.reset()
        # The goal marker and the cameras still stand where they were; mj_forward would change the trajectory.
        mujoco.mj_kinematics(self.env.model, self.env.data)
        mujoco.mj_camlight(self.env.model, self.env.data)
        return state

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool]:
        """MetaWorld's state [39], its reward, and whether it says success."""
        state, reward, _, _, info = self.env.step(action)
        return state, float(reward), bool(info["success"])

    def expert_action(self, state: NDArray[np.float64]) -> NDArray[np.float32]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that raw actions exceed their range
            action = self.expert.get_action(state)
        return np.clip(action, -1, 1).astype(np.float32)

    def draw(self, camera: str, size: int, backend: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Colours uint8 [size, size, 3] and depth uint16 [size, size] in millimetres."""
        model = self.env.model
        if self._canvas is None:
            self._canvas = self._open(backend)
        number = model.camera(camera).id
        model.geom_group[:] = np.where(self._in_sight(number), self._groups, _CULLED)
        rgb, metres = self._canvas.draw(self.env.data, number, size)
        model.geom_group[:] = self._groups
        depth = np.where(metres < FAR, metres * 1000 + 0.5, 0).astype(np.uint16)
        # The lowest row comes first; the corner cameras hang upside down, so theirs are mirrored instead.
        turn = (slice(None), slice(None, None, -1)) if camera.startswith("corner") else (slice(None, None, -1),)
        return np.ascontiguousarray(rgb[turn]), np.ascontiguousarray(depth[turn])

    def _open(self, backend: str) -> gl.Canvas:
        model, paper = self.env.model, self.quality == "paper"
        if not paper:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
        flags = mujoco.mjtRndFlag
        costly = dict.fromkeys((flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX), paper)
        return gl.Canvas(model, self.buffer_size, backend, flags=costly)

    def _in_sight(self, camera: int) -> NDArray[np.bool_]:
        """Which geoms may be in the picture: by their bounding balls. Meshes cost most of drawing."""
        if self.quality == "paper":  # what is out of sight throws shadows, too
            return np.ones(len(self._groups), bool)
        model, data = self.env.model, self.env.data
        local = (data.geom_xpos - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)  # z points backwards
        radius = np.where(model.geom_rbound > 0, model.geom_rbound, np.inf)  # planes have none
        half = np.deg2rad(model.cam_fovy[camera]) / 2
        outside = np.abs(local[:, :2]) * np.cos(half) + local[:, 2:] * np.sin(half)
        return (outside < radius[:, None]).all(1) & (local[:, 2] < radius)

    def close(self) -> None:
        if self._canvas is not None:
            self._canvas.close()
            self._canvas = None


_idle: list[_Simulator] = []  # of this process, the one used last at the end: making one takes 0.4 s


def _take(task: str, quality: str, buffer_size: int) -> _Simulator:
    for i, simulator in enumerate(_idle):
        if (simulator.task, simulator.quality) == (task, quality) and simulator.buffer_size >= buffer_size:
            return _idle.pop(i)
    return _Simulator(task, quality, buffer_size)


def _give(simulator: _Simulator) -> None:
    _idle.append(simulator)
    if len(_idle) > IDLE:
        _idle.pop(0).close()


def _import_metaworld() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import metaworld  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"padpolicy/MetaWorld-v0 needs the package metaworld ({error}): pip install padpolicy[metaworld], in a "
            "fresh environment: it pins mujoco 3.3.0, and pip does not get back to that from mujoco 4."
        ) from error
