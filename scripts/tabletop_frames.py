"""Draws tabletop frames to train the shipped encoders on: both cameras, many scenes, expert and random motion.

The command that drew the frames of the shipped VAE and text tower (3 minutes on one core):

    python scripts/tabletop_frames.py --out frames

Writes frames/tabletop_{train,test}.npy, uint8 (N, 96, 96, 3), and tabletop_{train,test}.json with one entry per
frame: task, view ("front" or "wrist"), seed, step, and `done` (the instruction is fulfilled). The first and the last
moment of every episode are drawn, of the others a share. Held-out tasks occur in the test frames only, and test seeds
are never trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import padpolicy_envs

FIRST_TEST_SEED = 1_000_000
VIEWS = ("front", "wrist")
MOTIONS = ("expert", "expert", "disturbed", "random")


def episode(env: Any, task: str, seed: int, motion: str, share: float) -> list[tuple[int, bool, dict]]:
    """Runs one episode. Returns (step, done, {view: frame}) for its first, its last and a share of its moments."""
    rng = np.random.default_rng(seed)
    env.cameras = VIEWS
    obs, _ = env.reset(seed=seed, options={"task": task})
    moments = [(0, False, {view: obs[f"rgb_{view}"] for view in VIEWS})]
    low, high = env.action_space.low, env.action_space.high
    drift = np.zeros(5)
    done = False
    for step in range(1, 42):
        drift = 0.8 * drift + 0.6 * rng.standard_normal(5) * high
        if motion == "random":
            action = drift
        else:
            action = padpolicy_envs.expert_action(env)
            if motion == "disturbed" and step < 12:
                action[:4] += drift[:4]
        last = done or step == 41
        drawn = last or rng.random() < share
        env.cameras = VIEWS if drawn else ()  # drawing costs more than physics
        obs, _, terminated, _, _ = env.step(np.clip(action, low, high).astype(np.float32))
        if drawn:
            moments.append((step, done, {view: obs[f"rgb_{view}"] for view in VIEWS}))
        if last:
            break
        done = terminated  # one more step, and the fulfilled instruction is drawn
    return moments


def collect(tasks: list[str], seeds: list[int], share: float, size: int) -> tuple[np.ndarray, list[dict]]:
    env = gymnasium.make("padpolicy_envs:padpolicy/Tabletop-v0", depth=False, image_size=size).unwrapped
    frames, about = [], []
    for i, task in enumerate(tasks):
        for j, base in enumerate(seeds):
            seed = base + 1000 * i
            for step, done, views in episode(env, task, seed, MOTIONS[j % len(MOTIONS)], share):
                for view, frame in views.items():
                    frames.append(frame)
                    about.append({"task": task, "view": view, "seed": seed, "step": step, "done": done})
        print(f"{task}: {len(frames)} frames so far", flush=True)
    env.close()
    return np.stack(frames), about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npy and .json files")
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    parser.add_argument("--episodes", type=int, default=36, help="training episodes per task")
    parser.add_argument("--share", type=float, default=0.12, help="share of the moments between first and last drawn")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    training = [name for name, task in padpolicy_envs.TASKS.items() if not task.held_out]
    splits = {
        "train": (training, list(range(args.episodes))),
        "test": (list(padpolicy_envs.TASKS), [FIRST_TEST_SEED + j for j in range(4)]),
    }
    for split, (tasks, seeds) in splits.items():
        frames, about = collect(tasks, seeds, args.share, args.size)
        np.save(args.out / f"tabletop_{split}.npy", frames)
        (args.out / f"tabletop_{split}.json").write_text(json.dumps(about))
        print(f"tabletop_{split}.npy: {frames.shape}")


if __name__ == "__main__":
    main()
