"""Kills training and collecting at random moments, starts them again, and compares the end with an uninterrupted run.

    python scripts/prove_resume.py [--repetitions 20] [--steps 30] [--episodes 6] [--seed 0] [--only train|collect]

Every attempt is a process of its own that dies by SIGKILL, wherever it is: in a step, in the middle of writing a
checkpoint, between two files. It is forked from a parent that has imported everything and started no thread, so that an
attempt costs what it computes and not what it imports; what it runs is what the command line runs.

Compared are, of training, the bytes of the last checkpoint's files (weights, average, the optimiser's moments); of
collecting, the attributes, the episodes in their order, and the bytes of every array; and after each kill, that what
lies on disk is sound. The exit code is 0 if all repetitions agree.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from padpolicy import config

EVERY = 3  # steps between checkpoints


def child(function: Callable[[], object]) -> int:
    """Runs a function in a forked process. Returns its pid; it ends with exit code 0 or 1."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def finish(pid: int) -> None:
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("an attempt failed by itself: see its traceback above")


def answer(function: Callable[[], str]) -> str:
    """What a function returns, called in a process of its own: this one must not start the threads of zarr."""
    read, write = os.pipe()
    finish(child(lambda: os.write(write, function().encode())))
    os.close(write)
    with os.fdopen(read) as stream:
        return stream.read()


def attempt(function: Callable[[], object], die_after_s: float | None) -> bool:
    """Runs it, killed after that much time. Returns whether it came to its end first."""
    pid = child(function)
    if die_after_s is None:
        finish(pid)
        return True
    end = time.monotonic() + die_after_s
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            if status:
                raise SystemExit("an attempt failed by itself: see its traceback above")
            return True
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def digest(files: list[Path], root: Path) -> str:
    """One name for the names and bytes of files."""
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(f"{file.relative_to(root)} {file.stat().st_size}\n".encode())
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


# -- training ---------------------------------------------------------------------------------------------------------


def train(out: Path, data: Path, steps: int) -> None:
    from padpolicy.training.loop import train

    settings = [f"training.steps={steps}", f"training.checkpoint_every={EVERY}", "data.cache_latents=true"]
    train(config.load("train", ["experiment=tiny", f"data.path={data}", f"out={out}", *settings]))


def trained(out: Path) -> str:
    """The last checkpoint, every file of it."""
    newest = sorted((out / "checkpoints").glob("step_*"))[-1]
    return f"{newest.name} {digest([f for f in newest.rglob('*') if f.is_file()], newest)}"


def training_state(out: Path) -> str:
    """What a kill left: the newest checkpoint, and whether one was being written."""
    folder = out / "checkpoints"
    steps = sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))
    half = len(list(folder.glob(".step_*")))
    return f"step {steps[-1] if steps else 0}" + ", a checkpoint half written" * bool(half)


# -- collecting -------------------------------------------------------------------------------------------------------


def collect(out: Path, episodes: int) -> None:
    from padpolicy.data.collect import collect

    tasks = "tasks=[touch_red_cube,lift_red_cube]"
    settings = [tasks, f"episodes_per_task={-(-episodes // 2)}", "seed=3", "workers=1"]
    collect(config.load("collect", ["env=tabletop", *settings, f"out={out}"]))


def collected(out: Path) -> str:
    """Attributes, episodes in their order, and the bytes of every array."""
    from padpolicy.data.layout import META
    from padpolicy.data.store import Store

    store, total = Store.open(out), hashlib.sha256()
    total.update(repr(store.attrs).encode())
    for name in META:
        total.update(repr(store.meta[name].tolist()).encode())
    for name in [*store.fields, "timestamp"]:
        values = store.read(name, 0, store.n_rows)
        total.update(f"{name} {values.dtype} {values.shape}\n".encode() + values.tobytes())
    return f"{store.n_episodes} episodes, {store.n_rows} rows {total.hexdigest()[:16]}"


