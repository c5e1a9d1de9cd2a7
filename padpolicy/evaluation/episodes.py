"""Which episodes an evaluation runs: a fixed list, the same for every policy, with a checksum to compare by."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from padpolicy import draws
from padpolicy.config import EvalConfig
from padpolicy.evaluation.rollout import EpisodeSpec
from padpolicy.evaluation.vector import Description, Reset, VectorEnv


def episode_list(cfg: EvalConfig, env: Description) -> list[EpisodeSpec]:
    """Scene i of every task has seed `cfg.seed + i`; the tasks are interleaved.

    Tasks are `cfg.tasks`, else `cfg.env.tasks`, else all of the environment that are not held out.

    Raises:  ValueError if no task is known.
    """
    tasks = cfg.tasks or cfg.env.tasks or [name for name, task in env.tasks.items() if not task.held_out]
    if not tasks:
        raise ValueError(f"environment {cfg.env.id} does not list its tasks: give tasks=[NAME, …].")
    if unknown := [task for task in tasks if env.tasks and task not in env.tasks]:
        raise ValueError(f"environment {cfg.env.id} has no task {unknown[0]!r}; it has: {', '.join(env.tasks)}.")
    return [EpisodeSpec(task, cfg.seed + i, cfg.paraphrase) for i in range(cfg.episodes_per_task) for task in tasks]


def checksum(episodes: Sequence[EpisodeSpec]) -> str:
    """sha256 of the list: equal checksums mean the same scenes under the same words."""
    return hashlib.sha256(json.dumps([astuple(e) for e in episodes], separators=(",", ":")).encode()).hexdigest()


def spread(n_episodes: int, n_films: int) -> list[int]:
    """Indices of the episodes that are filmed: evenly spread, so that all families are seen."""
    return sorted(set(np.linspace(0, n_episodes - 1, min(n_films, n_episodes)).round().astype(int).tolist()))


def other_instructions(envs: VectorEnv, episodes: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """The same scenes, each with another instruction that it admits; episodes whose scene admits none are left out.

    Preferred are tasks about other things than the first one: reaching for a cube is a part of lifting it, so only
    their outcomes say which words were followed. Held-out tasks are used only where nothing else is left.
    """
    tasks, switched = envs.description.tasks, []
    for start in range(0, len(episodes), envs.num_envs):
        part = episodes[start : start + envs.num_envs]
        resets = {slot: Reset(episode.seed, episode.options()) for slot, episode in enumerate(part)}
        for slot, (first,) in sorted(envs.run(dict(resets)).items()):
            episode = part[slot]
            others = [name for name in first.tasks_in_scene if name != episode.task]
            trained = [name for name in others if name not in tasks or not tasks[name].held_out] or others
            mine = set(tasks[episode.task].things) if episode.task in tasks else set()
            apart = [name for name in trained if name in tasks and not mine & set(tasks[name].things)] or trained
            if apart:
                rng = draws.generator(0, episode.seed, zlib.crc32(episode.task.encode()), "other_instruction")
                name = apart[int(rng.integers(len(apart)))]
                switched.append(EpisodeSpec(name, episode.seed, episode.paraphrase, scene_of=episode.task))
    return switched
