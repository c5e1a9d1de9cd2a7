"""`validate`: everything that is wrong with a store, each finding with place and remedy. Reads every row once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from padpolicy.data.actions import ActionSpec
from padpolicy.data.layout import Finding, StoreError, meta_dtypes, open_checked, read_chunk, read_meta

_IRREGULAR = 0.5  # share of the usual step by which a step may differ before it is reported


def validate(path: str | Path, progress: Callable[[float], None] | None = None) -> list[Finding]:
    """What is wrong with the store, or folder of videos, at `path`, worst first; without errors it can be used.

    Args: progress: is called with the share done, 0..1.
    """
    path = Path(path)
    if path.is_dir() and not (path / "zarr.json").is_file() and not (path / ".zgroup").is_file():
        from padpolicy.data import video  # needs PyAV, and only here

        if video.find_videos(path):
            return _check_videos(path)
    group, attrs, found = open_checked(path)
    if group is None or "n_episodes" not in attrs or any(f.where in ("attributes", "meta/episode_ends") for f in found):
        return found
    damaged = {finding.where for finding in found if finding.level == "error"}
    n = attrs["n_episodes"]
    ends = read_meta(path, group["meta/episode_ends"], n)
    n_rows = int(ends[-1]) if n else 0
    if n == 0:
        found.append(Finding("warning", "n_episodes", "the store holds no episode yet."))
    found += _check_episodes(path, group, attrs, n, damaged)
    names = [*attrs["fields"], "timestamp"]
    spec = None
    if "action" in attrs["fields"] and "fields/action" not in damaged:
        spec = ActionSpec.from_dict(attrs["fields"]["action"])
    for i, name in enumerate(names):
        if f"data/{name}" not in damaged and f"fields/{name}" not in damaged:
            found += _check_rows(path, group[f"data/{name}"], name, n_rows, ends, spec)
        if progress:
            progress((i + 1) / len(names))
    tail = {
        name: group[f"data/{name}"].shape[0] - n_rows
        for name in names
        if f"data/{name}" in group and f"data/{name}" not in damaged and f"fields/{name}" not in damaged
    }
    if longest := max(tail.values(), default=0):
        message = (
            f"{longest} rows behind the last committed episode: an append was interrupted. They are ignored, and the "
            "next append overwrites them."
        )
        found.append(Finding("info", "tail", message))
    if group.metadata.zarr_format == 2:
        found.append(Finding("info", "format", "zarr format 2 has no checksums: flipped bits cannot be found here."))
    return sorted(found, key=lambda finding: ("error", "warning", "info").index(finding.level))


def _check_videos(folder: Path) -> list[Finding]:
    """Decodes every video of a folder."""
    from padpolicy.data import video

    found, readable = [], 0
    try:
        captions = video.check_captions(folder)
    except StoreError as error:
        return [Finding("error", "captions", str(error))]
    for file in video.find_videos(folder):
        name = file.relative_to(folder).as_posix()
        try:
            for _ in video.decode(file, image_size=16):
                pass
        except ValueError as error:
            found.append(Finding("warning", name, f"{error}. Training leaves it out; replace or remove it."))
            continue
        readable += 1
        if name not in captions:
            found.append(Finding("info", name, "it has no caption: it is learned from without words."))
    if not readable:
        found.insert(0, Finding("error", str(folder), "none of the video files can be read."))
    return found


def _check_episodes(path: Path, group: zarr.Group, attrs: dict, n: int, damaged: set[str]) -> list[Finding]:
    found = []
    meta = {}
    for name in meta_dtypes(attrs):
        if f"meta/{name}" in damaged:
            continue
        try:
            meta[name] = read_meta(path, group[f"meta/{name}"], n)
        except StoreError as error:
            found.append(Finding("error", f"meta/{name}", str(error)))
    if "episode_task" in meta:
        for i in np.flatnonzero((meta["episode_task"] >= len(attrs["tasks"])) | (meta["episode_task"] < -1)):
            message = (
                f"task {meta['episode_task'][i]} does not exist; there are {len(attrs['tasks'])}. Drop the episode."
            )
            found.append(Finding("error", f"meta/episode_task, episode {i}", message))
        without = int((meta["episode_task"] == -1).sum())
        if without and "action" in attrs["fields"]:
            found.append(Finding("warning", "meta/episode_task", f"{without} of {n} episodes have no instruction."))
    if "episode_id" in meta and len(set(meta["episode_id"])) < n:
        (name, count), *_ = Counter(str(name) for name in meta["episode_id"]).most_common(1)
        message = f"{name!r} occurs {count} times: recorded twice? Ids also decide the validation split."
        found.append(Finding("warning", "meta/episode_id", message))
    for task in attrs["tasks"]:
        if not task.get("paraphrases"):
            found.append(
                Finding("error", f"tasks/{task.get('name')}", "no paraphrases: add at least the instruction itself.")
            )
    return found


def _check_rows(
    path: Path, array: zarr.Array, name: str, n_rows: int, ends: np.ndarray, spec: ActionSpec | None
) -> list[Finding]:
    """Reads all committed rows of an array, chunk by chunk. `spec` is that of the store's actions, if it has any."""
    found, timestamps, where = [], [], f"data/{name}"
    blank, outside = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
    for chunk in range(-(-n_rows // array.chunks[0])):
        first = chunk * array.chunks[0]
        try:
            rows = read_chunk(path, array, chunk, n_rows, ends)
        except StoreError as error:
            found.append(Finding("error", f"{where}, {_place(first, ends)}", str(error)))
            timestamps.append(np.full(min(array.chunks[0], n_rows - first), np.nan))
            continue
        flat = rows.reshape(len(rows), -1)
        if rows.dtype.kind == "f":
            for row in np.flatnonzero(~np.isfinite(flat).all(1)):
                column = int(np.argmax(~np.isfinite(flat[row])))
                message = f"dimension {column} is {flat[row, column]}. Drop or repair the episode."
                found.append(Finding("error", f"{where}, {_place(first + int(row), ends)}", message))
        else:
            blank[first : first + len(rows)] = (flat == flat[:, :1]).all(1)
        if name == "timestamp":
            timestamps.append(rows)
        if name in ("action", "executed") and spec is not None:
            outside[first : first + len(rows)] = spec.gripper_is_outside(rows)
    if name == "timestamp" and timestamps:  # videos may have any frame rate
        found += _check_timestamps(np.concatenate(timestamps), ends, irregular=spec is not None)
    if spec is not None and outside.any():
        message = (
            f"from here on {int(outside.sum())} of {n_rows} rows have the binary gripper beyond gripper_range "
            f"{spec.gripper_range}. Correct gripper_range in the attributes, or the data."
        )
        found.append(Finding("error", f"{where}, {_place(int(np.argmax(outside)), ends)}", message))
    for i, (start, stop) in enumerate(zip(np.r_[0, ends][:-1], ends, strict=True)):
        if blank[start:stop].all():
            kind = "invalid" if name.startswith("depth") else "one colour"
            found.append(
                Finding("warning", f"{where}, episode {i}", f"every frame is {kind}: was the camera covered or off?")
            )
    return found


def _check_timestamps(time_s: np.ndarray, ends: np.ndarray, irregular: bool) -> list[Finding]:
    found = []
    for i, (start, stop) in enumerate(zip(np.r_[0, ends][:-1], ends, strict=True)):
        step_s = np.diff(time_s[start:stop])
        if len(step_s) == 0 or not np.isfinite(step_s).all():
            continue
        if (step_s <= 0).any():
            step = int(np.argmax(step_s <= 0)) + 1
            message = f"time does not increase ({step_s[step - 1]:+.4f} s). Repair the timestamps or drop the episode."
            found.append(Finding("error", f"data/timestamp, episode {i}, step {step}", message))
            continue
        usual_s = float(np.median(step_s))
        odd = np.abs(step_s - usual_s) > _IRREGULAR * usual_s
        if irregular and odd.any():
            step = int(np.argmax(odd)) + 1
            message = (
                f"irregular: {step_s[step - 1]:.4f} s after {usual_s:.4f} s usually, {int(odd.sum())} times in this "
                "episode. Frames were dropped or the clock jumped; resample it if the robot acted meanwhile."
            )
            found.append(Finding("warning", f"data/timestamp, episode {i}, step {step}", message))
    return found


def _place(row: int, ends: np.ndarray) -> str:
    episode = int(np.searchsorted(ends, row, side="right"))
    return f"episode {episode}, step {row - (int(ends[episode - 1]) if episode else 0)}"
