"""Ablations: what a part is worth, by training the same policy with and without it.

    python scripts/ablate.py scripts/ablation/futures.yaml --out runs/ablation/futures [--threads 1] [--only ARM ...]
        [--seeds 0 1 ...] [--table]

A study is one file (see `Study`). Its cells, one for every seed and arm, are trained for the same number of optimiser
steps and evaluated on the same scenes, each by the command that `padpolicy` has for it in a process of its own; all
arms of a seed come before the next seed. The same command again goes on after the last thing that was finished. A cell
that was begun under other settings than the file has now is refused. What stands in OUT:

    data/NAME.zarr               what was collected; data/NAME.json: the settings, written when it is whole
    ARM-SEED/cell.json           the cell's settings and commands, written before it is begun
    ARM-SEED/run/                its training
    ARM-SEED/results.json        its evaluation, and the page and videos beside it
    table.md, results.json       every arm and its paired difference to the base; how to read it: docs/ablations.md

--table only writes the last two, from the cells that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy import config
from padpolicy.config import MISSING, ConfigError
from padpolicy.evaluation.episodes import protocol_differences
from padpolicy.evaluation.metrics import paired_difference, wilson


@dataclass
class Arm:
    """One variant."""

    why: str = MISSING  # one line: what it leaves out or changes
    train: list[str] = field(default_factory=list)  # overrides of `padpolicy train`, on top of `common`
    evaluate: list[str] = field(default_factory=list)  # overrides of `padpolicy eval`, on top of the study's
    init: str = ""  # arm from whose policy, of the same seed, training starts
    base: str = ""  # arm that it is compared with, instead of the study's
    policy: str = ""  # arm whose policy is taken instead of training one: only the evaluation differs


@dataclass
class Study:
    """A study file. In every override `{data}` is the folder of what was collected."""

    updates: int = MISSING  # optimiser steps of every training
    seeds: list[int] = MISSING  # of the trainings; one training per arm and seed
    base: str = MISSING  # the arm that the others are compared with
    arms: dict[str, Arm] = MISSING
    common: list[str] = field(default_factory=list)  # overrides of `padpolicy train`, for all arms
    evaluate: list[str] = field(default_factory=list)  # overrides of `padpolicy eval`, for all arms
    data: dict[str, list[str]] = field(default_factory=dict)  # store -> overrides of `padpolicy collect`


@dataclass(frozen=True)
class Cell:
    """One arm under one seed, and where it stands."""

    arm: str
    seed: int
    out: Path

    @property
    def folder(self) -> Path:
        return self.out / f"{self.arm}-{self.seed}"

    @property
    def record(self) -> Path:
        return self.folder / "cell.json"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"


class Runner:
    """A study in a folder: which commands its cells are, and which of them are done."""

    def __init__(self, study: Study, out: Path, threads: int):
        self.study, self.out, self.threads = study, out, threads

    def collect_command(self, name: str) -> list[str]:
        return ["collect", *self.study.data[name], f"out={self.out / 'data' / name}.zarr"]

    def train_command(self, cell: Cell) -> list[str]:
        arm = self.study.arms[cell.arm]
        start = [f"training.init={self.run_of(arm.init, cell.seed)}"] if arm.init else []
        fixed = [f"training.steps={self.study.updates}", f"seed={cell.seed}", f"out={self.run_of(cell.arm, cell.seed)}"]
        return ["train", *self._filled(self.study.common + arm.train), *start, *fixed, *self._threads("training.")]

    def eval_command(self, cell: Cell) -> list[str]:
        arm = self.study.arms[cell.arm]
        fixed = [f"checkpoint={self.run_of(arm.policy or cell.arm, cell.seed)}", f"out={cell.folder}"]
        return ["eval", *self._filled(self.study.evaluate + arm.evaluate), *fixed, *self._threads("")]

    def run_of(self, arm: str, seed: int) -> Path:
        """Where an arm's training stands."""
        return Cell(arm, seed, self.out).folder / "run"

    def _filled(self, overrides: list[str]) -> list[str]:
        return [override.replace("{data}", str(self.out / "data")) for override in overrides]

    def _threads(self, prefix: str) -> list[str]:
        return [f"{prefix}threads={self.threads}"] if self.threads else []

    def asked(self, cell: Cell) -> dict[str, Any]:
        """All that the cell's numbers depend on, but for the seed: its settings and those of arms it builds on."""
        arm = self.study.arms[cell.arm]
        evaluate = self.study.evaluate + arm.evaluate
        if arm.policy:
            return {"policy": self.asked(dataclasses.replace(cell, arm=arm.policy)), "evaluate": evaluate}
        init = self.asked(dataclasses.replace(cell, arm=arm.init)) if arm.init else ""
        train = self.study.common + arm.train
        data = self.study.data
        return {"data": data, "updates": self.study.updates, "train": train, "init": init, "evaluate": evaluate}

    def check(self, cells: list[Cell]) -> None:
        """Composes every command and compares what stands in the folder with the file, before anything is run.

        Raises:  ConfigError naming the setting that is wrong, or the cell or store that was begun under other ones.
        """
        for name, overrides in self.study.data.items():
            config.load("collect", self.collect_command(name)[1:])
            self._same(self.out / "data" / f"{name}.json", overrides)
        evaluated = []
        for cell in {cell.arm: cell for cell in cells}.values():
            arm = self.study.arms[cell.arm]
            if not arm.policy:
                config.load("train", self.train_command(cell)[1:])
            if arm.evaluate not in evaluated:  # composing takes its time
                config.load("eval", self.eval_command(cell)[1:])
                evaluated.append(arm.evaluate)
        for cell in cells:
            self._same(cell.record, self.asked(cell))

    def _same(self, path: Path, asked: Any) -> None:
        if path.exists() and (before := json.loads(path.read_text())["asked"]) != asked:
            raise ConfigError(
                f"{path} says that this was begun with {json.dumps(before)}; the study file now says "
                f"{json.dumps(asked)}. Restore the file, take another --out, or delete {path.parent}."
            )

    def run(self, cells: list[Cell], after: Callable[[], None]) -> None:
        """Collects, trains and evaluates what is missing; `after` is called when a cell is done."""
        with alone(self.out) as lock:
            for name in self.study.data:
                if not (mark := self.out / "data" / f"{name}.json").exists():
                    call(self.collect_command(name), lock)
                    write(mark, {"asked": self.study.data[name]})
            for cell in cells:
                if results_of(cell) is not None:
                    continue
                arm = self.study.arms[cell.arm]
                for other in filter(None, (arm.init, arm.policy)):
                    if not self.trained(other, cell.seed):
                        raise ConfigError(f"arm {cell.arm} needs the policy of arm {other}: run that one, too.")
                commands = (
                    [self.eval_command(cell)] if arm.policy else [self.train_command(cell), self.eval_command(cell)]
                )
                ran = [shlex.join(["padpolicy", *command]) for command in commands]
                write(cell.record, {"asked": self.asked(cell), "commands": ran})
                if not arm.policy and not self.trained(cell.arm, cell.seed):
                    call(commands[0], lock)
                call(commands[-1], lock)
                after()

    def trained(self, arm: str, seed: int) -> bool:
        return (self.run_of(arm, seed) / "checkpoints" / f"step_{self.study.updates:08d}").is_dir()


