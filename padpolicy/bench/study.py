"""Studies: policies that differ in one thing are trained alike and act in the same scenes. What is it worth?

A study is one file (see `Study`). Its cells, one for every seed and arm, are trained for the same number of optimiser
steps and evaluated on the same scenes, each by the command that `padpolicy` has for it in a process of its own; all
arms of a seed come before the next seed. The same command again goes on after the last thing that was finished. A cell
that was begun under other settings than the file has now is refused. What stands in the folder:

    data/NAME.zarr               what was collected or labelled; data/NAME.json: the settings, written when it is whole
    ARM-SEED/cell.json           the cell's settings and commands, written before it is begun
    ARM-SEED/run/                its training
    ARM-SEED/latency.json        its `padpolicy bench latency`, where the study has `plans`
    ARM-SEED/results.json        its evaluation, and the page and videos beside it
    table.md, results.json       every arm and its paired difference to the base; how to read it: docs/ablations.md
    curves.svg                   arms in an order, where the study has `curves`
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors import safe_open

from padpolicy import config
from padpolicy.bench import curves
from padpolicy.config import MISSING, ConfigError
from padpolicy.evaluation.episodes import protocol_differences
from padpolicy.evaluation.metrics import paired_difference, wilson

FAMILIES = Path(__file__).with_name("family.yaml")  # the study of `padpolicy bench family`


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
    """A study file. In the overrides of `train`, `eval` and `label`, `{data}` is the folder of what was collected."""

    updates: int = MISSING  # optimiser steps of every training
    seeds: list[int] = MISSING  # of the trainings; one training per arm and seed
    base: str = MISSING  # the arm that the others are compared with
    arms: dict[str, Arm] = MISSING
    common: list[str] = field(default_factory=list)  # overrides of `padpolicy train`, for all arms
    evaluate: list[str] = field(default_factory=list)  # overrides of `padpolicy eval`, for all arms
    curves: dict[str, dict[str, str]] = field(default_factory=dict)  # title -> label on the axis -> arm
    plans: int = 0  # plans of every policy that are timed, one at a time; 0: none
    data: dict[str, list[str]] = field(default_factory=dict)  # store -> overrides of `padpolicy collect`
    labels: dict[str, list[str]] = field(default_factory=dict)  # another store -> overrides of `padpolicy label`


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

    @property
    def stores(self) -> dict[str, list[str]]:
        """The commands that make the stores, in their order."""
        collect = {name: ["collect", *overrides] for name, overrides in self.study.data.items()}
        label = {name: ["label", *self._filled(overrides)] for name, overrides in self.study.labels.items()}
        return {name: [*made, f"out={self.out / 'data' / name}.zarr"] for name, made in (collect | label).items()}

    def train_command(self, cell: Cell) -> list[str]:
        arm = self.study.arms[cell.arm]
        start = [f"training.init={self.run_of(arm.init, cell.seed)}"] if arm.init else []
        fixed = [f"training.steps={self.study.updates}", f"seed={cell.seed}", f"out={self.run_of(cell.arm, cell.seed)}"]
        return ["train", *self._filled(self.study.common + arm.train), *start, *fixed, *self._threads("training.")]

    def eval_command(self, cell: Cell) -> list[str]:
        arm = self.study.arms[cell.arm]
        fixed = [f"checkpoint={self.run_of(arm.policy or cell.arm, cell.seed)}", f"out={cell.folder}"]
        return ["eval", *self._filled(self.study.evaluate + arm.evaluate), *fixed, *self._threads("")]

    def latency_command(self, cell: Cell) -> list[str]:
        run = self.run_of(cell.arm, cell.seed)
        asked = [f"checkpoint={run}", "steps=[0]", "pad_steps=0", f"plans={self.study.plans}"]
        return ["bench", "latency", *asked, f"out={cell.folder / 'latency.json'}", *self._threads("")]

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
        data = self.study.data | self.study.labels
        return {
            "data": data,
            "updates": self.study.updates,
            "plans": self.study.plans,
            "train": train,
            "init": init,
            "evaluate": evaluate,
        }

    def check(self, cells: list[Cell]) -> None:
        """Composes every command and compares what stands in the folder with the file, before anything is run.

        Raises:  ConfigError naming the setting that is wrong, or the cell or store that was begun under other ones.
        """
        self._check_unchanged(cells)
        for verb, *overrides in self.stores.values():
            config.load(verb, overrides)
        evaluated = []
        for cell in {cell.arm: cell for cell in cells}.values():
            arm = self.study.arms[cell.arm]
            if not arm.policy:
                config.load("train", self.train_command(cell)[1:])
            if arm.evaluate not in evaluated:  # composing takes its time
                config.load("eval", self.eval_command(cell)[1:])
                evaluated.append(arm.evaluate)

    def _check_unchanged(self, cells: list[Cell]) -> None:
        for name, asked in (self.study.data | self.study.labels).items():
            self._same(self.out / "data" / f"{name}.json", asked)
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
            self._check_unchanged(cells)  # again: whoever was waited for may have begun other cells
            for name, command in self.stores.items():
                if not (mark := self.out / "data" / f"{name}.json").exists():
                    call(command, lock)
                    write(mark, {"asked": (self.study.data | self.study.labels)[name]})
            for cell in cells:
                if results_of(cell) is not None:
                    continue
                arm = self.study.arms[cell.arm]
                for other in filter(None, (arm.init, arm.policy)):
                    if not self.trained(other, cell.seed):
                        raise ConfigError(f"arm {cell.arm} needs the policy of arm {other}: run that one, too.")
                commands = [self.eval_command(cell)]
                if not arm.policy:
                    timing = [self.latency_command(cell)] if self.study.plans else []
                    commands = [self.train_command(cell), *timing, *commands]
                ran = [shlex.join(["padpolicy", *command]) for command in commands]
                write(cell.record, {"asked": self.asked(cell), "commands": ran})
                for command in commands:
                    if command[0] == "train":
                        self._train(cell, command, lock)
                    else:
                        call(command, lock)
                after()

    def _train(self, cell: Cell, command: list[str], lock: int) -> None:
        if self.trained(cell.arm, cell.seed):
            return
        call(command, lock)
        if not self.trained(cell.arm, cell.seed):
            raise ConfigError(
                f"{self.run_of(cell.arm, cell.seed)}: the training ended before its {self.study.updates} updates. A "
                "study counts updates: take training.max_seconds out of the file."
            )

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
    drawn = [arm for curve in study.curves.values() for arm in curve.values()]
    if missing := [arm for arm in drawn if arm not in names]:
        raise ConfigError(f"{path}: curves names {missing[0]!r}; there are the arms {', '.join(names)}.")
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
    """Runs a command of `padpolicy`, and lets it hold the lock."""
    print("padpolicy " + shlex.join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "padpolicy.cli", *arguments], pass_fds=(lock,))
    if done.returncode:
        raise SystemExit(f"that command ended with exit code {done.returncode}; the same study goes on from here.")


def write(path: Path, content: Any) -> None:
    """Writes a text, or anything else as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)


