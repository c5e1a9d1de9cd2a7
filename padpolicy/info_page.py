"""`padpolicy info PATH --html FILE`: what a dataset holds, as one page that needs nothing beside it.

Of a large dataset a sample is read: the numbers of SAMPLE rows, the pictures of SHOWN episodes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from padpolicy import __version__
from padpolicy.config import ConfigError
from padpolicy.data.store import Store
from padpolicy.evaluation import media
from padpolicy.info import about, absent, episode_seconds, is_dataset, megabytes

SAMPLE = 50_000  # rows that the histograms are made of
SHOWN = 6  # episodes on the contact sheet
TASKS = 60  # that are listed
SIDE = 160  # pixels of the longer side of a picture
BINS = 40
WIDTH, HEIGHT = 240, 72  # of a histogram
INVALID_RGB = 62, 84, 138  # of depth


@dataclass
class Shown:
    """An episode on the contact sheet."""

    number: int
    task: str
    seconds: float
    success: bool
    moments: list[str]  # the times of its pictures, as words
    strips: list[tuple[str, list[np.ndarray]]]  # (field, a picture (H, W, 3) uint8 per moment; none: it is absent)


@dataclass
class Histogram:
    """A dimension of the actions or the proprioception."""

    name: str
    unit: str
    low: str  # the least and greatest value, as words
    high: str
    svg: str  # "": it is always the same


def write_page(path: Path | str, file: Path) -> None:
    """Writes the page about the dataset at `path`.

    Raises:  ConfigError if it is not a dataset; StoreError if it is damaged.
    """
    if not is_dataset(path):
        raise ConfigError(f"{path}: --html shows datasets (zarr), and this is none.")
    file.write_text(page(Store.open(path, cache_bytes=64 << 20)), encoding="utf-8")


def page(store: Store) -> str:
    """The page as HTML text."""
    templates = media.templates(Path(__file__).parent)
    templates.filters |= {"words": lambda name: name.replace("_", " ")}
    templates.filters |= {"n": _grouped, "duration": _duration}
    seconds = episode_seconds(store)
    tasks = _tasks(store)
    return templates.get_template("info_page.html.j2").render(
        name=str(store.path).rstrip("/").rpartition("/")[2].removesuffix(".zarr"),
        store=store,
        seconds=seconds,
        megabytes=megabytes(store) if isinstance(store.path, Path) else None,
        action=store.action_spec,
        sources=Counter(str(source) or "unknown" for source in store.meta["episode_source"]).most_common(),
        tasks=tasks[:TASKS],
        more_tasks=len(tasks) - TASKS,
        n_tasks=len(np.unique(store.meta["episode_task"][store.meta["episode_task"] >= 0])),
        fields=[(name, store.array(name), about(entry), absent(store, name)) for name, entry in store.fields.items()],
        shown=[_show(store, i, float(seconds[i])) for i in _chosen(store)],
        lengths=_lengths(np.diff(store.episode_ends, prepend=0)),
        numbers={name: _histograms(store, name) for name in ("action", "proprio") if name in store.fields},
        sampled=min(store.n_rows, SAMPLE),
        version=__version__,
    )


def _tasks(store: Store) -> list[dict[str, Any]]:
    """Each task that has episodes, the most frequent first: name, words, episodes, successes, held_out."""
    found, task_of = [], store.meta["episode_task"]
    for number in np.unique(task_of):
        task = store.tasks[number] if number >= 0 else {"name": "(no instruction)"}
        mine = task_of == number
        words = (task.get("paraphrases") or [""])[0]
        counts = {"episodes": int(mine.sum()), "successes": int(store.meta["episode_success"][mine].sum())}
        found.append({"name": task["name"], "words": words, "held_out": bool(task.get("held_out")), **counts})
    return sorted(found, key=lambda task: (-task["episodes"], task["name"]))


def _chosen(store: Store) -> list[int]:
    """Episodes to show, from all over the store, of as many tasks as there are."""
    task_of, n = store.meta["episode_task"], store.n_episodes
    tasks = np.unique(task_of)
    tasks = tasks[np.unique(np.linspace(0, len(tasks) - 1, SHOWN).astype(int))] if len(tasks) else tasks
    chosen: list[int] = []
    for i in range(min(SHOWN, n)):
        mine = np.flatnonzero(task_of == tasks[i % len(tasks)])
        free = mine[~np.isin(mine, chosen)]
        free = free if len(free) else np.setdiff1d(np.arange(n), chosen)
        chosen.append(int(free[(i * len(free)) // SHOWN]))
    return sorted(chosen)


def _show(store: Store, i: int, seconds: float) -> Shown:
    start, stop = store.bounds(i)
    rows = np.array([start, (start + stop - 1) // 2, stop - 1])
    task, times_s = store.task_of(i), store.rows("timestamp", rows)
    strips = []
    for name, entry in store.fields.items():
        if entry["kind"] in ("rgb", "depth"):
            pictures = store.rows(name, rows) if store.has(name, i) else np.zeros((0, 1, 1), np.uint8)
            strips.append(
                (name, [_small(picture) for picture in (_grey(pictures) if entry["kind"] == "depth" else pictures)])
            )
    moments = [f"{time_s - times_s[0]:.1f} s" for time_s in times_s]
    words = "" if task is None else (task.get("paraphrases") or [task["name"]])[0]
    return Shown(i, words, seconds, bool(store.meta["episode_success"][i]), moments, strips)


def _grey(depth_mm: np.ndarray) -> np.ndarray:
    """Depth (n, H, W) uint16 as pictures (n, H, W, 3) uint8: near is light, what is invalid is blue."""
    valid = depth_mm > 0
    near, far = np.percentile(depth_mm[valid], [1, 99]) if valid.any() else (0, 1)
    grey = 235 - 205 * np.clip((depth_mm - near) / max(far - near, 1), 0, 1)
    return np.where(valid[..., None], grey[..., None], INVALID_RGB).astype(np.uint8)


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    shrink = min(SIDE / max(height, width), 1)
    return media.resized(picture, max(round(height * shrink), 1), max(round(width * shrink), 1))


def _histograms(store: Store, name: str) -> list[Histogram]:
    """One per dimension, of evenly spread rows of the episodes that have the field."""
    rows = np.unique(np.linspace(0, store.n_rows - 1, SAMPLE).astype(int)) if store.n_rows else np.zeros(0, int)
    if name in store.optional:
        episodes = np.searchsorted(store.episode_ends, rows, side="right")
        rows = rows[store.meta[f"has_{name}"].astype(bool)[episodes]]
    values, entry = store.rows(name, rows), store.fields[name]
    unit = entry.get("units") or entry.get("unit") or ""
    units = unit if isinstance(unit, list) and len(unit) == len(entry["names"]) else [unit] * len(entry["names"])
    return [_histogram(*column) for column in zip(entry["names"], map(str, units), values.T, strict=True)]


def _histogram(name: str, unit: str, values: np.ndarray) -> Histogram:
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    svg = _bars(np.histogram(values, BINS, (low, high))[0], WIDTH, HEIGHT) if low < high else ""
    return Histogram(name, "" if unit in ("1", "[]") else unit, f"{low:.3g}", f"{high:.3g}", svg)


def _lengths(steps: np.ndarray) -> str:
    """How many episodes (N,) have how many steps, as an <svg>; "" if they all have the same.

    A bar stands for a whole number of steps: otherwise one bar would hold two lengths and the next one only one.
    """
    if len(np.unique(steps)) < 2:
        return ""
    return _bars(np.bincount((steps - steps.min()) // -(-(np.ptp(steps) + 1) // BINS)), 4 * WIDTH, 2 * HEIGHT)


def _bars(counts: np.ndarray, width: int, height: int) -> str:
    """A bar per count as an <svg>; its colours come from the page."""
    step, tall = width / len(counts), (height - 2) * counts / counts.max()
    bars = "".join(
        f"M{i * step + step * 0.1:.1f},{height}v{-max(h, 1.2):.1f}h{step * 0.8:.1f}V{height}z"
        for i, h in enumerate(tall)
        if h > 0
    )
    return (
        f'<svg class="hist" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img">'
        f'<path d="{bars}"/><line x1="0" x2="{width}" y1="{height}" y2="{height}"/></svg>'
    )


def _duration(seconds: float) -> str:
    for unit, name, most in ((1, "seconds", 120), (60, "minutes", 12_000), (3600, "hours", np.inf)):
        if seconds < most:
            return (
                f"{seconds / unit:.1f}\u202f{name}"
                if seconds < 100 * unit
                else f"{_grouped(seconds / unit)}\u202f{name}"
            )
    return "unknown time"  # NaN


def _grouped(number: float) -> str:
    """A count with thin spaces between thousands."""
    return f"{number:,.0f}".replace(",", "\u2009")
