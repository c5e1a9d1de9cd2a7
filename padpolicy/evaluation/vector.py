"""Environments in worker processes, reset by hand.

gymnasium's own vector environments hand one `options` to all environments of a reset; an evaluation gives each its
own task. Here every command names a slot: `Reset` it, or let it `Act` out several actions. One message moves a whole
executed chunk, so the pipes are quiet while physics and rays keep the cores busy.

Workers are spawned, not forked: a fork hangs once the parent holds a GL context. They import neither torch nor a
policy.
"""

from __future__ import annotations

import importlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from padpolicy.config import EnvConfig


@dataclass
class Description:
    """What an environment offers."""

    observation: dict[str, tuple[int, ...]]  # key -> shape
    action_low: np.ndarray  # (A,) float32
    action_high: np.ndarray
    renderer: str  # "" if the environment does not say
    dt_s: float  # seconds per step; 0 if the environment does not say
    max_steps: int  # of an episode; 0 if the environment does not say, or has several
    tasks: dict[str, Task]  # what can be asked for; empty if neither its module nor its package exports TASKS


@dataclass
class Task:
    """A task as the environment's package describes it."""

    family: str = ""
    held_out: bool = False
    things: tuple[str, ...] = ()  # what its words are about: tasks that share none can be told apart by their outcome


@dataclass
class Reset:
    """Command: start an episode."""

    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    picture: bool = False  # also draw a picture for people: env.render()


@dataclass
class Act:
    """Command: execute actions (n, A) one after another, stopping early when the episode ends."""

    actions: np.ndarray
    watch: list[str] = field(default_factory=list)  # other tasks of the scene whose success is asked for as well
    picture: bool = False


@dataclass
class Drive:
    """Command: let the environment's own script, `towards`, bring the hand to a pose; stops there, or as `Act` does."""

    waypoint: np.ndarray  # (A,) absolute, SI units, the gripper as commanded
    least: int  # steps, also where it is there already: fingers take time
    most: int
    watch: list[str] = field(default_factory=list)
    picture: bool = False


@dataclass
class Step:
    """What came after one action, or after a reset."""

    observation: dict[str, Any]
    action: np.ndarray | None = None  # (A,) that led here
    terminated: bool = False
    truncated: bool = False
    success: bool = False
    info: dict[str, Any] = field(default_factory=dict)  # plain values only
    watched: dict[str, bool] = field(default_factory=dict)
    tasks_in_scene: tuple[str, ...] = ()  # after a reset, if the environment says so
    picture: np.ndarray | None = None  # (H, W, 3) uint8


Command = Reset | Act | Drive


class _Environments:
    """The environments of one worker."""

    def __init__(self, cfg: EnvConfig, slots: list[int]):
        self.cfg = cfg
        self.envs = {slot: _make(cfg) for slot in slots}

    def describe(self) -> Description:
        env = next(iter(self.envs.values()))
        shapes = {key: tuple(space.shape or ()) for key, space in env.observation_space.spaces.items()}
        return Description(
            observation=shapes,
            action_low=env.action_space.low,
            action_high=env.action_space.high,
            renderer=str(getattr(env.unwrapped, "renderer", "") or ""),
            dt_s=1.0 / env.metadata["render_fps"] if env.metadata.get("render_fps") else 0.0,
            max_steps=min(filter(None, (self.cfg.max_steps, getattr(env.unwrapped, "step_limit", None))), default=0),
            tasks=_tasks(env),
        )

    def run(self, commands: dict[int, Command]) -> dict[int, list[Step]]:
        return {slot: self._one(self.envs[slot], command) for slot, command in commands.items()}

    def _one(self, env: Any, command: Command) -> list[Step]:
        if isinstance(command, Reset):
            observation, info = env.reset(seed=command.seed, options=command.options)
            names = getattr(env.unwrapped, "tasks_in_scene", None)
            scene: tuple[str, ...] = tuple(names()) if names is not None else ()
            picture = env.render() if command.picture else None
            return [Step(observation, info=_plain(info), tasks_in_scene=scene, picture=picture)]
        steps = []
        for action in command.actions if isinstance(command, Act) else _towards(env, command):
            observation, _, terminated, truncated, info = env.step(action)
            watched = {task: bool(env.unwrapped.succeeded(task)) for task in command.watch}
            steps.append(
                Step(
                    observation,
                    action=action,
                    terminated=bool(terminated),
                    truncated=bool(truncated),
                    success=bool(info.get("success", False)),
                    info=_plain(info),
                    watched=watched,
                    picture=env.render() if command.picture else None,
                )
            )
            if terminated or truncated:
                break
        return steps

    def close(self) -> None:
        for env in self.envs.values():
            env.close()


def _towards(env: Any, command: Drive) -> Iterator[np.ndarray]:
    """The actions of the environment's script, one after another; each sees what the one before has done."""
    script = getattr(env.unwrapped, "towards", None)
    if script is None:
        raise ValueError(
            f"environment {env.spec.id} has no script that drives to a pose (`towards`), which execution=waypoint "
            "needs; use execution=chunk."
        )
    for step in range(command.most):
        action, there = script(command.waypoint)
        if there and step >= command.least:
            return
        yield action


