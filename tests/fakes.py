"""A tiny environment and a tiny policy that honour the contracts; `gymnasium.make("fakes:Fake-v0")` finds the former.

The world is a point on a line, x in [-1, 1], drawn as a bright square that moves across a 16 x 16 picture. An action
(1,) moves it by action * SPEED; "go left" and "go right" are done at x <= -0.5 and x >= 0.5.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np

SIZE = 16
SPEED = 0.1
TASKS = {
    "left": SimpleNamespace(family="go", held_out=False, objects=("left",)),
    "right": SimpleNamespace(family="go", held_out=False, objects=("right",)),
    "stay": SimpleNamespace(family="wait", held_out=True, objects=("left", "right")),
}
WORDS = {"left": "go left", "right": "go right", "stay": "stay"}
GOALS = {"left": -0.6, "right": 0.6, "stay": 0.0}


def draw(x: float) -> np.ndarray:
    """The picture (16, 16, 3) uint8 of the point at x."""
    picture = np.full((SIZE, SIZE, 3), 40, np.uint8)
    column = int(np.clip(round((x + 1) / 2 * (SIZE - 3)), 0, SIZE - 3))
    picture[6:9, column : column + 3] = (230, 60, 60)
    return picture


class FakeEnv(gymnasium.Env):
    """The point on its line; see the module."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, cameras=("front",), renderer="rays", render_mode=None, limit=30):
        self.cameras, self.renderer, self.render_mode, self.limit = tuple(cameras), renderer, render_mode, limit
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {f"rgb_{cam}": box(0, 255, (SIZE, SIZE, 3), np.uint8) for cam in self.cameras}
            | {f"depth_{cam}": box(0, 65535, (SIZE, SIZE), np.uint16) for cam in self.cameras}
            | {"proprio": box(-2, 2, (1,), np.float32), "instruction": gymnasium.spaces.Text(30)}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.3, 0.3))
        self.task = (options or {}).get("task", "left")
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; expected one of {', '.join(TASKS)}")
        paraphrase = (options or {}).get("paraphrase", 0)
        self.instruction = WORDS[self.task] + (" please" if paraphrase == "held_out" else "")
        self.steps = 0
        return self._observation(), self._info()

    def step(self, action):
        self.x = float(np.clip(self.x + SPEED * float(action[0]), -1, 1))
        self.steps += 1
        done = self.task != "stay" and self.succeeded(self.task)
        return self._observation(), float(done), done, self.steps >= self.limit and not done, self._info()

    def towards(self, waypoint):
        error = float(waypoint[0]) - self.x
        return np.clip(np.array([error / SPEED], np.float32), -1, 1), abs(error) < 1e-3

    def succeeded(self, task):
        return {"left": self.x <= -0.5, "right": self.x >= 0.5, "stay": abs(self.x) < 0.05}[task]

    def tasks_in_scene(self):
        return ("left", "right")

    def render(self):
        return draw(self.x).repeat(2, axis=0).repeat(2, axis=1)

    def _observation(self):
        rgb = {f"rgb_{cam}": draw(self.x) for cam in self.cameras}
        depth = {f"depth_{cam}": np.full((SIZE, SIZE), 1000, np.uint16) for cam in self.cameras}
        return rgb | depth | {"proprio": np.array([self.x], np.float32), "instruction": self.instruction}

    def _info(self):
        return {"success": self.succeeded(self.task), "family": TASKS[self.task].family, "task": self.task}


if "Fake-v0" not in gymnasium.registry:
    gymnasium.register("Fake-v0", entry_point=FakeEnv)


def spec(**changes: Any):
    """The PolicySpec that fits FakeEnv."""
    from padpolicy.spec import PolicySpec

    values = {
        "cameras": ["front"],
        "depth_cameras": ["front"],
        "future_cameras": ["front"],
        "future_depth_cameras": [],
        "image_size": SIZE,
        "obs_steps": 2,
        "chunk_steps": 8,
        "dt_s": 0.1,
        "future_offsets_s": [0.4],
        "action_dim": 1,
        "proprio_dim": 1,
        "action": {"kind": "delta", "names": ["dx"], "dt_s": 0.1},
        "robot": "fake",
        "renderer": "rays",
    }
    return PolicySpec(**(values | changes))


