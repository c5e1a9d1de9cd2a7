"""Closed loop in simulation: observe, plan a chunk, execute its first steps, plan again.

    round:  plan for all running episodes (one batch)  ->  each executes up to exec_steps actions  ->  take in what came

Episodes are a fixed list of (task, seed), each run exactly once, whatever finishes first. Scenes come from the seed,
the noise of each plan from (seed, task, plan number): nothing of an episode depends on how many run beside it, but for
the rounding of plans made in one batch.

With execution=waypoint a round is PAD's (arXiv:2411.18179): a script of the environment drives to one pose of the plan,
for a limited time, and only so many plans are made.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from padpolicy import draws
from padpolicy.batch import collate
from padpolicy.config import EvalConfig
from padpolicy.control.chunking import ChunkQueue, ObservationBuffer
from padpolicy.data.actions import ActionSpec, to_waypoints
from padpolicy.data.letterbox import fitted
from padpolicy.evaluation.vector import Act, Description, Drive, Reset, Step, VectorEnv
from padpolicy.sample import Sample

if TYPE_CHECKING:  # only the interface is used: any policy will do
    from padpolicy.policy import Policy
    from padpolicy.spec import PolicySpec

DRIVE_LEAST, DRIVE_MOST, DRIVES = 10, 50, 20  # execution=waypoint: steps to a pose (fingers take time), and plans
HOLD_STEPS = 2  # a watched goal counts once it has held for two steps in a row: passing by is not reaching


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode, before it is run."""

    task: str  # what the instruction asks for
    seed: int
    paraphrase: str = "canonical"  # "canonical", "random" (one of training's) or "held_out"
    scene_of: str = ""  # the scene is that of this other task; its success is reported as `old_goal`

    def options(self) -> dict[str, Any]:
        """Reset options of the environment."""
        options: dict[str, Any] = {"task": self.task}
        if self.paraphrase != "random":
            options["paraphrase"] = 0 if self.paraphrase == "canonical" else self.paraphrase
        if self.scene_of:
            options["scene_of"] = self.scene_of
        return options


@dataclass
class Imagined:
    """What the policy expected to see when it planned at `step`."""

    step: int
    frames: np.ndarray  # (F, H, W, 3) uint8, one per future_offsets_s


@dataclass
class Film:
    """What is kept of an episode for people to look at."""

    camera: str
    observed: list[np.ndarray] = field(default_factory=list)  # (H, W, 3) uint8, one per step, reset first
    pictures: list[np.ndarray] = field(default_factory=list)  # env.render(): larger ones, if the environment draws them
    imagined: list[Imagined] = field(default_factory=list)


@dataclass
class EpisodeResult:
    """One episode, after it was run."""

    spec: EpisodeSpec
    instruction: str = ""
    family: str = ""
    success: bool = False
    terminated: bool = False
    truncated: bool = False
    old_goal: bool = False  # with spec.scene_of: the goal of the instruction that was *not* given came true
    steps: int = 0
    plan_ms: list[float] = field(default_factory=list)  # wall time of the batched call each plan came from
    actions: list[np.ndarray] = field(default_factory=list)  # (n, A) each, as they were executed, plan by plan
    film: Film | None = None


Progress = Callable[[int, int, EpisodeResult], None]  # episodes done, episodes in all, the one just done
OpenLoop = Callable[
    [EpisodeSpec, str], Sequence[np.ndarray]
]  # episode and its words -> rounds (n, A) of actions to play


def needed_cameras(spec: PolicySpec, cfg: EvalConfig) -> EvalConfig:
    """`cfg` with only the cameras that are looked at, since drawing is most of a step, at the size they are looked at.

    Raises:  ValueError if the policy needs a camera that the environment does not have.
    """
    needed = list(dict.fromkeys([*spec.cameras, *spec.depth_cameras, *spec.future_cameras[:1]]))
    if missing := [cam for cam in needed if cam not in cfg.env.cameras]:
        raise ValueError(
            f"the policy looks through camera {', '.join(missing)}, but environment {cfg.env.id} has "
            f"{', '.join(cfg.env.cameras) or 'none'} (env.cameras). Evaluate it where it can see, or train without."
        )
    options = {n: spec.image_size if n == "image_size" else value for n, value in cfg.env.options.items()}
    return replace(cfg, env=replace(cfg.env, cameras=needed or cfg.env.cameras[:1], options=options))


