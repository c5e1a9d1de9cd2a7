"""The gymnasium environment `padpolicy/Tabletop-v0`."""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from . import scene as geometry
from . import tasks as language
from .render import RENDERERS, Light, RayRenderer
from .text_space import Instruction, worded

CAMERAS = ("front", "wrist")
CONTROL_DT = 0.1  # seconds per environment step
SUBSTEPS = round(CONTROL_DT / geometry.PHYSICS_DT)
_SUBSTEP_TIMES = np.arange(1, SUBSTEPS + 1) * geometry.PHYSICS_DT
HOLD_STEPS = 2  # consecutive steps a success test must hold

ACTION_HIGH = np.array([0.04, 0.04, 0.04, 0.30, 1.0], np.float32)
ACTION_LOW = np.array([-0.04, -0.04, -0.04, -0.30, 0.0], np.float32)
PROPRIO_LOW = np.array([-1, -1, -1, -1, -1, -0.1], np.float32)
PROPRIO_HIGH = np.array([1, 1, 1, 1, 1, 1.1], np.float32)
WORKSPACE_LOW = np.array([0.29, -0.28, 0.008, -1.7])
WORKSPACE_HIGH = np.array([0.67, 0.28, 0.26, 1.7])
LEASH = 0.03  # metres the commanded pose may run ahead of the measured one
MAX_TEXT = 96
PICTURE_SIZE = 256


