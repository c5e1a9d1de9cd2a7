"""How well a monitor notices what goes wrong, and whether stopping to look again helps.

    python scripts/monitor_study.py record calibrate report replan --out runs/monitor

`record` runs clean and disturbed episodes, once. `calibrate` writes monitor.json, to be put beside the policy (`record
calibrate --per-kind 0 --held-out 0` is all that a new policy needs; with `--calibrate 40` a task, thresholds are set
for single tasks too). `report` writes report.json: how often and how soon each kind of disturbance is noticed, and how
often something was noticed that did not happen. `replan` writes replan-N.json (N: `--exec-steps`): success with and
without stopping to look again, on the same disturbed episodes.

Three sets of clean episodes of the tabletop never share a seed: what tracks the arm is fitted on the first, the
threshold is set on the second, false alarms are counted on the third. Everything is judged as on a robot: each
observation is handed to a `Monitor` with its time and the commanded pose, and nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from padpolicy_envs import TASKS
from padpolicy_envs.disturb import KINDS

from padpolicy.config import EnvConfig, EvalConfig, MonitorConfig
from padpolicy.control.chunking import ChunkQueue, ObservationBuffer
from padpolicy.control.monitor import (
    CHANNELS,
    FILE,
    Moment,
    Monitor,
    Score,
    Thresholds,
    Tracking,
    policy_fingerprint,
    surprise,
)
from padpolicy.control.robot import Observation
from padpolicy.evaluation.metrics import wilson
from padpolicy.evaluation.rollout import EpisodeSpec, plan_noise, predict_actions
from padpolicy.evaluation.vector import Act, Reset, Step, VectorEnv
from padpolicy.policy import Policy
from padpolicy.provenance import commit
from padpolicy.saving import load_policy

TRAINING = [name for name, task in TASKS.items() if not task.held_out]
ABOUT_AN_OBJECT = [name for name in TRAINING if TASKS[name].family in ("reach", "lift", "place", "stack")]
CLEAN = {"fit": 300_000, "calibrate": 310_000, "held_out": 320_000}  # set -> its first seed
DISTURBED = 340_000
QUICK = ("reach", "press")  # families whose episodes are short: what goes wrong does so earlier


@dataclass
class Episode:
    """What a robot would have recorded: n observations, the first at the reset."""

    spec: EpisodeSpec
    kind: str = ""
    at: int = 0
    instruction: str = ""
    success: bool = False
    done: bool = False
    disturbed_at: int = -1  # actions taken when it happened; so observation disturbed_at + 1 is the first to show it
    fields: list[dict[str, np.ndarray]] = field(default_factory=list)
    commanded: list[np.ndarray] = field(default_factory=list)
    alarms: list[float] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        return 0.1 * (len(self.fields) - 1)

    def fold(self, step: Step) -> Observation:
        self.instruction = self.instruction or str(step.observation["instruction"])
        self.fields.append({k: v for k, v in step.observation.items() if k != "instruction" and k != "depth_wrist"})
        self.commanded.append(np.array(step.info["commanded_pose"]))
        self.success |= step.success
        self.done = step.terminated or step.truncated
        self.disturbed_at = step.info["disturbed_at"]
        return Observation(self.now_s, self.fields[-1], self.commanded[-1])

    def observations(self) -> list[Observation]:
        return [Observation(0.1 * i, f, c) for i, (f, c) in enumerate(zip(self.fields, self.commanded, strict=True))]

    @property
    def file(self) -> str:
        return f"{self.kind or 'clean'}-{self.spec.task}-{self.spec.seed}.npz"

    @staticmethod
    def about(path: Path) -> dict[str, Any]:
        with np.load(path) as file:
            return json.loads(str(file["about"]))

    def save(self, folder: Path) -> None:
        about = {
            "task": self.spec.task,
            "seed": self.spec.seed,
            "kind": self.kind,
            "at": self.at,
            "instruction": self.instruction,
            "success": bool(self.success),
            "disturbed_at": self.disturbed_at,
        }
        arrays = {name: np.stack([frame[name] for frame in self.fields]) for name in self.fields[0]}
        np.savez_compressed(folder / self.file, about=json.dumps(about), commanded=np.stack(self.commanded), **arrays)

    @classmethod
    def load(cls, path: Path) -> Episode:
        with np.load(path) as file:
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in file.files if name not in ("about", "commanded")}
            commanded = list(file["commanded"])
        fields = [{name: array[i] for name, array in arrays.items()} for i in range(len(commanded))]
        spec = EpisodeSpec(about.pop("task"), about.pop("seed"))
        return cls(spec, fields=fields, commanded=commanded, **about)


def clean(name: str, per_task: int) -> list[Episode]:
    """The undisturbed episodes of a set."""
    return [Episode(EpisodeSpec(task, CLEAN[name] + i)) for i in range(per_task) for task in TRAINING]


def disturbed(kind: str, number: int) -> Episode:
    """Episode `number` of a kind: a function of both."""
    names = ABOUT_AN_OBJECT if kind in ("moved", "swapped") else TRAINING
    task = names[number % len(names)]
    low, high = (2, 7) if TASKS[task].family in QUICK else (4, 16)
    at = int(np.random.default_rng([KINDS.index(kind), number]).integers(low, high))
    return Episode(EpisodeSpec(task, DISTURBED + 1000 * KINDS.index(kind) + number), kind, at)


Watch = Callable[[Episode, Observation], bool]  # episode, its newest observation -> stop and look again?


def run(
    policy: Policy,
    envs: VectorEnv,
    cfg: EvalConfig,
    episodes: Sequence[Episode],
    done: Callable[[Episode], None],
    watch: Watch | None = None,
    hold_steps: int = 0,
) -> None:
    """Runs the episodes as an evaluation does. Where `watch` says so, an episode drops its plan and holds first."""
    spec, low, high = policy.spec, envs.description.action_low, envs.description.action_high
    waiting = deque(episodes)
    running: dict[int, Any] = {}
    while waiting or running:
        fresh = [slot for slot in range(envs.num_envs) if slot not in running][: len(waiting)]
        resets = {}
        for slot in fresh:
            episode = waiting.popleft()
            running[slot] = (episode, ObservationBuffer.of(spec), ChunkQueue(), [0], [0])
            wish = {"kind": episode.kind, "at": episode.at, "seed": episode.spec.seed} if episode.kind else {}
            resets[slot] = Reset(episode.spec.seed, {**episode.spec.options(), "disturb": wish})
        for slot, (first,) in (envs.run(dict(resets)) if resets else {}).items():
            episode, buffer, *_ = running[slot]
            observation = episode.fold(first)
            buffer.push(observation.time_s, observation.fields)
            if watch is not None:
                watch(episode, observation)
        planned = {slot: r for slot, r in running.items() if not r[4][0]}
        if planned:
            samples = [r[1].sample(spec, r[0].instruction, spec.robot) for r in planned.values()]
            noise = [plan_noise(policy, r[0].spec, r[3][0]) for r in planned.values()]
            for (episode, _, queue, plan, _), chunk in zip(
                planned.values(), predict_actions(policy, cfg, samples, noise), strict=True
            ):
                queue.put(episode.now_s, spec.dt_s, chunk)
                plan[0] += 1
        commands = {}
        for slot, (episode, _, queue, _, hold) in running.items():
            if hold[0]:
                still = np.zeros((min(hold[0], cfg.exec_steps), spec.action_dim), np.float32)
                still[:, -1] = episode.commanded[-1][-1]
                hold[0] -= len(still)
                commands[slot] = Act(still)
            else:
                due = [queue.at(episode.now_s + i * spec.dt_s) for i in range(cfg.exec_steps)]
                commands[slot] = Act(np.clip(np.array([a for a in due if a is not None]), low, high))
        for slot, steps in envs.run(dict(commands)).items():
            episode, buffer, queue, _, hold = running[slot]
            for step in steps:
                observation = episode.fold(step)
                buffer.push(observation.time_s, observation.fields)
                if watch is not None and watch(episode, observation) and not hold[0]:
                    queue.clear()
                    hold[0] = hold_steps
            if episode.done:
                done(episode)
                del running[slot]


def settings(args: argparse.Namespace) -> EvalConfig:
    env = EnvConfig(id="padpolicy_envs.disturb:padpolicy/DisturbedTabletop-v0", robot="tabletop")
    return EvalConfig(
        checkpoint=args.checkpoint, out="", env=env, num_envs=args.num_envs, env_workers=2, exec_steps=args.exec_steps
    )


def record(args: argparse.Namespace, policy: Policy) -> None:
    """Runs what is not on disk yet: so many clean episodes a task, and disturbed ones until so many were disturbed."""
    cfg = settings(args)

    def left(folder: Path, episodes: list[Episode]) -> list[Episode]:
        folder.mkdir(parents=True, exist_ok=True)
        return [e for e in episodes if not (folder / e.file).exists()]

    with VectorEnv(cfg.env, cfg.num_envs, cfg.env_workers) as envs:
        for name in CLEAN:
            folder = args.out / name
            run(policy, envs, cfg, left(folder, clean(name, getattr(args, name))), lambda e, f=folder: e.save(f))
            print(name, flush=True)
        for kind in KINDS:
            folder, number = args.out / kind, 0
            while happened(folder) < args.per_kind:
                some = [disturbed(kind, number + i) for i in range(cfg.num_envs)]
                run(policy, envs, cfg, left(folder, some), lambda e, f=folder: e.save(f))
                number += len(some)
            print(kind, number, flush=True)


def happened(folder: Path) -> int:
    """How many recorded episodes of a folder were disturbed before they ended."""
    return sum(Episode.about(path)["disturbed_at"] >= 0 for path in folder.glob("*.npz"))


def judged(policy: Policy, monitor: Monitor, episode: Episode) -> list[Score]:
    """All scores of a recorded episode, as a robot would have had them; the network answers once for all."""

    def moments() -> Iterator[Moment]:
        monitor.reset(episode.spec.task, policy.spec.robot)
        for observation in episode.observations():
            monitor.observe(observation)
            moment = monitor.take()
            if moment is not None:
                yield moment

    if not (every := list(moments())):
        return []
    surprises, errors = surprise(policy, monitor.cfg, every)
    return [monitor.score(m, s, e) for m, s, e in zip(moments(), surprises, errors, strict=True)]


def raw_scores(args: argparse.Namespace, policy: Policy, tracking: Tracking, name: str) -> list[dict[str, Any]]:
    """Per recorded episode of a set (disturbed, where it is one of disturbed ones) its raw scores, kept on disk."""
    identity = policy_fingerprint(policy)
    kept = args.out / f"scores-{identity}-{name}.json"
    known = {e["file"]: e for e in json.loads(kept.read_text())} if kept.exists() else {}
    monitor = Monitor(policy, MonitorConfig(), Thresholds.unit(MonitorConfig(), tracking, identity))
    rows = []
    for path in sorted((args.out / name).glob("*.npz")):
        if name in KINDS and Episode.about(path)["disturbed_at"] < 0:
            continue  # it ended before anything happened
        if path.name not in known:
            episode = Episode.load(path)
            scores = [{"time_s": score.time_s, **score.parts} for score in judged(policy, monitor, episode)]
            known[path.name] = {
                **Episode.about(path),
                "file": path.name,
                "steps": len(episode.fields) - 1,
                "scores": scores,
            }
        rows.append(known[path.name])
    kept.write_text(json.dumps(rows))
    return rows


def tracking_of(folder: Path) -> Tracking:
    """Fitted on the successful episodes of a folder."""
    episodes = [e for e in map(Episode.load, sorted(folder.glob("*.npz"))) if e.success]
    commanded = np.concatenate([e.commanded for e in episodes])
    return Tracking.fit(commanded, np.concatenate([[f["proprio"] for f in e.fields] for e in episodes]))


def calibrate(args: argparse.Namespace, policy: Policy) -> None:
    """Writes monitor.json."""
    tracking = tracking_of(args.out / "fit")
    rows = [row for row in raw_scores(args, policy, tracking, "calibrate") if row["success"]]
    maxima: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        maxima.setdefault(row["task"], []).append(
            {channel: max((score[channel] for score in row["scores"]), default=0.0) for channel in CHANNELS}
        )
    seeds = sorted({row["seed"] for row in rows})
    about = {"tracking": tracking, "policy": policy_fingerprint(policy), "seeds": seeds}
    thresholds = Thresholds.fit(maxima, MonitorConfig(), **about)
    thresholds.save(args.out / FILE)
    print(f"{args.out / FILE}: {len(rows)} episodes, {thresholds.of('')}")


def report(args: argparse.Namespace, policy: Policy) -> None:
    """Writes report.json."""
    thresholds = Thresholds.load(args.out / FILE)
    assert thresholds.tracking is not None  # calibrate fits one

    def ratio(
        row: dict[str, Any], since_s: float = 0.0, channels: Sequence[str] = CHANNELS
    ) -> list[tuple[float, float]]:
        limits = thresholds.of(row["task"])
        late = [score for score in row["scores"] if score["time_s"] >= since_s - 1e-6]
        return [(score["time_s"], max(score[c] / limits[c] for c in channels)) for score in late]

    def alarmed(row: dict[str, Any], *args: Any) -> bool:
        return any(value > 1 for _, value in ratio(row, *args))

    def share(flags: Sequence[bool]) -> dict[str, Any]:
        low, high = wilson(sum(flags), len(flags))
        return {"n": len(flags), "count": sum(flags), "share": sum(flags) / max(len(flags), 1), "wilson": [low, high]}

    clean_rows = raw_scores(args, policy, thresholds.tracking, "held_out")
    good = [row for row in clean_rows if row["success"]]
    result: dict[str, Any] = {
        "commit": commit(),
        "policy": thresholds.policy,
        "calibration_episodes": thresholds.counts[""],
        "false_alarms": share([alarmed(row) for row in good]),
        "false_alarms_with_failures": share([alarmed(row) for row in clean_rows]),
        "false_alarms_by_channel": {c: share([alarmed(row, 0.0, [c]) for row in good]) for c in CHANNELS},
        "seeds": {"held_out": CLEAN["held_out"], "disturbed": DISTURBED},
        "kinds": {},
    }
    for kind in KINDS:
        rows = raw_scores(args, policy, thresholds.tracking, kind)
        onsets = [0.1 * row["disturbed_at"] for row in rows]  # the first observation that can show it is 0.1 s later
        delays = [
            min(t for t, value in ratio(row, onset + 0.1) if value > 1) - onset
            for row, onset in zip(rows, onsets, strict=True)
            if alarmed(row, onset + 0.1)
        ]
        disturbed_max = [
            max((v for _, v in ratio(row, onset + 0.1)), default=0.0) for row, onset in zip(rows, onsets, strict=True)
        ]
        clean_max = [  # each clean episode from the same moment on as one of the disturbed ones
            max(v for _, v in late) for i, row in enumerate(good) if (late := ratio(row, onsets[i % len(onsets)] + 0.1))
        ]
        result["kinds"][kind] = {
            "detected": share([alarmed(row, onset + 0.1) for row, onset in zip(rows, onsets, strict=True)]),
            "by_channel": {
                c: share([alarmed(row, onset + 0.1, [c]) for row, onset in zip(rows, onsets, strict=True)])
                for c in CHANNELS
            },
            "alarm_before": share(
                [any(v > 1 for t, v in ratio(r) if t <= o) for r, o in zip(rows, onsets, strict=True)]
            ),
            "auroc": auroc(disturbed_max, clean_max),
            "delay_s": {f"p{q}": float(np.percentile(delays, q)) for q in (50, 90)} if delays else {},
            "success": share([row["success"] for row in rows]),
        }
    (args.out / "report.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def auroc(above: Sequence[float], below: Sequence[float]) -> float:
    """The chance that one of `above` is larger than one of `below`; ties count half."""
    a, b = np.array(above)[:, None], np.array(below)[None]
    return float(((a > b) + 0.5 * (a == b)).mean())


def replan(args: argparse.Namespace, policy: Policy) -> None:
    """Runs the disturbed episodes twice, with and without the monitor, and writes replan-N.json."""
    cfg, thresholds, result = settings(args), Thresholds.load(args.out / FILE), {}
    with VectorEnv(cfg.env, cfg.num_envs, cfg.env_workers) as envs:
        for kind in ("moved", "swapped", "blocked"):
            numbers = [Episode.about(p)["seed"] for p in sorted((args.out / kind).glob("*.npz"))]
            numbers = [seed - DISTURBED - 1000 * KINDS.index(kind) for seed in numbers]
            without: dict[str, Episode] = {}
            if args.exec_steps == 2:  # as recorded
                without = {path.name: Episode.load(path) for path in (args.out / kind).glob("*.npz")}
            else:
                run(
                    policy, envs, cfg, [disturbed(kind, n) for n in numbers], lambda e, w=without: w.update({e.file: e})
                )
            affected = [n for n in numbers if without[disturbed(kind, n).file].disturbed_at >= 0]
            monitors: dict[str, Monitor] = {}

            def watch(episode: Episode, observation: Observation, monitors: dict[str, Monitor] = monitors) -> bool:
                if episode.file not in monitors:
                    monitors[episode.file] = Monitor(policy, thresholds.config, thresholds)
                    monitors[episode.file].reset(episode.spec.task)
                monitors[episode.file].observe(observation)
                score = monitors[episode.file].judge()
                if score is None or not score.alarm:
                    return False
                episode.alarms.append(score.time_s)
                monitors[episode.file].reset(episode.spec.task)  # what was expected before is known to be wrong
                return True

            watched: dict[str, Episode] = {}
            todo = [disturbed(kind, n) for n in affected]
            run(policy, envs, cfg, todo, lambda e, w=watched: w.update({e.file: e}), watch, args.hold_steps)
            pairs = [(without[name].success, episode.success) for name, episode in watched.items()]
            better, worse = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
            result[kind] = {
                "n": len(pairs),
                "success_without": sum(a for a, _ in pairs),
                "success_with": sum(b for _, b in pairs),
                "wilson_without": wilson(sum(a for a, _ in pairs), len(pairs)),
                "wilson_with": wilson(sum(b for _, b in pairs), len(pairs)),
                "only_with": better,
                "only_without": worse,
                "alarms": sum(len(e.alarms) for e in watched.values()),
                "episodes_with_alarm": sum(bool(e.alarms) for e in watched.values()),
            }
            print(kind, result[kind], flush=True)
    about = {
        "commit": commit(),
        "policy": thresholds.policy,
        "exec_steps": args.exec_steps,
        "hold_steps": args.hold_steps,
    }
    path = args.out / f"replan-{args.exec_steps}.json"
    path.write_text(json.dumps({**about, "kinds": result}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = {"record": record, "calibrate": calibrate, "report": report, "replan": replan}
    parser.add_argument("what", choices=list(verbs), nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", default="tabletop")
    parser.add_argument("--exec-steps", type=int, default=2)
    parser.add_argument("--hold-steps", type=int, default=4, help="after an alarm, before it plans again")
    parser.add_argument("--num-envs", type=int, default=24)
    parser.add_argument("--per-kind", type=int, default=44, help="episodes that are disturbed before they end")
    for name, n in (("fit", 2), ("calibrate", 6), ("held_out", 5)):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=n, help="clean episodes per task")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    policy = load_policy(args.checkpoint)
    for what in args.what:
        verbs[what](args, policy)


if __name__ == "__main__":
    main()
