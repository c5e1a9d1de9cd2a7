"""`collect`: scripted experts write demonstrations, in parallel, and the same command again goes on where it stopped.

Which scene episode `j` of a task shows is a function of (seed, task, j, attempt), episodes are appended in a fixed
order and by one process only. So a run that was killed and started again ends with the store of one that was not, and a
larger `episodes_per_task` extends a store. The order is ten episodes of a task, then ten of the next, because some
simulators take long to change their scene; what extends a store begins a new round.

Of an environment this needs the module that brings its experts: `TASKS` and `rollout_expert`. It is imported by name.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
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
FAILURES = 2  # of them kept per episode
FIRST_SCENE = 2**30  # scene seeds of demonstrations lie above those that people and evaluations choose
BLOCK = 10  # episodes of a task in a row
_AHEAD = 4  # episodes in flight per worker


@dataclass(frozen=True)
class KnownEnv:
    """What a store has to say about an environment, and who has its experts."""

    experts: str  # module with TASKS and rollout_expert
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
    ),
    "padpolicy/MetaWorld-v0": KnownEnv(
        experts="padpolicy_envs.metaworld",
        action=ActionSpec(
            "delta",
            ["x", "y", "z", "gripper"],
            dt_s=0.0125,
            gripper="continuous",
            units=["cm", "cm", "cm", "1"],
            scale=[0.01, 0.01, 0.01, 1.0],
        ),
        proprio={"names": ["x", "y", "z", "gripper"], "unit": ["m", "m", "m", "1"], "frame": "base"},
    ),
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
    jobs = _jobs(tasks, cfg.episodes_per_task)
    with ExitStack() as stack:
        store = stack.enter_context(_open_store(path, cfg, known, tasks))
        failures = stack.enter_context(_open_failures(path, store)) if cfg.keep_failures else None
        given_up: list[Job] = []
        there = set(map(str, store.meta["episode_id"]))
        kept = set(map(str, failures.meta["episode_id"])) if failures else set()
        missing = [job for job in jobs if job.id not in there]  # one that was given up fails again: scenes are fixed
        done, failed = len(jobs) - len(missing), 0
        if progress:
            progress(done, len(jobs), "")
        for job, attempts in _record_all(cfg, missing):
            done += 1
            failed += sum(not episode.success for episode in attempts)
            for episode in attempts:
                if episode.success:
                    store.append(episode)
                elif failures is not None and episode.arrays and episode.id not in kept:
                    failures.append(episode)
            if not attempts[-1].success:
                given_up.append(job)
            if progress:
                words = f"{job.task}  {failed} scenes failed and were replaced"
                progress(done, len(jobs), words + f", {len(given_up)} given up" * bool(given_up))
        if store.n_episodes == 0:
            raise StoreError(
                f"{path}: the expert failed in each of {ATTEMPTS} scenes of every task; nothing was recorded."
            )
        if given_up:
            warnings.warn(
                f"{path}: {len(given_up)} episodes are missing, because the expert failed in each of {ATTEMPTS} scenes: "
                f"{', '.join(job.id for job in given_up[:5])}{', …' * (len(given_up) > 5)}. Was env.max_steps too small?",
                stacklevel=2,
            )
    return path


def failures_path(path: str | Path) -> Path:
    """Where the failed attempts at a store's episodes are kept: runs/x.zarr -> runs/x.failures.zarr."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.zarr')}.failures.zarr")


def scene_seed(seed: int, task: str, number: int, attempt: int) -> int:
    """The scene of an attempt at an episode: the same whichever tasks and however many episodes are asked for."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(task.encode()), number, attempt])
    return FIRST_SCENE + int(sequence.generate_state(1)[0]) % FIRST_SCENE


def _jobs(tasks: list[str], episodes_per_task: int) -> list[Job]:
    """All episodes of a store, in the order in which they are written."""
    blocks = range(0, episodes_per_task, BLOCK)
    return [
        Job(task, number)
        for first in blocks
        for task in tasks
        for number in range(first, min(first + BLOCK, episodes_per_task))
    ]


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
    options |= cfg.env.options
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
        return _continued(path, settings)
    if cfg.keep_failures and (failures := failures_path(path)).exists():
        raise StoreError(f"{failures} holds what failed beside a store that is gone. Remove it, or use another out.")
    env = _make_env(cfg)
    try:
        env.reset(seed=0, options={"task": tasks[0]})
        cameras, renderer = env.unwrapped.camera_info(), env.unwrapped.renderer
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
        renderer=renderer,
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


def _continued(path: Path, settings: dict[str, Any]) -> Store:
    """A store that is there, for more of the same. Raises StoreError naming what is not the same."""
    store = Store.open(path, "a")
    before = dict(store.attrs.get("collect", {}))
    before["env"] = {"options": {}} | before.get("env", {})  # older ones had none
    changed = [f"{n}={before.get(n)!r}, now {settings[n]!r}" for n in settings if before.get(n) != settings[n]]
    if changed:
        store.close()
        raise StoreError(f"{path} was collected with {'; '.join(changed)}. Use the same settings, or another out.")
    return store


def _open_failures(path: Path, store: Store) -> Store:
    """The store of failed attempts beside a store, with the same fields and tasks."""
    where = failures_path(path)
    return _continued(where, store.attrs["collect"]) if where.exists() else Store.create(where, store.spec)


def _record_all(cfg: CollectConfig, jobs: list[Job]) -> Iterator[tuple[Job, list[Episode]]]:
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
        flying: deque[tuple[Job, Future[list[Episode]]]] = deque()
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


def _record(cfg: CollectConfig, job: Job) -> list[Episode]:
    """Plays scenes until the expert succeeds, ATTEMPTS at the most: all that were played, the success last.

    Only what will be written comes back with its arrays: the success, and with `keep_failures` the first failures.
    """
    env, known = _env_for(cfg), _known(cfg.env.id)
    rollout = importlib.import_module(known.experts).rollout_expert
    names = [f"rgb_{camera}" for camera in cfg.env.cameras]
    names += [f"depth_{camera}" for camera in cfg.env.cameras] if cfg.depth else []
    names += ["proprio"] if cfg.actions else []
    played: list[Episode] = []
    while not (played and played[-1].success) and len(played) < ATTEMPTS:
        seed = scene_seed(cfg.seed, job.task, job.number, len(played))
        noise = NOISE if np.random.default_rng([seed, 2]).random() < cfg.noise else 0.0
        observations, labels, executed, success = [], [], [], False
        for observation, label, action, info in rollout(env, seed, job.task, noise):
            observations.append(observation)
            labels.append(label)
            executed.append(action)
            success = bool(info["success"])
        arrays: dict[str, np.ndarray] = {}
        if success or (cfg.keep_failures and len(played) < FAILURES):
            arrays = {name: np.stack([observation[name] for observation in observations]) for name in names}
            if cfg.actions:
                arrays["action"] = np.stack(labels).astype(np.float32)
                arrays["executed"] = np.stack(executed).astype(np.float32)
            arrays["timestamp"] = np.arange(len(labels)) * known.action.dt_s
        source = "scripted expert, disturbed" if noise else "scripted expert"
        name = job.id if success else f"{job.id}/{len(played)}"
        played.append(Episode(arrays, job.task, success, seed, source, name))
    return played
