"""Steps per second of an environment on one core, in a process of its own and without torch."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

from padpolicy.data.collect import ENVS


def step_rates(
    env_id: str, renderer: str, cameras: list[list[str]], image_size: int, steps: int, repeats: int
) -> list[float]:
    """Steps per second of CPU time, one number per selection of cameras, all with depth.

    Every measurement is of `steps` random steps, resets not counted; the selections take turns `repeats` times.
    """
    arguments = json.dumps([env_id, renderer, cameras, image_size, steps, repeats])
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", __name__, arguments], env=alone, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the environment {env_id} could not be stepped in a process of its own: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(
    env_id: str, renderer: str, cameras: list[list[str]], image_size: int, steps: int, repeats: int
) -> list[float]:
    import gymnasium

    importlib.import_module(ENVS[env_id].experts)  # registers the environment
    options: dict[str, Any] = {"depth": True, "image_size": image_size, "renderer": renderer}
    envs = [gymnasium.make(env_id, disable_env_checker=True, cameras=tuple(names), **options) for names in cameras]
    seconds: list[list[float]] = [[] for _ in envs]
    for env in envs:
        env.action_space.seed(0)
        env.reset(seed=0)
        env.step(env.action_space.sample())  # the first picture compiles the renderer
    for repeat in range(repeats):
        for env, mine in zip(envs, seconds, strict=True):
            env.reset(seed=repeat)
            spent = 0.0
            for _ in range(steps):
                action = env.action_space.sample()
                started = time.process_time()
                _, _, terminated, truncated, _ = env.step(action)
                spent += time.process_time() - started
                if terminated or truncated:
                    env.reset()
            mine.append(spent / steps)
    return [1 / median(mine) for mine in seconds]


if __name__ == "__main__":
    print(json.dumps(_measure(*json.loads(sys.argv[1]))))