def collecting_state(out: Path) -> str:
    """What a kill left: the episodes that are committed, read back and found sound."""
    from padpolicy.data.store import Store
    from padpolicy.data.validate import validate

    if not out.exists():
        return "no store yet"
    wrong = [finding for finding in validate(out) if finding.level == "error"]
    if wrong:
        raise ValueError(f"{out} is damaged: {wrong}")
    tail = any(finding.where == "tail" for finding in validate(out))
    return f"episode {Store.open(out).n_episodes}" + ", an episode half written" * tail


# -- the proof --------------------------------------------------------------------------------------------------------


def killed(
    run: Callable[[Path], None], state: Callable[[Path], str], out: Path, takes_s: float, rng: random.Random
) -> list[str]:
    """One run, killed one to three times before it may finish. Returns, per kill, when it came and what it left."""
    left: list[str] = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        when = rng.uniform(0, takes_s)
        while attempt(partial(run, out), when):  # it was faster than its kill
            if left:
                return left
            shutil.rmtree(out)
            when *= rng.random()
        left.append(f"{when:.2f} s: {answer(partial(state, out))}")
    attempt(partial(run, out), None)
    return left


def prove(
    what: str,
    run: Callable[[Path], None],
    end: Callable[[Path], str],
    state: Callable[[Path], str],
    repetitions: int,
    work: Path,
    rng: random.Random,
) -> int:
    """Prints a row per repetition. Returns how many of them ended differently from the uninterrupted run."""
    straight = work / f"{what}_straight"
    began = time.monotonic()
    attempt(partial(run, straight), None)
    takes_s = time.monotonic() - began
    expected = answer(partial(end, straight))
    print(f"\n{what}: uninterrupted in {takes_s:.1f} s: {expected}")
    print(f"{'repetition':>10}  {'killed after, and what that left':75}  the end", flush=True)
    different = 0
    for repetition in range(1, repetitions + 1):
        out = work / f"{what}_{repetition}"
        left = "; ".join(killed(run, state, out, takes_s, rng))
        same = answer(partial(end, out)) == expected
        different += not same
        print(f"{repetition:10d}  {left:75}  {'identical' if same else 'DIFFERENT'}", flush=True)
        if same:
            shutil.rmtree(out)
    print(f"{what}: {repetitions - different} of {repetitions} identical to the uninterrupted run")
    return different


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=30, help="optimiser steps of a training run")
    parser.add_argument("--episodes", type=int, default=6, help="episodes of a collection")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", choices=("train", "collect"), help="one of the two")
    parser.add_argument("--data", type=Path, help="store to train on; default: a small one collected first")
    parser.add_argument("--work", type=Path, help="folder to keep; default: a temporary one")
    arguments = parser.parse_args()
    warm_up(arguments.only)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="prove_resume."))
    different = 0
    if arguments.only != "train":
        run = partial(collect, episodes=arguments.episodes)
        rng = random.Random(arguments.seed)
        different += prove("collect", run, collected, collecting_state, arguments.repetitions, work, rng)
    if arguments.only != "collect":
        data = arguments.data or work / "collect_straight"
        if not data.exists():
            attempt(partial(collect, data, arguments.episodes), None)
        run = partial(train, data=data, steps=arguments.steps)
        rng = random.Random(arguments.seed + 1)
        different += prove("train", run, trained, training_state, arguments.repetitions, work, rng)
    if not arguments.work:
        shutil.rmtree(work)
    print("\nverdict:", "proven" if not different else f"{different} repetitions differ")
    return 1 if different else 0


def warm_up(only: str | None) -> None:
    """Imports what the attempts need, so that their forks need not."""
    os.environ["OMP_NUM_THREADS"] = "1"
    config.load("train", ["experiment=tiny", "out=."])
    import padpolicy.data.collect
    import padpolicy.data.validate  # noqa: F401

    if only != "train":
        import mujoco  # noqa: F401
        import padpolicy_envs  # noqa: F401
    if only != "collect":
        import diffusers
        import open_clip  # noqa: F401
        import torch

        torch.set_num_threads(1)
        diffusers.AutoencoderKL  # noqa: B018  diffusers imports its parts when they are named
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401

        import padpolicy.training.loop  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