class FakePolicy:
    """Goes where the words say, by what it sees; a little of the starting noise stays in its plan.

    Its latents are pictures / 255, channels first, so that `decode` is exact. Without eyes it cannot tell where it is,
    without words not where to go: it stays.
    """

    def __init__(self, noise: float = 0.2, **changes: Any):
        self.spec, self.noise = spec(**changes), noise
        self.batches: list[int] = []  # sizes of the batches it was asked for
        self.acts_in, self.imagines_in = "policy", "joint" if self.spec.future_cameras else ""
        self.unlearned: tuple[str, ...] = ()

    def learned(self, mode):
        return mode not in self.unlearned

    def noise_shapes(self, mode):
        shapes = {"action": (self.spec.chunk_steps, 1)}
        return shapes if mode == "policy" else {"future.latent_front": (1, 3, SIZE, SIZE), **shapes}

    def predict(self, obs, *, mode="policy", actions=None, future=None, noise=None, **_):
        import torch

        from padpolicy.policy import Prediction

        self.batches.append(len(obs))
        B, T = len(obs), self.spec.chunk_steps
        x_B = self._where(obs.fields["obs.rgb_front"][:, -1], obs.has["obs.rgb_front"])
        if mode == "inverse":
            then_B = self._where(future["front"][:, 0], torch.ones(B, dtype=torch.bool))
            n = round(self.spec.future_offsets_s[0] / self.spec.dt_s)
            return Prediction(action=((then_B - x_B) / n / SPEED)[:, None, None].expand(B, T, 1))
        if mode != "forward":
            goal_B = torch.tensor(
                [
                    (-1.0 if "left" in text else 1.0 if "right" in text else 0.0) * bool(has)
                    for text, has in zip(obs.text, obs.has["text"], strict=True)
                ]
            )
            actions = goal_B[:, None, None].expand(B, T, 1) * obs.has["obs.rgb_front"][:, None, None]
            if noise is not None:
                actions = actions + self.noise * noise["action"]
        if mode == "policy":
            return Prediction(action=actions)
        n = round(self.spec.future_offsets_s[0] / self.spec.dt_s)
        then_B = (x_B + SPEED * actions[:, :n, 0].sum(1)).clamp(-1, 1)
        frames = np.stack([draw(x) for x in then_B.tolist()])
        return Prediction(action=actions, future_latent={"front": self.encode(torch.from_numpy(frames))[:, None]})

    def encode(self, frames):
        """(..., H, W, 3) uint8 -> (..., 3, H, W) float32."""
        return frames.movedim(-1, -3).float() / 255

    def decode(self, latent):
        import torch

        return (latent.movedim(-3, -1) * 255).round().clamp(0, 255).to(torch.uint8)

    def _where(self, frames_BHWC, has_B):
        """x of the square in each picture; 0 where there is no picture."""
        bright = (frames_BHWC[:, 7, :, 0] > 128).float()
        column_B = bright.argmax(1)
        return (column_B / (SIZE - 3) * 2 - 1) * has_B


class FakeArm:
    """The point on its line as hardware: goes where it is told at once. A setpoint is x (1,), `proprio` too."""

    names, grippers, joints = ("x",), (), ()
    depth_cameras, proprio_dim, renderer, simulated = ("front",), 1, "rays", True
    cameras = {"front": (SIZE, SIZE)}

    def __init__(self, stuck: bool = False):
        self.stuck = stuck  # never moves

    def reset(self, options):
        self.x = float(options.get("x", 0.0))
        self.seconds = 0.0
        return np.array([self.x])

    def measured(self):
        return np.array([self.x])

    def write(self, setpoint, joints, seconds):
        self.seconds += seconds
        if not self.stuck:
            self.x = float(setpoint[0])

    def look(self):
        rgb, depth = draw(self.x), np.full((SIZE, SIZE), 1000, np.uint16)
        return {"rgb_front": rgb, "depth_front": depth, "proprio": np.array([self.x], np.float32)}

    def info(self):
        return {"success": abs(self.x) >= 0.5}

    def close(self):
        pass


class FakeArm2(FakeArm):
    """With a number more."""

    names = ("x", "y")

    def reset(self, options):
        return np.append(super().reset(options), 0.0)

    def measured(self):
        return np.array([self.x, 0.0])


def robot_config(**changes: Any):
    """A RobotConfig for FakeArm, with limits that its policy stays inside of."""
    from padpolicy.config import LimitsConfig, RobotConfig, SafetyConfig

    limits = LimitsConfig(low=[-1.0], high=[1.0], velocity=[2.0], acceleration=[100.0], jerk=[10000.0])
    safety = SafetyConfig(waypoint=limits, max_jump=[0.5], silence_s=0.1, watchdog_s=1.0)
    values = {"kind": "arm", "make": "fakes:FakeArm", "name": "fake", "safety": safety}
    return RobotConfig(**(values | changes))
