"""`collect`: scripted experts write demonstrations, in parallel, and the same command again goes on where it stopped.

Which scene episode `j` of a task shows is a function of (seed, task, j, attempt), episodes are appended in a fixed
order (all tasks' episode 0, then all tasks' episode 1, ...) and by one process only. So a run that was killed and
started again ends with the store of one that was not, and a larger `episodes_per_task` extends a store.

Of an environment this needs the package that brings its experts: `TASKS` and `rollout_expert`. It is imported by name.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy.config import CollectConfig
from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreError, StoreSpec

Progress = Callable[[int, int, str], None]  # (episodes done, episodes in all, a few words)
NOISE = 0.3  # of a disturbed episode: share of the largest action that is added, in stretches
ATTEMPTS = 20  # scenes tried for one episode before it is given up
FIRST_SCENE = 2**30  # scene seeds of demonstrations lie above those that people and evaluations choose
_AHEAD = 4  # episodes in flight per worker


@dataclass(frozen=True)
class KnownEnv:
    """What a store has to say about an environment, and who has its experts."""

    experts: str  # package with TASKS and rollout_expert
    action: ActionSpec
    proprio: dict[str, Any]


ENVS = {
    "padpolicy/Tabletop-v0": KnownEnv(
        experts="padpolicy_envs",
        action=ActionSpec(
            "delta",
            ["x", "y", "z", "yaw", "gripper"],
            dt_s=0.1,
            rotation="yaw",
            gripper="binary",
            units=["m", "m", "m", "rad", "1"],
        ),
        proprio={
            "names": ["x", "y", "z", "sin_yaw", "cos_yaw", "gripper"],
            "unit": ["m", "m", "m", "1", "1", "1"],
            "frame": "base",
        },
    )
}


@dataclass(frozen=True)
class Job:
    """One episode to record."""

    task: str
    number: int  # of the task's episodes

    @property
    def id(self) -> str:
        return f"{self.task}/{self.number:06d}"


def collect(cfg: CollectConfig, progress: Progress | None = None) -> Path:
    """Records what is still missing of the demonstrations that `cfg` asks for. Returns the store's path.

    Raises:  ValueError for an environment without experts or an unknown task; StoreError if the store at `cfg.out` was
             collected with other settings, is damaged, or is being written by another process.
    """
    known = _known(cfg.env.id)
    tasks = _tasks(cfg, known)
    path = Path(cfg.out)
    jobs = [Job(task, number) for number in range(cfg.episodes_per_task) for task in tasks]
    with _open_store(path, cfg, known, tasks) as store:
        done = _done(store, jobs)
        retried = given_up = 0
        if progress:
            progress(done, len(jobs), "")
        for job, (episode, attempts) in _record_all(cfg, jobs[done:]):
            retried += attempts - 1
            done += 1
            if episode is None:
                given_up += 1
            else:
                store.append(episode)
            if progress:
                words = f"{job.task}  {retried} scenes failed and were replaced" + f", {given_up} given up" * bool(
                    given_up
                )
                progress(done, len(jobs), words)
        if store.n_episodes == 0:
            raise StoreError(
                f"{path}: the expert failed in each of {ATTEMPTS} scenes of every task; nothing was recorded."
            )
    return path


def scene_seed(seed: int, task: str, number: int, attempt: int) -> int:
    """The scene of an attempt at an episode: the same whichever tasks and however many episodes are asked for."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(task.encode()), number, attempt])
    return FIRST_SCENE + int(sequence.generate_state(1)[0]) % FIRST_SCENE


def _known(env_id: str) -> KnownEnv:
    if env_id not in ENVS:
        raise ValueError(
            f"collect: no scripted expert is known for environment {env_id!r}; there is {', '.join(ENVS)}."
        )
    return ENVS[env_id]


def _tasks(cfg: CollectConfig, known: KnownEnv) -> list[str]:
    all_tasks = importlib.import_module(known.experts).TASKS
    asked = list(cfg.tasks or cfg.env.tasks)
    if unknown := [name for name in asked if name not in all_tasks]:
        import difflib

        near = difflib.get_close_matches(unknown[0], all_tasks, n=3, cutoff=0.3) or list(all_tasks)[:3]
        raise ValueError(f"collect: unknown task {unknown[0]!r}; did you mean {', '.join(near)}?")
    if len(set(asked)) < len(asked):
        raise ValueError(f"collect: a task is listed twice in {asked}.")
    return asked or [name for name, task in all_tasks.items() if not task.held_out]


def _make_env(cfg: CollectConfig) -> Any:
    import gymnasium

    importlib.import_module(_known(cfg.env.id).experts)  # registers the environment
    options: dict[str, Any] = {"cameras": tuple(cfg.env.cameras), "depth": cfg.depth, "renderer": cfg.env.renderer}
    if cfg.env.max_steps:
        options["step_limit"] = cfg.env.max_steps
    return gymnasium.make(cfg.env.id, disable_env_checker=True, **options)


