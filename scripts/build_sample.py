"""Builds data/sample: a small store of demonstrations and a folder of action-free videos, from a large store.

The commands that made what ships:

    padpolicy collect env=tabletop episodes_per_task=60 seed=1 out=runs/tabletop.zarr
    python scripts/build_sample.py runs/tabletop.zarr --out data/sample

Demonstrations are the first episodes of each task, videos the last ones: no scene is in both.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from padpolicy.data.actions import ActionSpec
from padpolicy.data.store import Episode, Store, StoreSpec
from padpolicy.evaluation.media import resized, write_mp4

FAMILY = "reach"  # most episodes are of this one: enough for a small policy to learn something from
LEFT_OUT = ("depth_wrist",)  # no recipe looks at it
VIDEO_CAMERA = "front"
VIDEOS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="store of scripted demonstrations of the tabletop")
    parser.add_argument("--out", type=Path, default=Path("data/sample"), help="folder to write, replaced if there")
    parser.add_argument("--reach", type=int, default=5, help="episodes of each task of the reach family")
    parser.add_argument("--others", type=int, default=1, help="episodes of each verb of the other families")
    args = parser.parse_args()
    source = Store.open(args.store)
    shutil.rmtree(args.out, ignore_errors=True)
    shown = write_demonstrations(source, args.out / "demonstrations.zarr", args.reach, args.others)
    write_videos(source, args.out / "videos", shown)
    for part in sorted(args.out.iterdir()):
        size = sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        print(f"{part}: {size / 1e6:.1f} MB")


def episodes_by_task(source: Store) -> dict[str, list[int]]:
    """Successful episodes of each task, in the order of the store."""
    found: dict[str, list[int]] = defaultdict(list)
    for i in range(source.n_episodes):
        task = source.task_of(i)
        if task is not None and source.meta["episode_success"][i]:
            found[task["name"]].append(i)
    return found


def write_demonstrations(source: Store, path: Path, reach: int, others: int) -> set[int]:
    """Writes the store. Returns the episodes of the source that are in it."""
    family = {task["name"]: task["family"] for task in source.tasks}
    by_task = episodes_by_task(source)
    chosen = [by_task[name][n] for n in range(reach) for name in by_task if family[name] == FAMILY]
    verbs: dict[str, list[str]] = defaultdict(list)  # the drawer has two: open and close
    for name in by_task:
        if family[name] != FAMILY:
            verbs[name.split("_")[0]].append(name)
    chosen += [by_task[names[n % len(names)]][n] for n in range(others) for names in verbs.values()]
    used = {source.task_of(i)["name"] for i in chosen}

    spec = StoreSpec(
        cameras=source.cameras,
        depth_cameras=[c for c in source.cameras if f"depth_{c}" in source.fields and f"depth_{c}" not in LEFT_OUT],
        proprio=source.fields["proprio"],
        action=ActionSpec.from_dict(source.fields["action"]),
        robot=source.robot,
        renderer=source.renderer,
        dt_s=source.fields["proprio"]["dt_s"],
        tasks=[task for task in source.tasks if task["name"] in used],
    )
    with Store.create(path, spec) as store:
        for i in chosen:
            episode = source.episode(i)
            arrays = {name: array for name, array in episode.arrays.items() if name not in LEFT_OUT}
            store.append(replace(episode, arrays=arrays))
    (path / ".lock").unlink(missing_ok=True)  # it names the process that wrote
    return set(chosen)


def write_videos(source: Store, folder: Path, shown: set[int]) -> None:
    """Writes videos of episodes that are not in `shown`, each under one of its task's wordings."""
    folder.mkdir(parents=True)
    by_task = episodes_by_task(source)
    names = [name for _, name in sorted((i * 7 % len(by_task), name) for i, name in enumerate(by_task))]  # mixed
    captions = []
    for number, name in enumerate(names[:VIDEOS]):
        i = next(i for i in reversed(by_task[name]) if i not in shown)
        task, episode = source.task_of(i), source.episode(i)
        frames, fps = as_filmed(number, episode)
        file = f"{number:02d}_{name}.mp4"
        write_mp4(folder / file, frames, fps)
        captions.append({"file": file, "caption": task["paraphrases"][number % len(task["paraphrases"])]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in captions))


def as_filmed(number: int, episode: Episode) -> tuple[list[np.ndarray], float]:
    """Frames and frames per second: mostly as recorded, some as another camera would have filmed the same.

    Seconds stay true: 30 frames/s shows each picture three times, 5 frames/s every second picture.
    """
    frames, fps = list(episode.arrays[f"rgb_{VIDEO_CAMERA}"]), 1 / float(np.diff(episode.arrays["timestamp"]).mean())
    if number % 6 == 2:  # larger, faster
        return [resized(frame, 144, 144) for frame in frames for _ in range(3)], 3 * fps
    if number % 6 == 5:  # bars at both sides, slower
        return [np.pad(frame, ((0, 0), (16, 16), (0, 0))) for frame in frames[::2]], fps / 2
    return frames, fps


if __name__ == "__main__":
    main()
