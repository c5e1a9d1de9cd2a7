"""How fast windows are read: our store against a LeRobotDataset of the same episodes, side by side in one run.

    padpolicy collect env=tabletop episodes_per_task=3 out=runs/small.zarr
    padpolicy convert runs/small.zarr runs/small_lerobot --to lerobot
    python scripts/bench_reader.py runs/small.zarr runs/small_lerobot     # where lerobot is installed, too
    python scripts/bench_reader.py --memory runs/large.zarr --gigabytes 10

A window is 16 steps of two cameras and of the actions. Both sides read the same windows in the same random order, one
process and one thread each; rounds alternate, medians count. `--memory` makes a store of noise, which nothing
compresses, and reads it with two workers: how much memory do they take, and when does the first batch come?
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from padpolicy.config import DataConfig
from padpolicy.data.actions import ActionSpec
from padpolicy.data.dataset import BatchStream, Mixture, loader, open_source
from padpolicy.data.store import Episode, Store, StoreSpec

STEPS, CAMERAS, ROUNDS = 16, ["front", "wrist"], 5


def settings(path: Path, **changes) -> DataConfig:
    values: dict[str, Any] = {
        "path": str(path),
        "cameras": CAMERAS,
        "depth_cameras": [],
        "future_cameras": [],
        "future_depth_cameras": [],
        "obs_steps": STEPS,
        "chunk_steps": STEPS,
        "future_offsets_s": [1.6],
        "val_fraction": 0.0,
    }
    return DataConfig(**values | changes)


def compare(path: Path, lerobot: Path, windows: int) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    torch.set_num_threads(1)
    began = time.perf_counter()
    source = open_source(path, settings(path))
    rng = np.random.default_rng(0)
    rows = rng.permutation(source.n_windows())[:windows]
    source.sample(int(rows[0]), rng)
    first_ours = time.perf_counter() - began

    began = time.perf_counter()
    past = [(k - STEPS + 1) / 10 for k in range(STEPS)]
    ahead = [k / 10 for k in range(STEPS)]
    wanted = {f"observation.images.{camera}": past for camera in CAMERAS} | {"action": ahead}
    theirs = LeRobotDataset("local/bench", root=lerobot, delta_timestamps=wanted)
    theirs[int(rows[0])]
    first_theirs = time.perf_counter() - began

    def ours_round(part: np.ndarray) -> float:
        start = time.perf_counter()
        for row in part:
            source.sample(int(row), rng)
        return len(part) / (time.perf_counter() - start)

    def theirs_round(part: np.ndarray) -> float:
        start = time.perf_counter()
        for row in part:
            theirs[int(row)]
        return len(part) / (time.perf_counter() - start)

    parts = np.array_split(rows, ROUNDS)
    speeds = [(ours_round(part), theirs_round(part)) for part in parts]
    mine, its = (statistics.median(column) for column in zip(*speeds, strict=True))
    ratios = sorted(a / b for a, b in speeds)
    print(f"{len(rows)} windows of {STEPS} steps and {len(CAMERAS)} cameras, {ROUNDS} rounds, one thread")
    print(f"padpolicy       {mine:8.1f} samples/s   first sample after {first_ours:.2f} s")
    print(f"LeRobotDataset  {its:8.1f} samples/s   first sample after {first_theirs:.2f} s")
    print(f"ratio           {statistics.median(ratios):8.1f}   ({ratios[0]:.1f} to {ratios[-1]:.1f})")


def memory(path: Path, gigabytes: float, batches: int) -> None:
    _noise(path, gigabytes)
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peak[0] = max(peak[0], _resident(os.getpid()))

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    cfg = settings(path, obs_steps=1, workers=2, dt_s=0.1)
    stream = BatchStream(Mixture([open_source(path, cfg)]), batch_size=32, seed=0)
    first = 0.0
    for _ in loader(stream, 0, batches, workers=2):
        first = first or time.perf_counter() - began
    seconds = time.perf_counter() - began - first
    stop.set()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"store of {size / 1e9:.1f} GB, {batches} batches of 32, 2 workers")
    print(f"peak memory {peak[0] / 1e9:.2f} GB (three processes), first batch after {first:.1f} s")
    print(f"{32 * (batches - 1) / seconds:.0f} samples/s")


def _noise(path: Path, gigabytes: float) -> None:
    side, length = 96, 1000
    spec = StoreSpec(
        cameras={camera: {"size": [side, side], "intrinsics": None, "extrinsics": None} for camera in CAMERAS},
        action=ActionSpec("delta", ["x", "y"], 0.1),
        robot="noise",
        dt_s=0.1,
    )
    with Store.open(path, "a") if path.exists() else Store.create(path, spec) as store:
        rng = np.random.default_rng(store.n_episodes)
        while len(CAMERAS) * store.n_rows * side * side * 3 < gigabytes * 1e9:
            arrays = {f"rgb_{camera}": rng.integers(0, 256, (length, side, side, 3), np.uint8) for camera in CAMERAS}
            store.append(Episode(arrays | {"action": rng.normal(size=(length, 2)).astype(np.float32)}, task="noise"))


def _resident(pid: int) -> int:
    """Proportional memory of a process and its children, bytes (shared pages are counted once)."""
    total, pids = 0, [pid]
    while pids:
        current = pids.pop()
        try:
            for line in Path(f"/proc/{current}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
            for task in Path(f"/proc/{current}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("lerobot", type=Path, nargs="?")
    parser.add_argument("--windows", type=int, default=500)
    parser.add_argument("--memory", type=Path)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--batches", type=int, default=200)
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory, arguments.gigabytes, arguments.batches)
    elif arguments.lerobot:
        compare(arguments.store, arguments.lerobot, arguments.windows)
    else:
        parser.error("give STORE and LEROBOT, or --memory STORE")
