"""Draws MetaWorld frames to train the shipped VAE on: all 50 tasks, two views, expert and random motion.

MetaWorld pins an old mujoco, so it lives in an environment of its own (its need of `packaging` is not declared), and
drawing needs EGL (Debian: libegl1 libgl1 libgl1-mesa-dri). The command that drew the frames of the shipped VAE:

    uv venv mw -p 3.11 && uv pip install -p mw/bin/python metaworld==3.1.1 packaging
    MUJOCO_GL=egl mw/bin/python scripts/metaworld_frames.py --out frames

Writes frames/metaworld_{train,test}.npy, uint8 (N, 96, 96, 3), and metaworld_{train,test}.json with one entry per
frame: task, view ("corner4" or "gripperPOV"), seed, step, and `done` (the expert has just succeeded). Test seeds are
never trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import metaworld
import mujoco
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

VIEWS = ("corner4", "gripperPOV")
FIRST_TEST_SEED = 1000


def make_env(task: str, size: int) -> Any:
    """An environment whose `seed` is honoured and that is cheap to draw.

    Multisampling and shadows are off: they cost 15 times as much in software GL.
    """
    env = metaworld.ALL_V3_ENVIRONMENTS[task]()
    env._partially_observable = False
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    env._set_task_called = True
    env.__dict__.pop("sawyer_observation_space", None)
    env.model.vis.global_.offwidth = env.model.vis.global_.offheight = size
    env.model.vis.quality.offsamples = 0
    env.model.vis.quality.shadowsize = 0
    return env


def draw(env: Any, renderer: mujoco.Renderer, view: str) -> np.ndarray:
    """One frame (size, size, 3) uint8, the right way up."""
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_SKYBOX):
        renderer.scene.flags[flag] = False
    renderer.update_scene(env.data, camera=view)
    frame = renderer.render()
    return np.rot90(frame, 2).copy() if view.startswith("corner") else frame.copy()  # corner cameras hang upside down


def episode(env: Any, task: str, seed: int, steps: int, every: int, motion: str) -> list[tuple[int, bool, dict]]:
    """Runs one episode and draws about every `every`-th step. Returns (step, done, {view: frame}) per drawn moment."""
    rng = np.random.default_rng(seed)
    expert = ENV_POLICY_MAP[task]()
    env.seed(seed)
    obs, _ = env.reset()
    mujoco.mj_kinematics(env.model, env.data)  # or the goal marker is drawn where it was before the reset
    mujoco.mj_camlight(env.model, env.data)
    moments, drift = [], np.zeros(4)
    next_draw = 0
    with mujoco.Renderer(env.model, env.model.vis.global_.offheight, env.model.vis.global_.offwidth) as renderer:
        for step in range(steps):
            done = step > 0 and motion != "random" and bool(info["success"])  # noqa: F821 (set by the step before)
            if step >= next_draw or done:
                moments.append((step, done, {view: draw(env, renderer, view) for view in VIEWS}))
                next_draw = step + int(rng.integers(1, 2 * every))
            if done:
                break
            drift = 0.9 * drift + 0.4 * rng.standard_normal(4)  # smooth random motion wanders through the workspace
            action = {"random": drift, "noisy": 0.5 * drift, "expert": 0 * drift}[motion]
            if motion != "random":
                action = action + expert.get_action(obs)
            obs, _, _, _, info = env.step(np.clip(action, -1, 1).astype(np.float32))
    return moments


def collect(seeds: list[int], steps: int, every: int, size: int) -> tuple[np.ndarray, list[dict]]:
    frames, about = [], []
    for task in sorted(metaworld.ALL_V3_ENVIRONMENTS):
        env = make_env(task, size)
        for i, seed in enumerate(seeds):
            motion = ("expert", "noisy", "random")[i % 3]
            for step, done, views in episode(env, task, seed, steps, every, motion):
                for view, frame in views.items():
                    frames.append(frame)
                    about.append({"task": task, "view": view, "seed": seed, "step": step, "done": done})
        print(f"{task}: {len(frames)} frames so far", flush=True)
    return np.stack(frames), about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npy and .json files")
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    parser.add_argument("--episodes", type=int, default=6, help="training episodes per task")
    parser.add_argument("--steps", type=int, default=150, help="longest episode")
    parser.add_argument("--every", type=int, default=10, help="steps between drawn moments, on average")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    seeds = {"train": list(range(args.episodes)), "test": [FIRST_TEST_SEED, FIRST_TEST_SEED + 1]}
    for split in seeds:
        every = args.every if split == "train" else 3 * args.every
        frames, about = collect(seeds[split], args.steps, every, args.size)
        np.save(args.out / f"metaworld_{split}.npy", frames)
        (args.out / f"metaworld_{split}.json").write_text(json.dumps(about))
        print(f"metaworld_{split}.npy: {frames.shape}")


if __name__ == "__main__":
    main()
