"""Episodes of an expert, with or without disturbances that it has to come back from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

Moment = tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float32], dict[str, Any]]
Expert = Callable[[gymnasium.Env], NDArray[np.float32]]


def rollout(
    env: gymnasium.Env, seed: int, task: str, noise: float, expert: Expert, stretch: tuple[int, int]
) -> Iterator[Moment]:
    """Play one episode; yields (observation, clean label [A], executed action [A], info after it) per step.

    With `noise` > 0 (a fraction of the largest action, 0.3 is plenty) the executed action is disturbed on about half
    of the steps, in stretches, and never on the gripper, the last number. The label stays the expert's own action in
    the state so reached, which shows a learner how to come back.

    Args:  stretch: from how many steps to fewer than how many one disturbance lasts.
    """
    rng = np.random.default_rng([seed, 1])
    space = cast(Box, env.action_space)
    observation, _ = env.reset(seed=seed, options={"task": task})
    push, left, done = np.zeros(space.shape), 0, False
    while not done:
        if left == 0:
            left, disturbed = int(rng.integers(*stretch)), rng.random() < 0.5
            push = disturbed * noise * space.high * np.append(rng.uniform(-1, 1, len(push) - 1), 0)
        left -= 1
        label = expert(env)
        executed = np.clip(label + push, space.low, space.high).astype(np.float32)
        following, _, terminated, truncated, info = env.step(executed)
        yield observation, label, executed, info
        observation, done = following, terminated or truncated