def _make(cfg: EnvConfig) -> Any:
    import gymnasium

    package, _, name = cfg.id.rpartition(":")
    try:
        if package:
            importlib.import_module(package)
        gymnasium.spec(name)
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise ValueError(
            f"unknown environment {cfg.id!r}: {error} Is the package that registers it installed? "
            "An id may name its package: env.id=PACKAGE:ID."
        ) from None
    limit = {"max_episode_steps": cfg.max_steps} if cfg.max_steps else {}
    settings: dict[str, Any] = {"renderer": cfg.renderer, "cameras": list(cfg.cameras), **limit, **cfg.options}
    return gymnasium.make(name, disable_env_checker=True, render_mode="rgb_array", **settings)


def _tasks(env: Any) -> dict[str, Task]:
    """The `TASKS` that the environment's module or package exports: name -> anything with family, held_out, objects."""
    module = type(env.unwrapped).__module__
    found = [getattr(importlib.import_module(name), "TASKS", {}) for name in (module, module.split(".")[0])]
    return {
        name: Task(
            family=str(getattr(task, "family", "")),
            held_out=bool(getattr(task, "held_out", False)),
            things=tuple(getattr(task, "objects", ())),
        )
        for name, task in (found[0] or found[1]).items()
    }


def _plain(info: dict[str, Any]) -> dict[str, Any]:
    """What of `info` is worth a trip through a pipe."""
    kinds = (str, bool, int, float, np.generic, list, tuple)
    return {k: v for k, v in info.items() if isinstance(v, kinds) or (isinstance(v, np.ndarray) and v.ndim == 1)}


def _serve(pipe: Connection, cfg: EnvConfig, slots: list[int]) -> None:
    """A worker's life: commands in, replies out, until None."""
    environments = None
    try:
        environments = _Environments(cfg, slots)
        pipe.send(("ok", environments.describe()))
        while (commands := pipe.recv()) is not None:
            pipe.send(("ok", environments.run(commands)))
    except (EOFError, KeyboardInterrupt):  # the parent is gone, or is going and says so itself
        pass
    except ValueError as error:  # what a user can cause: an unknown task, a bad option
        pipe.send(("value", str(error)))
    except Exception:
        pipe.send(("crash", traceback.format_exc()))
    finally:
        if environments is not None:
            environments.close()


class VectorEnv:
    """`num_envs` environments in `workers` processes (0: in this one); a context manager: leaving it ends them.

    Raises:  ValueError for an unknown environment or for settings that it refuses.
    """

    def __init__(self, cfg: EnvConfig, num_envs: int, workers: int):
        if num_envs < 1 or workers < 0:
            raise ValueError(f"num_envs={num_envs} must be at least 1, env_workers={workers} at least 0.")
        if not cfg.id:
            raise ValueError("no environment: give env=NAME (a file of configs/env) or env.id=GYMNASIUM_ID.")
        self.num_envs = num_envs
        self._local = _Environments(cfg, list(range(num_envs))) if workers == 0 else None
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        if self._local is not None:
            self.description = self._local.describe()
            return
        context = multiprocessing.get_context("spawn")
        workers = min(workers, num_envs)
        self._worker_of = {slot: slot % workers for slot in range(num_envs)}
        try:
            for worker in range(workers):
                ours, theirs = context.Pipe()
                slots = [slot for slot, w in self._worker_of.items() if w == worker]
                process = context.Process(target=_serve, args=(theirs, cfg, slots), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self.description = [self._receive(worker) for worker in range(workers)][0]
        except BaseException:
            self.close()
            raise

    def run(self, commands: dict[int, Command]) -> dict[int, list[Step]]:
        """Carries out one command per slot, all workers at once: one Step per executed action, or one of the reset.

        Raises:  ValueError for what the environment refuses (an unknown task); RuntimeError if a worker died.
        """
        if self._local is not None:
            return self._local.run(commands)
        shares: dict[int, dict[int, Command]] = {}
        for slot, command in commands.items():
            shares.setdefault(self._worker_of[slot], {})[slot] = command
        for worker, share in shares.items():
            try:
                self._pipes[worker].send(share)
            except OSError:
                raise self._died(worker) from None
        replies: dict[int, list[Step]] = {}
        for worker in shares:
            replies.update(self._receive(worker))
        return replies

    def _receive(self, worker: int) -> Any:
        try:
            kind, payload = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            raise self._died(worker) from None
        if kind == "value":
            raise ValueError(payload)
        if kind == "crash":
            raise RuntimeError(f"environment worker {worker} failed:\n{payload}")
        return payload

    def _died(self, worker: int) -> RuntimeError:
        self._processes[worker].join(timeout=5)
        code = self._processes[worker].exitcode
        how = f"of {signal.Signals(-code).name}" if code and code < 0 else f"with exit code {code}"
        return RuntimeError(
            f"environment worker {worker} died {how}; its output says why, if anything does. Run the command again."
        )

    def close(self) -> None:
        if self._local is not None:
            self._local.close()
        for pipe in self._pipes:
            try:
                pipe.send(None)
            except OSError:  # the worker ended before
                pass
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
        self._pipes, self._processes = [], []

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