def _settings(cfg: CollectConfig, tasks: list[str]) -> dict[str, Any]:
    """What must stay the same for a store to be continued."""
    env = {name: value for name, value in asdict(cfg.env).items() if name != "tasks"}
    settings = {"env": env, "tasks": tasks, "seed": cfg.seed, "noise": cfg.noise, "depth": cfg.depth}
    return settings | {"keep_failures": cfg.keep_failures, "actions": cfg.actions}


def _open_store(path: Path, cfg: CollectConfig, known: KnownEnv, tasks: list[str]) -> Store:
    settings = _settings(cfg, tasks)
    if path.exists():
        store = Store.open(path, "a")
        before = store.attrs.get("collect", {})
        changed = [
            f"{name}={before.get(name)!r}, now {settings[name]!r}"
            for name in settings
            if before.get(name) != settings[name]
        ]
        if changed:
            store.close()
            raise StoreError(f"{path} was collected with {'; '.join(changed)}. Use the same settings, or another out.")
        return store
    env = _make_env(cfg)
    try:
        env.reset(seed=0, options={"task": tasks[0]})
        cameras = env.unwrapped.camera_info()
    finally:
        env.close()
    all_tasks = importlib.import_module(known.experts).TASKS
    spec = StoreSpec(
        cameras={camera: cameras[camera] for camera in cfg.env.cameras},
        depth_cameras=list(cfg.env.cameras) if cfg.depth else [],
        proprio=known.proprio if cfg.actions else None,
        action=known.action if cfg.actions else None,
        executed=cfg.actions,
        robot=cfg.env.robot if cfg.actions else "",
        renderer=cfg.env.renderer,
        dt_s=known.action.dt_s,
        tasks=[
            {
                "name": name,
                "paraphrases": list(all_tasks[name].paraphrases),
                "held_out": bool(all_tasks[name].held_out),
                "held_out_paraphrase": all_tasks[name].held_out_paraphrase,
                "family": all_tasks[name].family,
            }
            for name in tasks
        ],
        extra={"collect": settings},
    )
    return Store.create(path, spec)


def _done(store: Store, jobs: list[Job]) -> int:
    """How many of the jobs lie behind: up to the last one that is in the store (one before it was given up)."""
    if store.n_episodes == 0:
        return 0
    last = str(store.meta["episode_id"][-1])
    return next((i + 1 for i, job in enumerate(jobs) if job.id == last), len(jobs))


def _record_all(cfg: CollectConfig, jobs: list[Job]) -> Iterator[tuple[Job, tuple[Episode | None, int]]]:
    """The jobs' results in their order, recorded by `cfg.workers` processes (by this one if there is one worker)."""
    if cfg.workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, _record(cfg, job)
        _close_env()
        return
    workers = min(cfg.workers, len(jobs))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)
    try:
        waiting = deque(jobs)
        flying: deque[tuple[Job, Future[tuple[Episode | None, int]]]] = deque()
        while waiting or flying:
            while waiting and len(flying) < _AHEAD * workers:
                job = waiting.popleft()
                flying.append((job, pool.submit(_record, cfg, job)))
            job, result = flying.popleft()
            yield job, result.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_env: tuple[CollectConfig, Any] | None = None  # of this process: building one takes longer than an episode


def _env_for(cfg: CollectConfig) -> Any:
    global _env
    if _env is None or _env[0] != cfg:
        _close_env()
        _env = (replace(cfg), _make_env(cfg))
    return _env[1]


def _close_env() -> None:
    global _env
    if _env is not None:
        _env[1].close()
        _env = None


def _record(cfg: CollectConfig, job: Job) -> tuple[Episode | None, int]:
    """Plays scenes until the expert succeeds (or keeps the first, whatever happened). None if it never did.

    Returns: the episode, and how many scenes were tried.
    """
    env, known = _env_for(cfg), _known(cfg.env.id)
    rollout = importlib.import_module(known.experts).rollout_expert
    for attempt in range(ATTEMPTS):
        seed = scene_seed(cfg.seed, job.task, job.number, attempt)
        noise = NOISE if np.random.default_rng([seed, 2]).random() < cfg.noise else 0.0
        observations, labels, executed, success = [], [], [], False
        for observation, label, action, info in rollout(env, seed, job.task, noise):
            observations.append(observation)
            labels.append(label)
            executed.append(action)
            success = bool(info["success"])
        if success or cfg.keep_failures:
            break
    else:
        return None, ATTEMPTS
    names = [f"rgb_{camera}" for camera in cfg.env.cameras]
    names += [f"depth_{camera}" for camera in cfg.env.cameras] if cfg.depth else []
    names += ["proprio"] if cfg.actions else []
    arrays = {name: np.stack([observation[name] for observation in observations]) for name in names}
    if cfg.actions:
        arrays["action"] = np.stack(labels).astype(np.float32)
        arrays["executed"] = np.stack(executed).astype(np.float32)
    arrays["timestamp"] = np.arange(len(labels)) * known.action.dt_s
    source = "scripted expert, disturbed" if noise else "scripted expert"
    return Episode(arrays, job.task, success, seed, source, job.id), attempt + 1
