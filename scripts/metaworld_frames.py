"""Draws MetaWorld frames to train the shipped VAE on: all 50 tasks, two views, expert and random motion.

    pip install -e ".[metaworld]" && python scripts/metaworld_frames.py --out frames

Writes frames/metaworld_{train,test}.npy, uint8 (N, 96, 96, 3), and metaworld_{train,test}.json with one entry per
frame: task, view ("corner4" or "gripperPOV"), seed, step, and `done` (the expert has just succeeded). Test seeds are
never trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import numpy as np
from padpolicy_envs.metaworld import TASKS

VIEWS = ("corner4", "gripperPOV")
MOTIONS = {"expert": (1.0, 0.0), "noisy": (1.0, 0.5), "random": (0.0, 1.0)}  # shares of the expert and of drifting
FIRST_TEST_SEED = 1000


def episode(
    env: gymnasium.Env, task: str, seed: int, steps: int, every: int, motion: str
) -> Iterator[tuple[int, bool, dict[str, np.ndarray]]]:
    """Runs one episode; yields (step, done, {view: frame}) at about every `every`-th step, and where it succeeds."""
    rng, (expert, drifting) = np.random.default_rng(seed), MOTIONS[motion]
    observation, _ = env.reset(seed=seed, options={"task": task})
    drift, due, done = np.zeros(4), 0, False
    for step in range(steps):
        if step >= due or done:
            yield step, done, {view: observation[f"rgb_{view}"] for view in VIEWS}
            due = step + int(rng.integers(1, 2 * every))
        if done:
            return
        drift = 0.9 * drift + 0.4 * rng.standard_normal(4)  # smooth random motion wanders through the workspace
        action = expert * env.unwrapped.expert_action() + drifting * drift
        observation, _, succeeded, _, _ = env.step(np.clip(action, -1, 1).astype(np.float32))
        done = succeeded and motion != "random"


def collect(env: gymnasium.Env, seeds: list[int], steps: int, every: int) -> tuple[np.ndarray, list[dict]]:
    frames, about = [], []
    for task in TASKS:
        for i, seed in enumerate(seeds):
            for step, done, views in episode(env, task, seed, steps, every, list(MOTIONS)[i % len(MOTIONS)]):
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
    env = gymnasium.make("padpolicy/MetaWorld-v0", cameras=VIEWS, depth=False, image_size=args.size)
    for split in seeds:
        every = args.every if split == "train" else 3 * args.every
        frames, about = collect(env, seeds[split], args.steps, every)
        np.save(args.out / f"metaworld_{split}.npy", frames)
        (args.out / f"metaworld_{split}.json").write_text(json.dumps(about))
        print(f"metaworld_{split}.npy: {frames.shape}")


if __name__ == "__main__":
    main()
