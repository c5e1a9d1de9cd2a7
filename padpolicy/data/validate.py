"""`validate`: everything that is wrong with a store, each finding with place and remedy. Reads every row once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from padpolicy.data import checks
from padpolicy.data.actions import ActionSpec
from padpolicy.data.files import is_zarr, locate
from padpolicy.data.layout import Finding, StoreError, meta_dtypes, open_checked, read_chunk, read_meta

Progress = Callable[[float], None]  # the share done, 0..1
_LEVELS = ("error", "warning", "info")


def validate(path: str | Path, progress: Progress | None = None, against: str | Path | None = None) -> list[Finding]:
    """What is wrong with the store, or folder of videos, at `path`, worst first; without errors it can be used.

    Args:    progress: is called with the share done.
             against: another store, which is to have nothing in common with this one: what is tested on.
    Returns: at most one finding per field and kind of fault, naming the first places and how many there are.
    Raises:  StoreError if `against` cannot be compared with.
    """
    path = locate(path)
    if isinstance(path, Path) and _is_folder_of_videos(path):
        if against is not None:
            raise StoreError(f"{path} is a folder of videos; only stores are compared with {against}.")
        return _check_videos(path)
    share = 1.0 if against is None else 0.5
    found, contents = _look(path, lambda done: progress(share * done) if progress else None)
    if against is not None:
        theirs, test = _look(locate(against), lambda done: progress(0.5 + 0.5 * done) if progress else None)
        if test is None:
            worst = sorted(theirs, key=lambda finding: _LEVELS.index(finding.level))[0]
            raise StoreError(f"{against}: {worst.where}: {worst.message}")
        if wrong := [finding for finding in theirs if finding.level == "error"]:
            message = f"{len(wrong)} errors of its own, so not all of it was compared: padpolicy validate {against}"
            found.append(Finding("warning", str(against), message))
        if contents is not None:
            found += checks.check_leaks(contents, test, str(against))
    return sorted(found, key=lambda finding: _LEVELS.index(finding.level))


def _is_folder_of_videos(path: Path) -> bool:
    if not path.is_dir() or is_zarr(path):
        return False
    from padpolicy.data import video  # needs PyAV, and only here

    return bool(video.find_videos(path))


def _check_videos(folder: Path) -> list[Finding]:
    """Decodes every video of a folder."""
    from padpolicy.data import video

    found, readable, silent = [], 0, []
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
            silent.append(name)
    if silent:
        message = "it has no caption: it is learned from without words."
        more = f" So have {len(silent) - 1} others." if len(silent) > 1 else ""
        found.append(Finding("info", silent[0], message + more))
    if not readable:
        found.insert(0, Finding("error", str(folder), "none of the video files can be read."))
    return found


def _look(path: Path | str, progress: Progress) -> tuple[list[Finding], checks.Contents | None]:
    """All that is wrong with a store by itself, and what others are compared with; None where it cannot be read."""
    group, attrs, found = open_checked(path)
    if group is None or "n_episodes" not in attrs or any(f.where in ("attributes", "meta/episode_ends") for f in found):
        return found, None
    damaged = {finding.where for finding in found if finding.level == "error"}
    n = attrs["n_episodes"]
    if n == 0:
        found.append(Finding("warning", "n_episodes", "the store holds no episode yet."))
    meta = {}
    for name in meta_dtypes(attrs):
        if f"meta/{name}" not in damaged:
            try:
                meta[name] = read_meta(path, group[f"meta/{name}"], n)
            except StoreError as error:
                found.append(Finding("error", f"meta/{name}", str(error)))
    if "episode_ends" not in meta:
        return found, None
    found += _check_meta(attrs, meta, n)
    has = {name.removeprefix("has_"): values for name, values in meta.items() if name.startswith("has_")}
    episodes = checks.Episodes(meta["episode_ends"], has)
    names = [
        name
        for name in ["timestamp", "action", "executed", "proprio", *attrs["fields"]]
        if name in attrs["fields"] or name == "timestamp"
    ]
    names = [n for n in dict.fromkeys(names) if f"data/{n}" not in damaged and f"fields/{n}" not in damaged]
    rows_found, digests = _check_rows(path, group, attrs, names, episodes, progress)
    found += rows_found
    contents = _contents(attrs, meta, {name: group[f"data/{name}"].shape[1:] for name in digests}, digests)
    found += checks.check_copies(contents)
    if longest := max((group[f"data/{name}"].shape[0] - episodes.n_rows for name in names), default=0):
        message = (
            f"{longest} rows behind the last committed episode: an append was interrupted. They are ignored, and the "
            "next append overwrites them."
        )
        found.append(Finding("info", "tail", message))
    if group.metadata.zarr_format == 2:
        found.append(Finding("info", "format", "zarr format 2 has no checksums: flipped bits cannot be found here."))
    return found, contents


def _check_meta(attrs: dict[str, Any], meta: dict[str, np.ndarray], n: int) -> list[Finding]:
    found = []
    if "episode_task" in meta:
        task, tasks = meta["episode_task"], len(attrs["tasks"])
        if (wrong := np.flatnonzero((task >= tasks) | (task < -1))).size:
            message = f"task {task[wrong[0]]} does not exist; there are {tasks}. Drop the episode."
            found.append(checks.at_episodes("error", "meta/episode_task", wrong, n, message))
        without = int((task == -1).sum())
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
    path: Path | str,
    group: zarr.Group,
    attrs: dict[str, Any],
    names: list[str],
    episodes: checks.Episodes,
    progress: Progress,
) -> tuple[list[Finding], dict[str, list[bytes | None]]]:
    """Reads all committed rows of the arrays `names`, timestamp, actions and proprioception first.

    Returns: what is wrong, and a digest per episode of each field; None where an episode lacks it.
    """
    spec = ActionSpec.from_dict(attrs["fields"]["action"]) if "action" in names else None
    found: list[Finding] = []
    digests: dict[str, list[bytes | None]] = {}
    numbers: dict[str, checks.Numbers] = {}
    time_s = np.full(episodes.n_rows, np.nan)
    motion = checks.Motion(episodes, numbers, time_s, lambda name, a, b: np.asarray(group[f"data/{name}"][a:b]))
    sizes = {name: group[f"data/{name}"].nbytes for name in names}
    for i, name in enumerate(names):
        array, look = group[f"data/{name}"], _looker(name, attrs, episodes, spec)
        size = array.chunks[0]  # zarr builds this anew each time it is asked
        chunks, unread = -(-episodes.n_rows // size), list[tuple[int, str]]()
        before = sum(sizes[other] for other in names[:i])
        for chunk in range(chunks):
            first = chunk * size
            try:
                look.add(first, read_chunk(path, array, chunk, episodes.n_rows, episodes.ends))
            except StoreError as error:
                unread.append((first, str(error)))
                look.skip(first, min(size, episodes.n_rows - first))
            progress((before + sizes[name] * (chunk + 1) / chunks) / max(sum(sizes.values()), 1))
        if unread:
            (first, message), more = unread[0], f" {len(unread)} of {chunks} chunks are damaged." * (len(unread) > 1)
            found.append(Finding("error", f"data/{name}, {episodes.place(first)}", message + more))
        if isinstance(look, checks.Times):
            time_s[:] = look.time_s
            found += look.findings()
            continue
        if isinstance(look, checks.Numbers):
            numbers[name] = look
        found += look.findings(motion)
        there = episodes.having(name)
        digests[name] = [digest if has else None for digest, has in zip(look.digests.done, there, strict=True)]
    if spec is not None:
        found += checks.check_lag(numbers, attrs["fields"].get("proprio", {}).get("names", []), spec)
    return found, digests


def _looker(
    name: str, attrs: dict[str, Any], episodes: checks.Episodes, spec: ActionSpec | None
) -> checks.Times | checks.Numbers | checks.Pictures:
    if name == "timestamp":
        return checks.Times(episodes, spec)
    if name in ("proprio", "action", "executed"):
        return checks.Numbers(name, attrs["fields"][name]["names"], episodes, spec)
    return checks.Pictures(name, episodes)


def _contents(
    attrs: dict[str, Any],
    meta: dict[str, np.ndarray],
    rows: dict[str, tuple[int, ...]],
    digests: dict[str, list[bytes | None]],
) -> checks.Contents:
    n, names = len(meta["episode_ends"]), [str(task.get("name")) for task in attrs["tasks"]]
    scenes: list[tuple[int, str] | None] = [None] * n
    if "episode_seed" in meta and "episode_task" in meta:
        pairs = zip(meta["episode_seed"].tolist(), meta["episode_task"].tolist(), strict=True)
        scenes = [(s, names[t] if 0 <= t < len(names) else "") if s >= 0 else None for s, t in pairs]
    ids = [str(name) for name in meta.get("episode_id", [""] * n)]
    return checks.Contents(ids, scenes, rows, digests, attrs["renderer"])
