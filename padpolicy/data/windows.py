"""Index arithmetic only: which rows a training window reads, which of them are padding, and when they are.

    episode      start                 now                                  stop
                   |....................|....................................|
    obs                            o  o O                                        now - k * dt_s
    action                              a a a a a a a a                          rows now, now + 1, ...
    future                                            F         F                nearest to now + offset

Every row of an episode is the "now" of one window, and no window leaves its episode: observations before it are the
first row again, frames after it the last row again, actions after it *hold* (filled in by the dataset); all of these
are marked `is_pad`. Frames are looked up in seconds, so 30 frames/s and 10 frames/s mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WindowSpec:
    """What a window holds. Times are seconds of the robot."""

    obs_steps: int
    chunk_steps: int
    future_offsets_s: tuple[float, ...]
    dt_s: float


@dataclass
class Rows:
    """Rows of one time axis: their numbers (n,) int64, (n,) bool padding, (n,) float32 seconds from "now"."""

    rows: np.ndarray
    is_pad: np.ndarray
    time_s: np.ndarray


def window(
    now: int, start: int, stop: int, timestamp_s: np.ndarray, spec: WindowSpec, speed: float = 1.0
) -> dict[str, Rows]:
    """The rows of the window at row `now` of the episode [start, stop), by time axis: obs, future, action.

    Args:    timestamp_s: (T,) float64, of all rows of the store.
             speed: how much faster than the robot the recording shows things; its seconds are stretched by this.
    """
    if not start <= now < stop:
        raise ValueError(f"row {now} lies outside of its episode [{start}, {stop}).")
    past_s = -spec.dt_s * np.arange(spec.obs_steps - 1, -1, -1)
    return {
        "obs": frames(now, start, stop, timestamp_s, past_s, spec.dt_s, speed),
        "future": frames(now, start, stop, timestamp_s, spec.future_offsets_s, spec.dt_s, speed),
        "action": steps(now, stop, spec.chunk_steps, spec.dt_s),
    }


def steps(now: int, stop: int, n: int, dt_s: float) -> Rows:
    """`n` consecutive rows from `now`; those behind the episode's end are its last row, marked as padding."""
    rows = np.arange(now, now + n)
    return Rows(np.minimum(rows, stop - 1), rows >= stop, (np.arange(n) * dt_s).astype(np.float32))


def frames(
    now: int,
    start: int,
    stop: int,
    timestamp_s: np.ndarray,
    offsets_s: Sequence[float] | np.ndarray,
    dt_s: float,
    speed: float = 1.0,
) -> Rows:
    """The rows nearest in time to now + offsets. `time_s` says when they really are; padding keeps the time asked for.

    A frame asked for after now is never "now" itself while the episode has a later one: a video of few frames
    would otherwise teach that nothing moves.
    """
    time_s, here = timestamp_s[start:stop], now - start
    last = len(time_s) - 1
    now_s = time_s[here]
    slack_s = 0.5 * ((time_s[last] - time_s[0]) / last if last else dt_s / speed)
    rows, is_pad, real_s = [], [], []
    for offset_s in offsets_s:
        wanted_s = now_s + offset_s / speed
        after = min(int(np.searchsorted(time_s, wanted_s)), last)
        before = max(after - 1, 0)
        nearest = before if wanted_s - time_s[before] <= time_s[after] - wanted_s else after
        if offset_s == 0:
            nearest = here
        elif offset_s > 0:
            nearest = max(nearest, min(here + 1, last))
        outside = wanted_s > time_s[last] + slack_s or wanted_s < time_s[0] - slack_s
        outside = outside or (offset_s > 0 and nearest == here)  # the last row has no future
        rows.append(start + nearest)
        is_pad.append(outside)
        real_s.append(offset_s if outside else (time_s[nearest] - now_s) * speed)
    return Rows(np.array(rows, np.int64), np.array(is_pad, bool), np.array(real_s, np.float32))