def results_of(cell: Cell) -> dict[str, Any] | None:
    """What the evaluation of a cell found; None if there is none, or it was cut short."""
    try:
        return json.loads(cell.results.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def logged(run: Path) -> list[dict[str, Any]]:
    """What a training has logged; a line that was cut short is left out."""
    file = run / "metrics.jsonl"
    return [json.loads(s) for s in file.read_text().splitlines() if s.endswith("}")] if file.exists() else []


def pace(run: Path) -> float | None:
    """Samples a second of a training, by its last log line; an interrupted one's own clock would not say."""
    return next((line["samples_per_s"] for line in reversed(logged(run)) if "samples_per_s" in line), None)


def training_seconds(run: Path) -> float | None:
    """How long all updates take at that pace."""
    training, samples_per_s = json.loads((run / "config.json").read_text())["training"], pace(run)
    return training["steps"] * training["batch_size"] / samples_per_s if samples_per_s else None


def validation_loss(run: Path) -> float | None:
    """The last one, of the actions; None where nothing was held out."""
    return next((line.get("loss_action") for line in reversed(logged(run)) if line["kind"] == "validation"), None)


def costs(cells: list[Cell]) -> dict[str, float]:
    """What a policy costs: parameters, training samples a second and milliseconds a plan, medians over the seeds."""
    from padpolicy.saving import find_policy

    timed = [json.loads((cell.folder / "latency.json").read_text()) for cell in cells]
    with safe_open(find_policy(cells[0].folder / "run") / "model.safetensors", "pt") as weights:
        parameters = sum(
            math.prod(weights.get_slice(name).get_shape())
            for name in weights.keys()  # noqa: SIM118
            if not name.endswith("pos_embed")  # fixed
        )
    paces = [samples_per_s for cell in cells if (samples_per_s := pace(cell.folder / "run"))]
    return {
        "parameters": parameters,
        "samples_per_s": median(paces) if paces else math.nan,
        "plan_ms": median(found["settings"][0]["ms"]["wall"]["p50"] for found in timed),
    }


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
        held_out = [loss for run in runs if (loss := validation_loss(run)) is not None]
        arms[name] = {
            "why": study.arms[name].why,
            "success_rate": float(won.mean()),
            "ci95": wilson(int(won.sum()), won.size),
            "seeds": list(by_seed),
            "episodes_per_seed": won.shape[1],
            "train_seconds": float(np.mean(seconds)) if seconds else None,
            "validation_loss": float(np.mean(held_out)) if held_out else None,
            "tasks": {
                task: float(np.mean([results["outcomes"][task] for results in by_seed.values()]))
                for task in next(iter(by_seed.values()))["outcomes"]
            },
        }
        if study.plans and not study.arms[name].policy:
            arms[name]["costs"] = costs([cell for cell in cells if cell.arm == name and cell.seed in by_seed])
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
    timed = any("costs" in row for row in arms.values())
    head[-1:-1] = ["parameters", "samples/s", "a plan"] if timed else []
    held_out = any(row["validation_loss"] is not None for row in arms.values())
    head[2:2] = ["validation loss"] if held_out else []
    rows = []
    for arm, row in arms.items():
        low, high = row["ci95"]
        cells = [arm, f"{row['success_rate']:.1%}", f"{low:.1%} to {high:.1%}"]
        loss = row["validation_loss"]
        cells[2:2] = ["" if loss is None else f"{loss:.4f}"] if held_out else []
        cells.append(f"{len(row['seeds'])} x {row['episodes_per_seed']}")
        if minus := row.get("minus"):
            low, high = minus["ci95"]
            each = ", ".join(f"{difference:+.1%}" for difference in minus["by_seed"].values())
            cells += [f"{minus['mean']:+.1%} to {minus['base']}", f"{low:+.1%} to {high:+.1%}", each]
        else:
            cells += ["", "", ""]
        cells.append("" if row["train_seconds"] is None else f"{row['train_seconds']:.0f} s")
        if (cost := row.get("costs")) is not None:
            millions = f"{cost['parameters'] / 1e6:.2f} M"
            cells += [millions, f"{cost['samples_per_s']:.0f}", f"{cost['plan_ms']:.0f} ms"]
        elif timed:
            cells += ["", "", ""]
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
    """A table of markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def study(
    path: Path, out: Path, threads: int = 0, only: Sequence[str] = (), seeds: Sequence[int] = (), run: bool = True
) -> Path:
    """Runs what is missing of a study and writes its table; returns the table's path.

    Args:  threads: torch threads of each command; 0: torch's choice.   only, seeds: run these arms and seeds alone.
           run: False runs nothing and only writes the table, of the cells that are there.
    Raises:  ConfigError for a study that cannot be, or cells that do not belong to it. SystemExit if a command fails.
    """
    what = load_study(path)
    if unknown := [name for name in only if name not in what.arms]:
        raise ConfigError(f"--only {unknown[0]}: the study has the arms {', '.join(what.arms)}.")
    if others := [seed for seed in seeds if seed not in what.seeds]:
        raise ConfigError(f"--seeds {others[0]}: the study has the seeds {what.seeds}.")
    runner, cells = Runner(what, out, threads), cells_of(what, out)

    def report() -> None:
        summary = summarise(what, runner, cells)
        write(out / "results.json", summary)
        write(out / "table.md", table(path.stem, summary))
        if picture := curves.draw(summary["arms"], what.curves):
            write(out / "curves.svg", picture)

    runner.check(cells)
    if run:
        wanted = [cell for cell in cells if cell.arm in (only or what.arms)]
        runner.run([cell for cell in wanted if cell.seed in (seeds or what.seeds)], report)
    report()
    return out / "table.md"