def load_study(path: Path) -> Study:
    """Reads a study file.

    Raises:  ConfigError for a key that is unknown or missing, or an arm that is.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        study = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Study), OmegaConf.load(path)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    assert isinstance(study, Study)
    names = list(study.arms)
    for place, (name, arm) in enumerate(study.arms.items()):
        for other in filter(None, (arm.init, arm.policy)):
            if other not in names[:place] or study.arms[other].policy:
                raise ConfigError(f"{path}: arm {name} takes the policy of {other!r}, which no arm before it trains.")
        if arm.policy and (arm.train or arm.init):
            raise ConfigError(f"{path}: arm {name} has policy={arm.policy}, so it is not trained: no train, no init.")
    bases = (study.base, *(arm.base or study.base for arm in study.arms.values()))
    if missing := [base for base in bases if base not in names]:
        raise ConfigError(f"{path}: base is {missing[0]!r}; there are the arms {', '.join(names)}.")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ConfigError(f"{path}: seeds must be one or more different numbers, got {study.seeds}.")
    return study


def cells_of(study: Study, out: Path) -> list[Cell]:
    """All cells in the order in which they are run: an interrupted study has whole pairs."""
    return [Cell(arm, seed, out) for seed in study.seeds for arm in study.arms]


@contextmanager
def alone(out: Path):
    """Waits until nobody else works in `out`; yields the lock. Commands hold it too, so one that outlived its study
    is waited for, and what it did is not done again.
    """
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{out}: another process is at work here; waiting for its end.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def call(arguments: list[str], lock: int) -> None:
    print("padpolicy " + shlex.join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "padpolicy.cli", *arguments], pass_fds=(lock,))
    if done.returncode:
        raise SystemExit(f"that command ended with exit code {done.returncode}; the same study goes on from here.")


def write(path: Path, content: Any) -> None:
    """Writes a text, or anything else as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def results_of(cell: Cell) -> dict[str, Any] | None:
    """What the evaluation of a cell found; None if there is none, or it was cut short."""
    try:
        return json.loads(cell.results.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def training_seconds(run: Path) -> float | None:
    """How long all updates take at the pace of the last log line; an interrupted training's own clock would not say."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    paces = [line["samples_per_s"] for line in lines if "samples_per_s" in line]
    training = json.loads((run / "config.json").read_text())["training"]
    return training["steps"] * training["batch_size"] / paces[-1] if paces else None


def summarise(study: Study, runner: Runner, cells: list[Cell]) -> dict[str, Any]:
    """The numbers of all cells that are done.

    Raises:  ConfigError if two of them were evaluated on other scenes, or under other protocols.
    """
    found = {name: {c.seed: r for c in cells if c.arm == name and (r := results_of(c))} for name in study.arms}
    every = [results for by_seed in found.values() for results in by_seed.values()]
    if len({results["episode_list_sha256"] for results in every}) > 1:
        raise ConfigError("the cells were evaluated on different scenes: tasks, episodes_per_task and seed of all arms")
    for results in every[1:]:
        differs = protocol_differences(every[0].get("protocol", {}), results.get("protocol", {}), but=["exec_steps"])
        if differs:
            raise ConfigError(
                f"the cells were evaluated under different protocols ({'; '.join(differs)}): not one table"
            )

    def outcomes(name: str, seeds: list[int]) -> np.ndarray:
        """(seeds, scenes) of 0 and 1; scenes in one order for all arms."""
        return np.array([np.concatenate(list(found[name][seed]["outcomes"].values())) for seed in seeds], float)

    arms: dict[str, Any] = {}
    for name, by_seed in found.items():
        if not by_seed:
            continue
        won = outcomes(name, list(by_seed))
        runs = [runner.run_of(study.arms[name].policy or name, seed) for seed in by_seed]
        seconds = [s for run in runs if (s := training_seconds(run)) is not None]
        arms[name] = {
            "why": study.arms[name].why,
            "success_rate": float(won.mean()),
            "ci95": wilson(int(won.sum()), won.size),
            "seeds": list(by_seed),
            "episodes_per_seed": won.shape[1],
            "train_seconds": float(np.mean(seconds)) if seconds else None,
            "tasks": {
                task: float(np.mean([results["outcomes"][task] for results in by_seed.values()]))
                for task in next(iter(by_seed.values()))["outcomes"]
            },
        }
        base = study.arms[name].base or study.base
        both = [seed for seed in by_seed if seed in found[base]]
        if name != base and both:
            one, other = outcomes(name, both), outcomes(base, both)
            mean, low, high = paired_difference(one, other)
            by = dict(zip(both, (one - other).mean(1).tolist(), strict=True))
            arms[name]["minus"] = {"base": base, "mean": mean, "ci95": [low, high], "by_seed": by}
    return {
        "updates": study.updates,
        "scene_seed": sorted({results["seed"] for results in every}),
        "commit": sorted({results["commit"] for results in every}),
        "arms": arms,
        "commands": {
            f"{cell.arm}-{cell.seed}": json.loads(cell.record.read_text())["commands"]
            for cell in cells
            if cell.seed in found[cell.arm]
        },
    }


READING = """\
Success has a Wilson interval over all episodes. A difference is paired: the same training seed, task and scene under
both arms. Its interval is a bootstrap over scenes (10 000 resamples, all trainings of a scene together) with the
trainings fixed: what other scenes would have shown of these very trainings, not what other trainings would have.
How much trainings differ stands beside it, seed by seed. Training time is that of all updates at the pace measured."""


def table(name: str, summary: dict[str, Any]) -> str:
    """The summary as a page of markdown."""
    arms = summary["arms"]
    head = ["arm", "success", "95 %", "seeds x episodes", "difference", "95 %", "by seed", "training", "what it is"]
    rows = []
    for arm, row in arms.items():
        low, high = row["ci95"]
        cells = [arm, f"{row['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"]
        cells.append(f"{len(row['seeds'])} x {row['episodes_per_seed']}")
        if minus := row.get("minus"):
            low, high = minus["ci95"]
            each = ", ".join(f"{difference:+.1%}" for difference in minus["by_seed"].values())
            cells += [f"{minus['mean']:+.1%} to {minus['base']}", f"{low:+.1%} to {high:+.1%}", each]
        else:
            cells += ["", "", ""]
        cells.append("" if row["train_seconds"] is None else f"{row['train_seconds']:.0f} s")
        rows.append([*cells, row["why"]])
    tasks = list(dict.fromkeys(task for row in arms.values() for task in row["tasks"]))
    by_task = [[task, *(f"{row['tasks'][task]:.0%}" for row in arms.values())] for task in tasks]
    seeds = sorted({seed for row in arms.values() for seed in row["seeds"]})
    first = {arm: f"{arm}-{row['seeds'][0]}" for arm, row in arms.items()}
    commands = "\n".join(command for cell in first.values() for command in summary["commands"][cell])
    made = f"{summary['updates']} updates each. Training seeds {', '.join(map(str, seeds))}; scenes from seed "
    made += f"{', '.join(map(str, summary['scene_seed']))} on; commit {', '.join(summary['commit'])}."
    return "\n\n".join(
        [
            f"# Ablation {name}",
            grid(head, rows),
            READING,
            "Success by task:",
            grid(["task", *arms], by_task),
            made,
            "The commands of each arm's first seed (all are in results.json):",
            f"```sh\n{commands}\n```\n",
        ]
    )


def grid(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0, help="torch threads of each command; 0: torch's choice")
    parser.add_argument("--only", nargs="*", default=[], metavar="ARM", help="run these arms only")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="run these seeds only")
    parser.add_argument("--table", action="store_true", help="run nothing, only write the table")
    args = parser.parse_args()
    study = load_study(args.study)
    if unknown := [name for name in args.only if name not in study.arms]:
        raise ConfigError(f"--only {unknown[0]}: the study has the arms {', '.join(study.arms)}.")
    if unknown := [seed for seed in args.seeds if seed not in study.seeds]:
        raise ConfigError(f"--seeds {unknown[0]}: the study has the seeds {study.seeds}.")
    runner = Runner(study, args.out, args.threads)
    cells = cells_of(study, args.out)

    def report() -> None:
        summary = summarise(study, runner, cells)
        write(args.out / "results.json", summary)
        write(args.out / "table.md", table(args.study.stem, summary))

    runner.check(cells)
    if not args.table:
        wanted = [cell for cell in cells if cell.arm in (args.only or study.arms)]
        runner.run([cell for cell in wanted if cell.seed in (args.seeds or study.seeds)], report)
    report()
    print(f"Table: {args.out / 'table.md'}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        sys.exit(f"error: {error}")