def check_fit(spec: PolicySpec, env: Description, cfg: EvalConfig) -> None:
    """Raises ValueError, saying what differs and what to do, if the policy was made for another environment."""
    where = f"environment {cfg.env.id}"
    if (dims := len(env.action_low)) != spec.action_dim:
        raise ValueError(
            f"{where} takes actions of {dims} dims, the policy gives {spec.action_dim} "
            f"({', '.join(spec.action.get('names', [])) or 'unnamed'}). It was trained for another robot."
        )
    if spec.action.get("kind") == "relative_to_chunk_start" and cfg.execution == "chunk":
        raise ValueError(
            f"the policy's actions are relative to the start of their chunk, and {where} would take each as it is. "
            "Train on absolute actions or deltas, or evaluate with execution=waypoint."
        )
    if spec.renderer and env.renderer and spec.renderer != env.renderer:
        raise ValueError(
            f"{where} is drawn by renderer {env.renderer!r}, the policy learned from pictures drawn by "
            f"{spec.renderer!r}, and their pixels differ. Choose that one (env.renderer, env.options), or collect and "
            f"train with {env.renderer!r}."
        )
    if cfg.execution == "chunk" and env.dt_s and abs(env.dt_s - spec.dt_s) > 1e-6:
        raise ValueError(f"{where} steps every {env.dt_s:g} s, the policy's actions are {spec.dt_s:g} s apart.")
    for name in [f"rgb_{cam}" for cam in spec.cameras] + [f"depth_{cam}" for cam in spec.depth_cameras]:
        if name not in env.observation:
            raise ValueError(
                f"{where} has no observation {name!r}, which the policy needs; it has {', '.join(env.observation)}."
            )
        if min(env.observation[name][:2]) < spec.image_size:
            raise ValueError(
                f"{where}: {name} is {env.observation[name][1]} x {env.observation[name][0]} pixels, the policy looks "
                f"at {spec.image_size}. Draw larger ones, or train with data.image_size={env.observation[name][0]}."
            )
    proprio = env.observation.get("proprio", (0,))
    if spec.proprio_dim and proprio != (spec.proprio_dim,):
        raise ValueError(f"{where}: proprio has shape {proprio}, the policy expects ({spec.proprio_dim},).")
    if not 1 <= cfg.exec_steps <= spec.chunk_steps:
        raise ValueError(
            f"exec_steps={cfg.exec_steps}: expected 1 to {spec.chunk_steps}, the steps of the policy's chunks."
        )


class _Run:
    """An episode while it runs: its two pieces of state, and its result so far."""

    def __init__(self, index: int, spec: EpisodeSpec, policy: PolicySpec, dt_s: float, film: Film | None):
        self.index, self.spec, self.dt_s, self.image_size = index, spec, dt_s, policy.image_size
        self.buffer, self.queue = ObservationBuffer.of(policy), ChunkQueue()
        self.result = EpisodeResult(spec, film=film)
        self.held = 0
        self.commanded: np.ndarray | None = None  # (A,) the pose that was last commanded, if the environment says so
        self.waypoint = np.zeros(0)  # (A,) to drive to
        self.rounds: deque[np.ndarray] = deque()  # of an open loop, (n, A) each

    @property
    def now_s(self) -> float:
        return self.result.steps * self.dt_s

    def fold(self, step: Step) -> None:
        """Takes in one step (or the reset)."""
        observation = fitted(step.observation, self.image_size)
        self.buffer.push(self.now_s, observation)
        self.commanded = step.info.get("commanded_pose")
        result, film = self.result, self.result.film
        result.success |= step.success
        result.terminated, result.truncated = step.terminated, step.truncated
        self.held = self.held + 1 if step.watched.get(self.spec.scene_of) else 0
        result.old_goal |= self.held >= HOLD_STEPS
        if film is not None:
            if film.camera:
                film.observed.append(observation[f"rgb_{film.camera}"])
            if step.picture is not None:
                film.pictures.append(step.picture)

    def aim(self, policy: PolicySpec, chunk_TA: np.ndarray, exec_steps: int) -> None:
        """Makes the pose `exec_steps` ahead the next one to drive to. Raises ValueError where no pose follows."""
        spec = ActionSpec.from_dict(policy.action)
        if spec.kind != "absolute" and self.commanded is None:
            raise ValueError(
                f"execution=waypoint: the policy's actions are {spec.kind!r}, and the environment does not say from "
                "which pose they count (info['commanded_pose']); use execution=chunk, or train on absolute poses."
            )
        anchor_A = np.zeros(spec.dim) if self.commanded is None else self.commanded
        self.waypoint = to_waypoints(chunk_TA, anchor_A, spec)[exec_steps - 1]

    def due(self, steps: int) -> np.ndarray:
        """The actions (n <= steps, A) of the next `steps` steps; fewer when the plan ends."""
        actions = [self.queue.at(self.now_s + i * self.dt_s) for i in range(steps)]
        return np.array([a for a in actions if a is not None])


