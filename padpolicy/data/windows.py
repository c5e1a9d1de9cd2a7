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
    time_s = timestamp_s[start:stop] * speed
    offsets_s = np.asarray(offsets_s, np.float64)
    wanted_s = time_s[now - start] + offsets_s
    after = np.clip(np.searchsorted(time_s, wanted_s), 1, max(len(time_s) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(time_s) - 1)
    nearest = np.where(wanted_s - time_s[before] <= time_s[after] - wanted_s, before, after)
    nearest = np.where(offsets_s > 0, np.maximum(nearest, min(now - start + 1, len(time_s) - 1)), nearest)
    nearest = np.where(offsets_s == 0, now - start, nearest)
    slack_s = 0.5 * (float(np.median(np.diff(time_s))) if len(time_s) > 1 else dt_s)
    is_pad = (wanted_s > time_s[-1] + slack_s) | (wanted_s < time_s[0] - slack_s)
    is_pad |= (offsets_s > 0) & (nearest == now - start)  # the last row has no future
    real_s = time_s[nearest] - time_s[now - start]
    return Rows(nearest + start, is_pad, np.where(is_pad, offsets_s, real_s).astype(np.float32))
