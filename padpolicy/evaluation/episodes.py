"""Which episodes an evaluation runs: a fixed list, the same for every policy, with a checksum to compare by."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np

from padpolicy import draws
from padpolicy.config import EvalConfig
from padpolicy.evaluation.rollout import EpisodeResult, EpisodeSpec
from padpolicy.evaluation.vector import Description, Reset, VectorEnv


def task_names(cfg: EvalConfig, env: Description) -> list[str]:
    """The tasks of an evaluation: `cfg.tasks`, else `cfg.env.tasks`, else all of the environment that are not held out.

    Raises:  ValueError if none is known, or one is not the environment's.
    """
    tasks = cfg.tasks or cfg.env.tasks or [name for name, task in env.tasks.items() if not task.held_out]
    if not tasks:
        raise ValueError(f"environment {cfg.env.id} does not list its tasks: give tasks=[NAME, …].")
    if unknown := [task for task in tasks if env.tasks and task not in env.tasks]:
        raise ValueError(f"environment {cfg.env.id} has no task {unknown[0]!r}; it has: {', '.join(env.tasks)}.")
    return tasks


def episode_list(cfg: EvalConfig, env: Description) -> list[EpisodeSpec]:
    """Scene i of every task has seed `cfg.seed + i`; the tasks are interleaved. Raises ValueError like `task_names`."""
    tasks = task_names(cfg, env)
    return [EpisodeSpec(task, cfg.seed + i, cfg.paraphrase) for i in range(cfg.episodes_per_task) for task in tasks]


def checksum(episodes: Sequence[EpisodeSpec]) -> str:
    """sha256 of the list: equal checksums mean the same scenes under the same words."""
    return hashlib.sha256(json.dumps([astuple(e) for e in episodes], separators=(",", ":")).encode()).hexdigest()


def protocol_of(cfg: EvalConfig, env: Description) -> dict[str, Any]:
    """What was asked of the policy, as plain JSON: a success rate means something beside others of the same protocol.

    Returns:  name (for people), environment, options (of its constructor, but for image_size), renderer, goals
              ("random": new ones in every episode; "fixed"), execution ("chunk": the environment's own actions;
              "waypoint": a scripted drive to the pose exec_steps ahead), exec_steps, max_steps (0: the environment does
              not say), tasks (sorted), paraphrase, episodes_per_task, first_seed; fingerprint: 12 digits of the sha256
              of all these but the name.
    """
    options = dict(cfg.env.options)
    options.pop("image_size", None)  # how sharply it looks is the policy's choice, as are its cameras
    goals, execution = str(options.pop("goals", "random")), cfg.execution
    facts: dict[str, Any] = {
        "environment": cfg.env.id,
        "options": options,
        "renderer": env.renderer,
        "goals": goals,
        "execution": execution,
        "exec_steps": cfg.exec_steps,
        "max_steps": env.max_steps,
        "tasks": sorted(task_names(cfg, env)),
        "paraphrase": cfg.paraphrase,
        "episodes_per_task": cfg.episodes_per_task,
        "first_seed": cfg.seed,
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    name = f"{cfg.env.id.split('/')[-1]}, {goals} goals, {execution} execution"
    return {"name": name, **facts, "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:12]}


def protocol_differences(a: Mapping[str, Any], b: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """The facts in which two `protocol` entries differ, as "max_steps: 500, 300"; such results share no table.

    Args:  but: facts that may differ, because the table is about them: ["exec_steps"].
    """
    facts = dict.fromkeys([*a, *b])
    return [
        f"{f}: {a.get(f)}, {b.get(f)}" for f in facts if f not in ("name", "fingerprint", *but) and a.get(f) != b.get(f)
    ]


def to_film(done: Sequence[EpisodeResult], n_films: int) -> list[int]:
    """Indices of the episodes that are worth a look: failures, then successes; half of each, as far as there are any.

    Both are of as many tasks as possible: failures beginning with the task that failed most, successes evenly spread.
    """
    n_films = min(n_films, len(done))
    failures = Counter(result.spec.task for result in done if not result.success)
    earlier: Counter[tuple[bool, str]] = Counter()  # episodes of this outcome and task
    sides: dict[bool, list[tuple[int, int, int]]] = {False: [], True: []}  # success -> by what to sort, and the index
    for i, result in enumerate(done):
        task = result.spec.task
        sides[result.success].append((earlier[result.success, task], -failures[task] * (not result.success), i))
        earlier[result.success, task] += 1
    failed, succeeded = ([i for *_, i in sorted(side)] for side in sides.values())
    n_failed = min(len(failed), max(n_films - n_films // 2, n_films - len(succeeded)))
    n_succeeded = n_films - n_failed
    each_once = sum(success for success, _ in earlier)  # tasks that succeeded: their first successes stand in front
    chosen = spread(max(each_once, n_succeeded), n_succeeded)
    return failed[:n_failed] + [succeeded[i] for i in chosen]


def spread(n_episodes: int, n_films: int) -> list[int]:
    """`n_films` of `n_episodes` indices, evenly spread."""
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