def run_episodes(
    policy: Policy,
    envs: VectorEnv,
    cfg: EvalConfig,
    episodes: Sequence[EpisodeSpec],
    *,
    films: Collection[int] = (),
    open_loop: OpenLoop | None = None,
    progress: Progress | None = None,
) -> list[EpisodeResult]:
    """Runs every episode once and returns the results in the order of `episodes`.

    Args:    films: indices of episodes whose pictures and imagined futures are kept.
             open_loop: plays these actions to their end instead of asking the policy, which is only asked what it
                 imagines, where that is filmed.
    Raises:  ValueError for a task that the environment does not know, or a plan that is not finite.
    """
    spec = policy.spec
    camera = next(iter([*spec.future_cameras, *spec.cameras]), "")
    dt_s = envs.description.dt_s or spec.dt_s
    waiting = deque(enumerate(episodes))
    running: dict[int, _Run] = {}
    results: dict[int, EpisodeResult] = {}
    while waiting or running:
        free = [slot for slot in range(envs.num_envs) if slot not in running]
        for slot, (index, episode) in zip(
            free, [waiting.popleft() for _ in range(min(len(free), len(waiting)))], strict=False
        ):
            running[slot] = _Run(index, episode, spec, dt_s, Film(camera) if index in films else None)
        _reset(envs, {slot: run for slot, run in running.items() if not len(run.buffer)}, open_loop)

        commands: dict[int, Act | Drive] = {}
        if open_loop is None:
            _plan(policy, cfg, list(running.values()))
        if cfg.imagine:
            _imagine(policy, cfg, list(running.values()))
        for slot, run in running.items():
            watch = [run.spec.scene_of] if run.spec.scene_of else []
            if cfg.execution == "waypoint" and open_loop is None:
                commands[slot] = Drive(run.waypoint, DRIVE_LEAST, DRIVE_MOST, watch, run.result.film is not None)
                continue
            actions = run.due(cfg.exec_steps) if open_loop is None else run.rounds.popleft()
            low, high = envs.description.action_low, envs.description.action_high
            commands[slot] = Act(
                np.clip(actions, low, high) if len(actions) else actions,
                watch,
                picture=run.result.film is not None,
            )
        for slot, steps in envs.run(dict(commands)).items():
            run = running[slot]
            run.result.actions.append(np.array([step.action for step in steps]))
            for step in steps:
                run.result.steps += 1
                run.fold(step)
            played_out = open_loop is not None and not run.rounds
            if cfg.execution == "waypoint" and len(run.result.plan_ms) == DRIVES:
                run.result.truncated |= not run.result.terminated
            if run.result.terminated or run.result.truncated or played_out:
                results[run.index] = run.result
                del running[slot]
                if progress is not None:
                    progress(len(results), len(episodes), run.result)
    return [results[i] for i in range(len(episodes))]