class Tabletop(gymnasium.Env):
    """A robot arm over a table that does what one sentence says.

    Actions, float32 [5], at 10 Hz. The first four move a *commanded* pose of the point between the fingertips; it
    integrates them, is clipped to the workspace, and the arm follows it, so deltas do not drift. Values outside the
    range are clipped; NaN is an error.

    | index | quantity                          | min   | max  | unit          |
    |-------|-----------------------------------|-------|------|---------------|
    | 0     | dx, towards the front camera      | -0.04 | 0.04 | m per step    |
    | 1     | dy, to the right of the picture   | -0.04 | 0.04 | m per step    |
    | 2     | dz, up                            | -0.04 | 0.04 | m per step    |
    | 3     | dyaw, counter-clockwise from above| -0.30 | 0.30 | rad per step  |
    | 4     | gripper opening to aim at         | 0     | 1    | 1 is 9 cm     |

    Observation, a dict (cameras, depth and size are chosen by the constructor):

    | key               | type, shape        | meaning                                                   |
    |-------------------|--------------------|-----------------------------------------------------------|
    | `rgb_<camera>`    | uint8 [H, W, 3]    | colour picture, camera is `front` or `wrist`              |
    | `depth_<camera>`  | uint16 [H, W]      | millimetres along the optical axis, 0 = invalid           |
    | `proprio`         | float32 [6]        | the table below                                           |
    | `instruction`     | str                | what to do                                                |

    | proprio | quantity                                | min   | max  | unit    |
    |---------|-----------------------------------------|-------|------|---------|
    | 0, 1, 2 | measured x, y, z between the fingertips | -1    | 1    | m       |
    | 3, 4    | sine and cosine of the measured yaw     | -1    | 1    |         |
    | 5       | measured gripper opening                | -0.1  | 1.1  | 1 = 9 cm|

    Reward is 1 on the step that ends the task, else 0. An episode terminates once the task's success test has held
    for 2 consecutive steps and is truncated at `step_limit` (per family unless given).

    `reset(seed=, options=)`: all randomness comes from the seed. Options, all of them optional:

    - `task`: a name in `padpolicy_envs.TASKS`; without it one is drawn from those not held out.
    - `paraphrase`: an index (0 is the canonical wording) or "held_out"; without it one of training's is drawn.
    - `scene_seed`: an integer that fixes the scene whatever the seed is.
    - `scene_of`: the task the scene is made for. Scenes are sampled from (scene seed, task), so the *same scene under
      another instruction* is `{"task": other, "scene_of": task}` with the same seed; `other` must be one of
      `tasks_in_scene()`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        cameras: tuple[str, ...] = CAMERAS,
        depth: bool = True,
        image_size: int = 96,
        renderer: str = "rays",
        step_limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Compile the scene. No camera and no renderer is touched before the first picture is asked for."""
        unknown = [camera for camera in cameras if camera not in CAMERAS]
        if unknown:
            raise ValueError(f"cameras: expected a selection of {CAMERAS}, got {unknown}; remove or correct them")
        if renderer not in RENDERERS:
            raise ValueError(f"renderer: expected one of {sorted(RENDERERS)}, got {renderer!r}; use 'rays' without GL")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode: expected None or 'rgb_array', got {render_mode!r}")
        self.cameras, self.depth, self.image_size = tuple(cameras), bool(depth), int(image_size)
        self.renderer, self.render_mode = renderer, render_mode
        self._step_limit = step_limit
        self._renderer: Any = None
        self._picture: RayRenderer | None = None

        self.model = geometry.compile_model()
        self.data = mujoco.MjData(self.model)
        self._ik = mujoco.MjData(self.model)
        self._light = Light()
        self._index()

        self.action_space = spaces.Box(ACTION_LOW, ACTION_HIGH, dtype=np.float32)
        entries: dict[str, spaces.Space] = {}
        size = (self.image_size, self.image_size)
        for camera in self.cameras:
            entries[f"rgb_{camera}"] = spaces.Box(0, 255, (*size, 3), np.uint8)
            if self.depth:
                entries[f"depth_{camera}"] = spaces.Box(0, 65535, size, np.uint16)
        entries["proprio"] = spaces.Box(PROPRIO_LOW, PROPRIO_HIGH, dtype=np.float32)
        entries["instruction"] = Instruction(MAX_TEXT, charset=string.ascii_lowercase + " ")
        self.observation_space = spaces.Dict(entries)

        self.task: language.Task | None = None
        self.instruction = ""

    def _index(self) -> None:
        """Look up addresses once: names are slow."""
        m = self.model
        self._arm = np.array([m.joint(name).qposadr[0] for name in geometry.ARM_JOINTS])
        self._fingers = np.array([m.joint(name).qposadr[0] for name in ("finger_left", "finger_right")])
        self._arm_dof = np.array([m.joint(name).dofadr[0] for name in geometry.ARM_JOINTS])
        self._range = m.jnt_range[[m.joint(name).id for name in geometry.ARM_JOINTS]]
        self._tcp = m.site("tcp").id
        self._slot_body = [m.body(f"object{i}").id for i in range(geometry.OBJECT_SLOTS)]
        self._slot_qpos = [m.joint(f"object{i}").qposadr[0] for i in range(geometry.OBJECT_SLOTS)]
        self._slot_geom = [
            {kind: m.geom(f"object{i}_{kind}").id for kind in ("cube", "cylinder")}
            for i in range(geometry.OBJECT_SLOTS)
        ]
        self._button_qpos = [m.joint(f"button{i}").qposadr[0] for i in range(geometry.BUTTON_SLOTS)]
        self._drawer_qpos = m.joint("drawer").qposadr[0]
        self._fixture_geoms: dict[str, list[int]] = {}
        for root in ("tray", "cabinet", "button0", "button1"):
            body = m.body(root).id
            inside = [b for b in range(m.nbody) if b == body or m.body_parentid[b] == body]
            self._fixture_geoms[root] = [g for g in range(m.ngeom) if m.geom_bodyid[g] in inside]

    # --- episodes -----------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode; see the class for `options`."""
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = set(options) - {"task", "paraphrase", "scene_seed", "scene_of"}
        if unknown:
            raise ValueError(
                f"reset options: expected task, paraphrase, scene_seed, scene_of, got {sorted(unknown)}; remove them"
            )
        # Every draw is made whether it is used or not, so that options never shift the others.
        scene_seed = int(self.np_random.integers(2**31))
        training = [name for name, task in language.TASKS.items() if not task.held_out]
        drawn_task = training[self.np_random.integers(len(training))]
        drawn_wording = int(self.np_random.integers(2**31))

        task = language.get_task(options.get("task", drawn_task))
        made_for = language.get_task(options.get("scene_of", task.name))
        scene_seed = int(options.get("scene_seed", scene_seed))
        layout = language.sample_scene(made_for, scene_seed)
        if not language.admits(layout, task):
            raise ValueError(
                f"task {task.name!r}: expected one of those possible in the scene of {made_for.name!r} with scene seed "
                f"{scene_seed} ({', '.join(language.tasks_in(layout))}); choose one of them or leave out scene_of"
            )
        self.task, self.scene, self.scene_seed = task, layout, scene_seed
        self.instruction = worded(task, options.get("paraphrase", drawn_wording % len(task.paraphrases)))
        self.step_limit = self._step_limit if self._step_limit is not None else task.step_limit
        self._steps, self._held, self._success = 0, 0, False
        self._build(layout)
        return self._observation(), self._info()

    def _build(self, layout: language.Scene) -> None:
        """Lay the scene out in the model and put the arm at its start."""
        m, d = self.model, self.data
        mujoco.mj_resetData(m, d)
        gains = iter(layout.colour_gain)

        def colour(name: str) -> NDArray[np.float64]:
            return np.clip(np.array(language.COLOURS[name]) * next(gains), 0, 1)

        m.geom("table").rgba[:3] = layout.table_colour
        for slot in range(geometry.OBJECT_SLOTS):
            placed = layout.objects[slot] if slot < len(layout.objects) else None
            address, kind = self._slot_qpos[slot], placed.name.split()[1] if placed else ""
            for shape, geom in self._slot_geom[slot].items():
                on = shape == kind
                m.geom_group[geom] = geometry.OBJECTS if on else geometry.HIDDEN
                m.geom_contype[geom] = geometry.OBJECT_CONTYPE if on else 0
                m.geom_conaffinity[geom] = geometry.OBJECT_CONAFFINITY if on else 0
            m.body_gravcomp[self._slot_body[slot]] = 0.0 if placed else 1.0  # an unused slot floats, far away
            if placed is None:
                d.qpos[address : address + 7] = (2.0 + slot, 2.0, 0.5, 1, 0, 0, 0)
                continue
            m.geom_rgba[self._slot_geom[slot][kind], :3] = colour(placed.name.split()[0])
            half = placed.yaw / 2
            d.qpos[address : address + 7] = (
                *(placed.x, placed.y, geometry.CUBE_HALF),
                *(np.cos(half), 0, 0, np.sin(half)),
            )
        for slot in range(geometry.BUTTON_SLOTS):
            placed = layout.buttons[slot] if slot < len(layout.buttons) else None
            self._stand(f"button{slot}", placed)
            if placed is not None:
                m.geom(f"button{slot}_cap").rgba[:3] = colour(placed.name)
        self._stand("tray", layout.tray)
        self._stand("cabinet", layout.drawer)
        d.qpos[self._drawer_qpos] = layout.drawer_opening

        self._light.position = np.array(layout.light_position)
        self._light.diffuse, self._light.ambient = layout.light_diffuse, layout.light_ambient

        self._command = np.array([*layout.start, 1.0])
        joints = self._solve(np.array(geometry.HOME), self._command, iterations=60)
        d.qpos[self._arm], d.qpos[self._fingers] = joints, geometry.FINGER_TRAVEL
        d.ctrl[:6], d.ctrl[6:] = joints, geometry.FINGER_TRAVEL
        self._joints = joints
        mujoco.mj_forward(m, d)

    def _stand(self, fixture: str, placed: language.Placed | None) -> None:
        """Put a fixture on the table, or away below it, undrawn."""
        body = self.model.body(fixture)
        body.pos[:] = (placed.x, placed.y, 0) if placed else (0, 0, -2)
        yaw = placed.yaw if placed else 0.0
        body.quat[:] = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        self.model.geom_group[self._fixture_geoms[fixture]] = geometry.FIXTURES if placed else geometry.HIDDEN

    def step(self, action: NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move for a tenth of a second; `action` is float [5], see the class."""
        if self.task is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        action = np.asarray(action, np.float64)
        if action.shape != (5,) or not np.isfinite(action).all():
            raise ValueError(
                f"action: expected 5 finite numbers, got shape {action.shape} with values {action}; see action_space"
            )
        self._move(np.clip(action, ACTION_LOW, ACTION_HIGH))
        self._steps += 1
        self._held = self._held + 1 if self.succeeded(self.task.name) else 0
        done = self._held >= HOLD_STEPS
        self._success = self._success or done
        truncated = self._steps >= self.step_limit and not done
        return self._observation(), float(done), done, truncated, self._info()

    def _move(self, action: NDArray[np.float64]) -> None:
        command = self._command
        command[:4] += action[:4]
        # Pressing against something must not wind the command up.
        command[:3] = np.clip(command[:3], self.tip - LEASH - np.abs(action[:3]), self.tip + LEASH + np.abs(action[:3]))
        command[:4] = np.clip(command[:4], WORKSPACE_LOW, WORKSPACE_HIGH)
        command[4] = action[4]

        before, after = self._joints, self._solve(self._joints, command)
        velocity = (after - before) / CONTROL_DT
        # The servos damp the joints' speed itself; leading by their lag makes the arm follow the ramp, not trail it.
        lead = _SUBSTEP_TIMES + geometry.SERVO_LAG * (_SUBSTEP_TIMES < CONTROL_DT - 2.5 * geometry.PHYSICS_DT)
        joints = before + velocity * lead[:, None]  # [SUBSTEPS, 6]
        ctrl = self.data.ctrl
        ctrl[6:] = command[4] * geometry.FINGER_TRAVEL
        for target in joints:
            ctrl[:6] = target
            mujoco.mj_step(self.model, self.data)
        self._joints = after
        # mj_step leaves the poses of before its last integration; pictures and tests want those of now.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _solve(self, joints: NDArray[np.float64], command: NDArray[np.float64], iterations: int = 8) -> NDArray:
        """Joint angles [6] for a commanded pose (x, y, z, yaw, ...), hand down: damped least squares from `joints`."""
        joints = joints.copy()
        c, s = np.cos(command[3]), np.sin(command[3])
        wanted = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        jacobian = np.zeros((6, self.model.nv))
        for _ in range(iterations):
            self._ik.qpos[self._arm] = joints
            mujoco.mj_kinematics(self.model, self._ik)
            mujoco.mj_comPos(self.model, self._ik)
            error = np.empty(6)
            error[:3] = command[:3] - self._ik.site_xpos[self._tcp]
            now = self._ik.site_xmat[self._tcp].reshape(3, 3)
            turn = wanted @ now.T
            error[3:] = turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]
            error[3:] *= 0.5
            if np.abs(error).max() < 1e-5:
                break
            mujoco.mj_jacSite(self.model, self._ik, jacobian[:3], jacobian[3:], self._tcp)
            j = jacobian[:, self._arm_dof]
            joints += j.T @ np.linalg.solve(j @ j.T + 1e-5 * np.eye(6), error)
            joints = np.clip(joints, self._range[:, 0], self._range[:, 1])
        return joints

    # --- what is seen -------------------------------------------------------------------------------------------------

    @property
    def tip(self) -> NDArray[np.float64]:
        """Measured point between the fingertips [3], metres."""
        return self.data.site_xpos[self._tcp]

    @property
    def yaw(self) -> float:
        """Measured yaw of the hand, radians."""
        rotation = self.data.site_xmat[self._tcp]
        return float(np.arctan2(rotation[3], rotation[0]))

    @property
    def opening(self) -> float:
        """Measured gap between the fingers, metres."""
        return float(self.data.qpos[self._fingers].sum())

    def state(self) -> language.State:
        """A snapshot for experts and success tests."""
        d, layout = self.data, self.scene
        objects, yaws = {}, {}
        for slot, placed in enumerate(layout.objects):
            body = self._slot_body[slot]
            objects[placed.name] = d.xpos[body].copy()
            yaws[placed.name] = float(np.arctan2(d.xmat[body][3], d.xmat[body][0]))
        return language.State(
            scene=layout,
            tip=self.tip.copy(),
            yaw=self.yaw,
            opening=self.opening,
            objects=objects,
            object_yaw=yaws,
            button_xy={b.name: b.xy for b in layout.buttons},
            button_depth={b.name: float(d.qpos[self._button_qpos[i]]) for i, b in enumerate(layout.buttons)},
            drawer_opening=float(d.qpos[self._drawer_qpos]),
        )

    def succeeded(self, task_name: str) -> bool:
        """Whether another (or this) task's success test holds in the present state, without any hold time."""
        return language.succeeded(language.get_task(task_name), self.state())

    def tasks_in_scene(self) -> tuple[str, ...]:
        """Names of the tasks possible in the present scene (as it was at reset)."""
        return language.tasks_in(self.scene)

    @property
    def commanded_pose(self) -> NDArray[np.float64]:
        """Commanded x, y, z [m], yaw [rad] and gripper opening 0..1; float64 [5]."""
        return self._command.copy()

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {}
        if self.cameras and self._renderer is None:
            self._renderer = RENDERERS[self.renderer](self.model, self.image_size)
        for camera in self.cameras:
            rgb, depth = self._renderer(self.data, camera, self._light)
            observation[f"rgb_{camera}"] = rgb
            if self.depth:
                observation[f"depth_{camera}"] = depth
        yaw = self.yaw
        proprio = [*self.tip, np.sin(yaw), np.cos(yaw), self.opening / geometry.GRIPPER_WIDTH]
        observation["proprio"] = np.clip(np.array(proprio, np.float32), PROPRIO_LOW, PROPRIO_HIGH)
        observation["instruction"] = self.instruction
        return observation

    def _info(self) -> dict[str, Any]:
        assert self.task is not None
        return {
            "success": self._success,
            "task": self.task.name,
            "family": self.task.family,
            "instruction": self.instruction,
            "commanded_pose": self.commanded_pose,
            "scene_seed": self.scene_seed,
            "renderer": self.renderer,
        }

    def render(self) -> NDArray[np.uint8] | None:
        """A larger, smoother front picture, uint8 [256, 256, 3]; always drawn by rays."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() without render_mode: make the environment with render_mode="rgb_array"')
            return None
        if self._picture is None:
            self._picture = RayRenderer(self.model, PICTURE_SIZE, samples=2)
        return self._picture(self.data, "front", self._light)[0]

    def camera_info(self) -> dict[str, dict[str, Any]]:
        """Per camera: `size` [h, w]; `intrinsics` 3x3 in pixels; `extrinsics` 4x4, or None where the camera moves.

        Pixel (u, v) has its centre at u + 0.5, v + 0.5. Extrinsics take camera coordinates (x right, y down, z
        forward, metres) to the world.
        """
        info = {}
        for camera in self.cameras:
            focal = self.image_size / 2 / np.tan(np.deg2rad(self.model.camera(camera).fovy[0]) / 2)
            centre = self.image_size / 2
            pose = np.eye(4)
            pose[:3, :3] = self.data.camera(camera).xmat.reshape(3, 3) * [1, -1, -1]
            pose[:3, 3] = self.data.camera(camera).xpos
            info[camera] = {
                "size": [self.image_size, self.image_size],
                "intrinsics": [[focal, 0.0, centre], [0.0, focal, centre], [0.0, 0.0, 1.0]],
                "extrinsics": pose.tolist() if camera == "front" else None,
            }
        return info

    def close(self) -> None:
        """Give the renderer back."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
