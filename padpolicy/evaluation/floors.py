"""What a policy gets without eyes, without ears, or without a brain: a success rate means something above these."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from padpolicy import draws
from padpolicy.batch import Batch
from padpolicy.evaluation.rollout import EpisodeSpec, OpenLoop

if TYPE_CHECKING:
    from padpolicy.policy import LossTerms, Policy, Prediction


class Blinded:
    """A policy from which fields of the observation are withheld: absent, not black.

    Args:  absent: prefixes of field names, and "text".
    """

    def __init__(self, policy: Policy, absent: tuple[str, ...]):
        self.policy, self.absent, self.spec = policy, absent, policy.spec
        self.acts_in, self.imagines_in = policy.acts_in, policy.imagines_in

    def learned(self, mode: str) -> bool:
        return self.policy.learned(mode)

    def noise_shapes(self, mode: str) -> dict[str, tuple[int, ...]]:
        return self.policy.noise_shapes(mode)

    def predict(self, obs: Batch, **options: Any) -> Prediction:
        has = {name: torch.zeros_like(h) if name.startswith(self.absent) else h for name, h in obs.has.items()}
        return self.policy.predict(dataclasses.replace(obs, has=has), **options)

    def loss(self, batch: Batch) -> LossTerms:
        return self.policy.loss(batch)

    def valid_counts(self, batch: Batch) -> dict[str, int]:
        return self.policy.valid_counts(batch)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return self.policy.encode(frames)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return self.policy.decode(latent)


def without_images(policy: Policy) -> Blinded:
    """Neither rgb nor depth; proprioception and text stay."""
    return Blinded(policy, ("obs.rgb_", "obs.depth_", "obs.latent_"))


def without_text(policy: Policy) -> Blinded:
    """Sees, but is not told what to do."""
    return Blinded(policy, ("text",))


def replay(store_path: str | Path, seed: int = 0) -> OpenLoop:
    """Actions of a random successful demonstration of the same task; of any task where the store has none of it.

    Raises:  ValueError if the store has no actions or no episodes.
    """
    from padpolicy.data.store import Store

    store = Store.open(store_path)
    if "action" not in store.fields or not store.n_episodes:
        raise ValueError(f"{store_path}: floor=replay plays the actions of demonstrations, and it has none.")
    by_task: dict[str, list[int]] = {}
    for i in np.flatnonzero(store.meta["episode_success"]):
        task = store.task_of(int(i))
        if task is not None:
            for name in {task["name"], *task.get("paraphrases", [])}:
                by_task.setdefault(name, []).append(int(i))

    def actions(spec: EpisodeSpec, instruction: str) -> list[np.ndarray]:
        candidates = by_task.get(spec.task) or by_task.get(instruction) or list(range(store.n_episodes))
        rng = draws.generator(seed, spec.seed, zlib.crc32(spec.task.encode()), "replay")
        start, stop = store.bounds(candidates[rng.integers(len(candidates))])
        return [store.read("executed" if "executed" in store.fields else "action", start, stop)]

    return actions