def _reset(envs: VectorEnv, runs: dict[int, _Run], open_loop: OpenLoop | None) -> None:
    if not runs:
        return
    resets = {
        slot: Reset(run.spec.seed, run.spec.options(), picture=run.result.film is not None)
        for slot, run in runs.items()
    }
    for slot, (first,) in envs.run(dict(resets)).items():
        run = runs[slot]
        run.result.instruction = str(first.observation.get("instruction", ""))
        run.result.family = str(first.info.get("family", "")) or run.spec.task
        run.fold(first)
        if open_loop is not None:
            run.rounds.extend(open_loop(run.spec, run.result.instruction))


def plan_noise(policy: Policy, episode: EpisodeSpec, plan: int, temperature: float = 1.0) -> dict[str, np.ndarray]:
    """Starting noise of an episode's plan, float32 by field: a function of (seed, task, plan number).

    Args:  temperature: its standard deviation.
    """
    key = zlib.crc32(episode.task.encode())
    return {
        field: draws.generator(episode.seed, plan, key, f"plan/{field}").standard_normal(shape, np.float32)
        * np.float32(temperature)
        for field, shape in policy.noise_shapes(policy.acts_in).items()
    }


def _plan(policy: Policy, cfg: EvalConfig, runs: list[_Run]) -> None:
    """One batched plan for all running episodes."""
    spec = policy.spec
    samples = [run.buffer.sample(spec, run.result.instruction, spec.robot, run.index) for run in runs]
    noise = [plan_noise(policy, run.spec, len(run.result.plan_ms), cfg.temperature) for run in runs]
    start = time.perf_counter()
    chunk_BTA = predict_actions(policy, cfg, samples, noise)
    elapsed_ms = (time.perf_counter() - start) * 1e3
    for run, chunk_TA in zip(runs, chunk_BTA, strict=True):
        if not np.isfinite(chunk_TA).all():
            raise ValueError(
                f"the policy planned actions that are not finite (task {run.spec.task!r}, seed {run.spec.seed}, "
                f"step {run.result.steps}). Its weights or statistics are broken."
            )
        if cfg.execution == "waypoint":
            run.aim(spec, chunk_TA, cfg.exec_steps)
        else:
            run.queue.put(run.now_s, spec.dt_s, chunk_TA)
        run.result.plan_ms.append(elapsed_ms)


def _imagine(policy: Policy, cfg: EvalConfig, runs: list[_Run]) -> None:
    """What is expected now, of the episodes that are filmed, from the noise of their plan."""
    spec = policy.spec
    for run in runs:
        film, steps = run.result.film, run.result.steps
        if film is not None and film.camera in spec.future_cameras and policy.imagines_in:
            sample = run.buffer.sample(spec, run.result.instruction, spec.robot, run.index)
            noise = plan_noise(policy, run.spec, len(film.imagined), cfg.temperature)
            frames = imagine(policy, cfg, sample, noise, film.camera, seed=run.spec.seed + steps)
            film.imagined.append(Imagined(steps, frames))


def predict_actions(
    policy: Policy, cfg: EvalConfig, samples: Sequence[Sample], noise: Sequence[dict[str, np.ndarray]]
) -> np.ndarray:
    """Plans (B, T, A) float32 for observations, each from its noise (see plan_noise)."""
    prediction = policy.predict(
        collate(samples),
        mode=policy.acts_in,
        noise=_stacked(noise),
        guidance=cfg.guidance or None,
        sampler=cfg.sampler or None,
        steps=cfg.steps or None,
    )
    assert prediction.action is not None  # both modes to act in give actions
    return prediction.action.float().cpu().numpy()


def imagine(
    policy: Policy, cfg: EvalConfig, sample: Sample, noise: dict[str, np.ndarray], camera: str, *, seed: int
) -> np.ndarray:
    """The frames (F, H, W, 3) uint8 that the policy expects, jointly with the plan that starts from `noise`."""
    prediction = policy.predict(
        collate([sample]),
        mode=policy.imagines_in,
        noise=_stacked([noise]),
        generator=torch.Generator().manual_seed(seed),
        guidance=cfg.guidance or None,
        sampler=cfg.sampler or None,
        steps=cfg.steps or None,
    )
    return policy.decode(prediction.future_latent[camera][0]).cpu().numpy()


def _stacked(noise: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    return {field: torch.from_numpy(np.stack([one[field] for one in noise])) for field in noise[0]}
