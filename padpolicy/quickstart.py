"""`padpolicy quickstart`: the shipped policy acts, a small one is trained from scratch and acts too; a page shows both.

Everything is kept in `out`: index.html and results.json, and under `work/` the demonstrations, the action-free videos
and the training run, each as the command that is printed would have made it.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from padpolicy import config
from padpolicy.config import CollectConfig, ConfigError, EvalConfig, QuickstartConfig, TrainConfig

TASK = "open_drawer"  # the small policy's only task: learned in minutes, whatever its first weights are
WATCHED = ["close_drawer", "press_red_button", "touch_red_cube"]  # what the action-free videos show
DEMONSTRATIONS = 100
VIDEOS_PER_TASK = 10
EPISODES = 20  # in which the small policy is evaluated
FILMS = 6
TRIAL_STEPS = 20  # to find out how fast this machine trains
MARK = ".padpolicy-quickstart"  # work/ holds it: the folder is quickstart's own and may be emptied


def quickstart(cfg: QuickstartConfig) -> dict[str, Any]:
    """Runs all of it. Returns what results.json holds: the shipped policy on top, the small one under `trained`.

    Raises:  ConfigError if `out` holds something else than an earlier quickstart.
    """
    from padpolicy.evaluation import report

    out, began = Path(cfg.out), time.monotonic()
    work = out / "work"
    if out.exists() and any(out.iterdir()) and not (work / MARK).is_file():
        raise ConfigError(
            f"out={out} is not empty and not an earlier quickstart (no work/{MARK}). Choose another folder."
        )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / MARK).touch()

    _say(f"1/4  The shipped policy, {cfg.episodes_per_task} new scene(s) for each of its tasks")
    shipped = _evaluate(cfg, "tabletop", work / "shipped", cfg.tasks, cfg.episodes_per_task, films=12)

    _say(f"2/4  Scripted experts show the robot how to {TASK.replace('_', ' ')}; others are only filmed")
    _collect(work / "demonstrations.zarr", [TASK], DEMONSTRATIONS, cfg, actions=True)
    _collect(work / "videos.zarr", WATCHED, VIDEOS_PER_TASK, cfg, actions=False)

    steps_or_time = f"{cfg.train_steps} steps" if cfg.train_steps else f"about {cfg.train_seconds} s"
    _say(f"3/4  A small policy learns from both, from scratch ({steps_or_time})")
    training = _train(cfg, work)

    _say(f"4/4  It tries {EPISODES} scenes that it has never seen")
    trained = _evaluate(cfg, str(work / "run"), work / "trained", [TASK], EPISODES, films=FILMS)
    trained.results["training"] = training
    trained.losses = _losses(work / "run")

    results = report.write_report(out, shipped, trained)
    for name, found in (("the shipped policy", results), ("the one trained here", results["trained"])):
        low, high = found["ci95"]
        _say(f"     {name}: {found['success_rate']:.0%} of {found['episodes']} episodes ({low:.0%} to {high:.0%})")
    _say(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes. Open {(out / 'index.html').resolve()}")
    return results


def _say(words: str) -> None:
    print(words, flush=True)


def _evaluate(cfg: QuickstartConfig, checkpoint: str, out: Path, tasks: list[str], episodes: int, films: int) -> Any:
    """An `Evaluation`, nothing written yet: both policies go onto one page."""
    from padpolicy.evaluation.run import run_evaluation
    from padpolicy.progress import counted_bar

    settings: EvalConfig = config.load("eval", ["checkpoint=set-below", "out=set-below", "env=tabletop"])
    settings.checkpoint, settings.out = checkpoint, str(out)
    settings.tasks, settings.episodes_per_task, settings.videos = tasks, episodes, films
    settings.seed, settings.threads = cfg.seed, cfg.threads
    with counted_bar("episodes, then films") as advance:
        return run_evaluation(settings, progress=lambda done, total, result: advance(done, total, result.instruction))


def _collect(path: Path, tasks: list[str], episodes: int, cfg: QuickstartConfig, actions: bool) -> None:
    from padpolicy.data.collect import collect
    from padpolicy.progress import counted_bar

    settings: CollectConfig = config.load("collect", ["out=set-below", "env=tabletop"])
    settings.out = str(path)
    settings.tasks, settings.episodes_per_task, settings.actions = tasks, episodes, actions
    settings.seed = cfg.seed  # of other scenes: collect never takes those of an evaluation
    with counted_bar("episodes, then films") as advance:
        collect(settings, advance)


def _train(cfg: QuickstartConfig, work: Path) -> dict[str, Any]:
    """Trains into work/run. Returns what the page says about it."""
    demonstrations, videos = work / "demonstrations.zarr", work / "videos.zarr"
    steps = cfg.train_steps
    if not steps:  # the learning rate falls to the last step, so how many fit the time has to be known before
        speed = _run_training(cfg, work / "trial", demonstrations, videos, TRIAL_STEPS)["steps_per_s"]
        shutil.rmtree(work / "trial")
        steps = max(TRIAL_STEPS, round(cfg.train_seconds * speed))
    found = _run_training(cfg, work / "run", demonstrations, videos, steps)
    return {
        "about": (
            f"Trained from scratch in {found['seconds']:.0f} seconds on one task, from {DEMONSTRATIONS} demonstrations "
            f"and {len(WATCHED) * VIDEOS_PER_TASK} videos without actions that show other things being done."
        ),
        "steps": steps,
        "samples per second": round(found["samples_per_s"]),
        "demonstrations": DEMONSTRATIONS,
        "videos": len(WATCHED) * VIDEOS_PER_TASK,
        "parameters": found["parameters"],
    }


def _run_training(cfg: QuickstartConfig, out: Path, demonstrations: Path, videos: Path, steps: int) -> dict[str, Any]:
    from padpolicy.progress import bar
    from padpolicy.training.loop import train

    settings: TrainConfig = config.load("train", ["experiment=quickstart", "out=set-below", "data.path=set-below"])
    settings.out, settings.data.path, settings.data.videos = str(out), str(demonstrations), [str(videos)]
    settings.training.steps, settings.training.threads = steps, cfg.threads
    settings.training.max_seconds = 0 if cfg.train_steps else 1.5 * cfg.train_seconds  # should the guess be wrong
    times: list[float] = []
    with bar("training", steps) as advance:

        def progress(step: int, numbers: dict[str, float]) -> None:
            times.append(time.monotonic())
            advance(step, f"loss {numbers['loss']:.3g}" if "loss" in numbers else "")

        train(settings, progress)
    half = len(times) // 2  # the first steps are slower: buffers, caches
    speed = (len(times) - 1 - half) / max(times[-1] - times[half], 1e-9)
    return {
        "steps_per_s": speed,
        "samples_per_s": speed * settings.training.batch_size,
        "seconds": times[-1] - times[0],
        "parameters": _count_parameters(out),
    }


def _count_parameters(run: Path) -> str:
    import math

    from safetensors import safe_open

    from padpolicy.saving import find_policy

    with safe_open(find_policy(run) / "model.safetensors", "numpy") as file:
        total = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    return f"{total / 1e6:.1f} million"


def _losses(run: Path) -> list[tuple[float, float]]:
    """(step, loss) of the run's log."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
