"""An evaluation from settings to results: load, run, measure, write."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import padpolicy
from padpolicy.config import EvalConfig
from padpolicy.control.chunking import ObservationBuffer
from padpolicy.data.letterbox import fitted
from padpolicy.device import pick_device
from padpolicy.evaluation import episodes as lists
from padpolicy.evaluation import floors
from padpolicy.evaluation.metrics import summarise_ms
from padpolicy.evaluation.report import Evaluation, FilmCard, film_card, mean_rate, rate, rates, write_report
from padpolicy.evaluation.rollout import (
    EpisodeResult,
    EpisodeSpec,
    Progress,
    check_fit,
    needed_cameras,
    plan_noise,
    predict_actions,
    run_episodes,
)
from padpolicy.evaluation.vector import Reset, VectorEnv
from padpolicy.progress import counted_bar
from padpolicy.provenance import commit

if TYPE_CHECKING:
    from padpolicy.policy import Policy

WARM_UP, LATENCY_PLANS = 2, 30
FILMED_AT_ONCE = 4  # episodes whose every picture is in memory
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "diffusers", "open_clip_torch", "zarr")


def evaluate(cfg: EvalConfig, policy: Policy | None = None) -> dict[str, Any]:
    """`run_evaluation` with a progress bar; writes results.json, videos/ and index.html into `cfg.out`.

    Returns:  what results.json holds.
    """
    with counted_bar("episodes, then films") as advance:

        def tick(done: int, total: int, result: EpisodeResult) -> None:
            advance(done, total, f"{result.instruction}: {'done' if result.success else 'not done'}")

        evaluation = run_evaluation(cfg, policy, tick)
    return write_report(cfg.out, evaluation)


def run_evaluation(cfg: EvalConfig, policy: Policy | None = None, progress: Progress | None = None) -> Evaluation:
    """Runs an evaluation without writing anything.

    Args:    policy: evaluated instead of loading `cfg.checkpoint`.
             progress: called after every episode with (done, total, its result). The episodes that are filmed are run
              twice, and counted so here, because only then is it known which are worth a look.
    Raises:  ValueError where policy and environment do not fit, or a setting cannot be used.
    """
    started = time.perf_counter()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    if policy is None:
        from padpolicy.saving import load_policy

        policy = load_policy(cfg.checkpoint, pick_device(cfg.device))
    acting, open_loop = policy, None
    if cfg.floor == "no_image":
        acting = floors.without_images(policy)
    elif cfg.floor == "no_text":
        acting = floors.without_text(policy)
    elif cfg.floor == "replay":
        if not cfg.demonstrations:
            raise ValueError("floor=replay plays the actions of demonstrations: give demonstrations=STORE.")
        if cfg.execution == "waypoint":
            raise ValueError("floor=replay plays actions and has no poses to drive to: use execution=chunk.")
        open_loop = floors.replay(cfg.demonstrations, cfg.seed)
    elif cfg.floor:
        raise ValueError(f"floor={cfg.floor!r}: expected no_image, no_text or replay.")

    with VectorEnv(needed_cameras(policy.spec, cfg).env, cfg.num_envs, cfg.env_workers) as envs:
        check_fit(policy.spec, envs.description, cfg)
        episodes = lists.episode_list(cfg, envs.description)
        switched = lists.other_instructions(envs, episodes) if cfg.other_instruction else []
        if cfg.other_instruction and not switched:
            raise ValueError(
                f"other_instruction=true: no scene of {cfg.env.id} admits another instruction than its own."
            )
        # One run over both lists, so that no environment waits at the end of the first.
        both = [*episodes, *switched]
        total = len(both) + min(cfg.videos, len(episodes))
        done = run_episodes(acting, envs, cfg, both, open_loop=open_loop, progress=_part(progress, 0, total))
        latency = {} if open_loop is not None else measure_latency(acting, envs, cfg, episodes[0])
        counted = [done[i] for i in lists.to_film(done[: len(episodes)], cfg.videos)]
        looks = dataclasses.replace(cfg, imagine=cfg.imagine and open_loop is None)
        dt_s = envs.description.dt_s or policy.spec.dt_s
        cards = _film(acting, envs, looks, counted, dt_s, _part(progress, len(both), total))
        protocol = lists.protocol_of(cfg, envs.description)

    results = _results(cfg, done[: len(episodes)], latency)
    results["protocol"] = protocol
    results["episode_list_sha256"] = lists.checksum(episodes)
    if switched:
        results["other_instruction"] = {
            "new_goal": rate([r.success for r in done[len(episodes) :]]),
            "old_goal": rate([r.old_goal for r in done[len(episodes) :]]),
        }
    if cfg.imagination:
        from padpolicy.evaluation.imagination import imagination_report

        results["imagination"] = imagination_report(
            policy,
            cfg.imagination,
            samples=cfg.imagination_samples,
            seed=cfg.seed,
            steps=cfg.steps or None,
            sampler=cfg.sampler or None,
            guidance=cfg.guidance or None,
        )
    results["dt_s"] = dt_s
    results["future_offsets_s"] = list(policy.spec.future_offsets_s)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return Evaluation(results, cards)


def _film(
    policy: Policy,
    envs: VectorEnv,
    cfg: EvalConfig,
    counted: Sequence[EpisodeResult],
    dt_s: float,
    progress: Progress | None,
) -> list[FilmCard]:
    """Films episodes that were run before, few at a time, by executing the same actions in the same scenes.

    Planned anew, they could end otherwise: how a plan is rounded depends on the others in its batch.
    """
    cards: list[FilmCard] = []
    actions = {result.spec: result.actions for result in counted}
    for start in range(0, len(counted), FILMED_AT_ONCE):
        part = counted[start : start + FILMED_AT_ONCE]
        filmed = run_episodes(
            policy,
            envs,
            cfg,
            [result.spec for result in part],
            films=range(len(part)),
            open_loop=lambda spec, _: actions[spec],
            progress=_part(progress, start, len(counted)),
        )
        for before, result in zip(part, filmed, strict=True):
            cards.append(film_card(result, dt_s, policy.spec.future_offsets_s, counted=before.success))
    return cards


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """`progress` for a part of the work, begun when `before` of `total` episodes were done."""
    return None if progress is None else lambda done, _, result: progress(before + done, total, result)


def _results(cfg: EvalConfig, done: Sequence[EpisodeResult], latency: dict[str, Any]) -> dict[str, Any]:
    tasks, families = rates(done, "task"), rates(done, "family")
    return {
        **rate([r.success for r in done]),
        "mean_by_task": mean_rate(tasks),
        "mean_by_family": mean_rate(families),
        "seed": cfg.seed,
        "tasks": tasks,
        "families": families,
        "family_of": {r.spec.task: r.family for r in done},
        "outcomes": outcomes(done),
        "latency_ms": {"p50": None, "p95": None, **latency},
        "batched_plan_ms": summarise_ms([ms for r in done for ms in r.plan_ms]),
        "ended": {
            "terminated": sum(r.terminated for r in done),
            "truncated": sum(r.truncated for r in done),
            "mean_steps": round(float(np.mean([r.steps for r in done])), 1) if done else 0,
        },
        "checkpoint": cfg.checkpoint,
        "commit": commit(),
        "floor": cfg.floor,
        "paraphrase": cfg.paraphrase,
        "environment": cfg.env.id,
        "settings": dataclasses.asdict(cfg),
        "command": command(),
        "versions": versions(),
    }


def outcomes(done: Sequence[EpisodeResult]) -> dict[str, list[int]]:
    """Task -> 1 or 0 for each of its episodes, in the order of their scenes: for paired comparisons of two runs."""
    found: dict[str, list[int]] = {}
    for result in done:
        found.setdefault(result.spec.task, []).append(int(result.success))
    return found


def measure_latency(policy: Policy, envs: VectorEnv, cfg: EvalConfig, episode: EpisodeSpec) -> dict[str, Any]:
    """Milliseconds from one observation to its plan, nothing else running: {p50, p95, mean, max, n}."""
    (first,) = envs.run({0: Reset(episode.seed, episode.options())})[0]
    buffer, times = ObservationBuffer.of(policy.spec), []
    buffer.push(0.0, fitted(first.observation, policy.spec.image_size))
    sample = buffer.sample(policy.spec, str(first.observation.get("instruction", "")), policy.spec.robot)
    for plan in range(WARM_UP + LATENCY_PLANS):
        noise = [plan_noise(policy, episode, plan, cfg.temperature)]
        start = time.perf_counter()
        predict_actions(policy, cfg, [sample], noise)
        times.append((time.perf_counter() - start) * 1e3)
    return summarise_ms(times[WARM_UP:])


def command() -> str:
    """The command line that started this process."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what the numbers may depend on."""
    found = {"padpolicy": padpolicy.__version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
