"""What the contents of a store say about themselves: the checks of `validate` that need more than its structure.

A `Numbers` or `Pictures` looks at one field of a store. It is given the field's rows once, in order, a chunk at a time
(`add`, or `skip` where a chunk cannot be read), keeps a few bytes a row, and says at the end what it found.
docs/validate.md has every threshold with its reason.

Letters: T rows, N episodes, D dimensions, S rows of the sample.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from padpolicy.data.actions import ActionSpec
from padpolicy.data.layout import Finding

Read = Callable[[str, int, int], np.ndarray]  # (field, first row, row behind the last) -> rows

ENOUGH_ROWS = 100  # fewer say nothing about a dimension
NO_MOTION = 1e-6  # a smaller range, in the field's units, is constant (so the normaliser takes it)
SATURATED = 0.5  # share of the values exactly at the least and the greatest
FEW_VALUES = 8  # a dimension with fewer is a switch
DARK = 10  # of 255: a sensor's noise with the lens covered
METRES_MM = 20  # a depth picture whose farthest point is nearer holds metres
INVALID = 0.5, 0.2  # share of the depth that is 0: of an episode, worth a look; of all, worth knowing
FROZEN_STEPS, FROZEN_S = 5, 0.5  # the same picture for so many steps, and so long
MOVED = 0.05  # of a dimension's range: the robot moved meanwhile
COMMANDED = 0.5  # of a delta action's root mean square: it was told to move
IRREGULAR = 0.5  # share of the usual step by which a step may differ
RATE = 0.1  # share of dt_s by which the usual step may differ
FIT, BETTER, SHARP = 0.5, 0.7, 0.95  # of the action's lag, in R2: a fit, its rest against that of lag 0, a sharp fit
SAMPLE_ROWS, SAMPLE_STEPS = 100_000, 5_000  # kept of a field of numbers: in all, and of an episode
GRID = 32  # pixels a side that are looked at first
LISTED = 5  # episodes that a finding names


@dataclass
class Episodes:
    """Which rows belong to which episode, and which episodes have which field."""

    ends: np.ndarray  # (N,) int64
    has: dict[str, np.ndarray] = field(default_factory=dict)  # optional field -> (N,) bool

    def __post_init__(self) -> None:
        self.n, self.n_rows = len(self.ends), int(self.ends[-1]) if len(self.ends) else 0
        self.starts = np.r_[0, self.ends][:-1]
        self.lengths = self.ends - self.starts
        chosen = np.arange(self.n) % max(-(-self.n_rows // SAMPLE_ROWS), 1) == 0
        self.sampled = self.rows(chosen) & (np.arange(self.n_rows) - self.rows(self.starts) < SAMPLE_STEPS)  # (T,)
        self.sample_episode = self.of(np.flatnonzero(self.sampled))  # (S,)

    def rows(self, values_N: np.ndarray) -> np.ndarray:
        """(T,): each row's episode's value."""
        return np.repeat(values_N, self.lengths)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The episodes of rows."""
        return np.searchsorted(self.ends, rows, side="right")

    def having(self, name: str) -> np.ndarray:
        """(N,) bool: which episodes have a field."""
        return self.has[name].astype(bool) if name in self.has else np.ones(self.n, bool)

    def sums(self, values_T: np.ndarray) -> np.ndarray:
        """(N,): the sum over each episode."""
        values_T = values_T.astype(np.int64) if values_T.dtype == bool else values_T
        return np.add.reduceat(values_T, self.starts) if self.n else np.zeros(0)

    def place(self, row: int) -> str:
        episode = int(self.of(np.array(row)))
        return f"episode {episode}, step {row - int(self.starts[episode])}"


def at_rows(level: str, where: str, rows: np.ndarray, episodes: Episodes, message: str, what: str = "steps") -> Finding:
    """One finding for all `rows` (increasing) with the same fault; `message` is about the first of them."""
    found = np.unique(episodes.of(rows))
    if len(found) > 1:
        message += f" {len(rows)} such {what} in {_listed(found, episodes.n)}."
    elif len(rows) > 1:
        message += f" {len(rows)} such {what} in this episode."
    return Finding(level, f"{where}, {episodes.place(int(rows[0]))}", message)


def at_episodes(level: str, where: str, found: Sequence[int] | np.ndarray, n: int, message: str) -> Finding:
    """One finding for all episodes with the same fault; `message` is about the first of them."""
    if len(found) > 1:
        message += f" The same in {_listed(found, n)}."
    return Finding(level, f"{where}, episode {found[0]}" if where else f"episode {found[0]}", message)


def _listed(found: Sequence[int] | np.ndarray, n: int) -> str:
    named = ", ".join(str(episode) for episode in found[:LISTED])
    return f"{len(found)} of {n} episodes: {named}" + f" and {len(found) - LISTED} more" * (len(found) > LISTED)


class Digests:
    """A fingerprint of each episode's rows of a field."""

    def __init__(self, episodes: Episodes) -> None:
        self.episodes, self.done = episodes, list[bytes]()
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, first: int, rows: np.ndarray) -> None:
        at = 0
        while at < len(rows):
            end = int(self.episodes.ends[len(self.done)]) - first
            self._hash.update(np.ascontiguousarray(rows[at:end]).tobytes())
            if end <= len(rows):
                self.done.append(self._hash.digest())
                self._hash = hashlib.blake2b(digest_size=16)
            at = min(end, len(rows))

    def skip(self, first: int, n: int) -> None:
        """Rows that cannot be read equal no others."""
        self.add(first, np.frombuffer(os.urandom(16 * n), np.uint8).reshape(n, 16))


class Times:
    """`timestamp`: (T,) float64 seconds."""

    def __init__(self, episodes: Episodes, spec: ActionSpec | None) -> None:
        self.episodes, self.spec = episodes, spec
        self.time_s = np.full(episodes.n_rows, np.nan)

    def add(self, first: int, rows: np.ndarray) -> None:
        self.time_s[first : first + len(rows)] = rows

    def skip(self, first: int, n: int) -> None:
        pass

    def findings(self) -> list[Finding]:
        where, episodes = "data/timestamp", self.episodes
        step_s = np.diff(self.time_s, prepend=np.nan)  # row t: seconds since the row before
        step_s[episodes.starts] = np.nan
        found = []
        if (stuck := np.flatnonzero(step_s <= 0)).size:
            message = f"time does not increase ({step_s[stuck[0]]:+.4f} s). Repair the timestamps or drop the episode."
            found.append(at_rows("error", where, stuck, episodes, message))
        if self.spec is None:  # videos may have any frame rate
            return found
        usual_s = np.full(episodes.n, np.nan)
        for i in np.flatnonzero(episodes.lengths > 1):
            steps = step_s[episodes.starts[i] + 1 : episodes.ends[i]]
            if (steps > 0).all():  # not so for NaN
                usual_s[i] = np.median(steps)
        away = np.abs(step_s - episodes.rows(usual_s))
        if (odd := np.flatnonzero(away > IRREGULAR * episodes.rows(usual_s))).size:
            usual = usual_s[episodes.of(odd[:1])[0]]
            message = (
                f"irregular: {step_s[odd[0]]:.4f} s after {usual:.4f} s usually. Frames were dropped or the clock "
                "jumped; resample the episode if the robot acted meanwhile."
            )
            found.append(at_rows("warning", where, odd, episodes, message))
        if (off := np.flatnonzero(np.abs(usual_s - self.spec.dt_s) > RATE * self.spec.dt_s)).size:
            message = (
                f"a step usually takes {usual_s[off[0]]:.4g} s, but the actions are declared with dt_s "
                f"{self.spec.dt_s:g}. Correct dt_s in the attributes, or the timestamps (they are seconds)."
            )
            found.append(at_episodes("warning", where, off, episodes.n, message))
        return found


class Numbers:
    """`action`, `executed` or `proprio`: (T, D) float32."""

    def __init__(self, name: str, names: Sequence[str], episodes: Episodes, spec: ActionSpec | None) -> None:
        """Args: spec: that of the store's actions, if it has any."""
        self.name, self.names, self.episodes, self.spec = name, list(names), episodes, spec
        self.is_action = name in ("action", "executed")
        self.arm = np.array(["grip" not in n.lower() and "finger" not in n.lower() for n in names], bool)  # (D,)
        if self.is_action and spec is not None:
            self.arm[spec.gripper_part] = False
        self.digests = Digests(episodes)
        self.there = episodes.rows(episodes.having(name))
        self.bad, self.outside, self.same = (np.zeros(episodes.n_rows, bool) for _ in range(3))
        self.low, self.high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        self.at_low, self.at_high, self.n = np.zeros(len(names), int), np.zeros(len(names), int), 0
        self.squares = np.zeros(len(names))
        self._bad_value, self._sample, self._last = "", list[np.ndarray](), np.full(len(names), np.nan, np.float32)

    def add(self, first: int, rows: np.ndarray) -> None:
        here = slice(first, first + len(rows))
        finite = np.isfinite(rows)
        self.bad[here] = ~finite.all(1)
        if not finite.all() and not self._bad_value:
            row, column = np.argwhere(~finite)[0]
            self._bad_value = f"dimension {column} is {rows[row, column]}"
        if self.is_action and self.spec is not None:
            self.outside[here] = self.spec.gripper_is_outside(rows)
        self.same[here] = (rows == np.concatenate([self._last[None], rows[:-1]])).all(1)
        self._last = rows[-1]
        self._sample.append(np.where(self.there[here, None], rows, np.nan)[self.episodes.sampled[here]])
        self.digests.add(first, rows)
        if len(rows := rows[self.there[here] & finite.all(1)]):
            low, high = rows.min(0), rows.max(0)
            self.at_low = self.at_low * (self.low <= low) + (rows == low).sum(0) * (low <= self.low)
            self.at_high = self.at_high * (self.high >= high) + (rows == high).sum(0) * (high >= self.high)
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            self.squares += np.square(rows, dtype=np.float64).sum(0)
            self.n += len(rows)

    def skip(self, first: int, n: int) -> None:
        self._sample.append(np.full((int(self.episodes.sampled[first : first + n].sum()), len(self.names)), np.nan))
        self._last = np.full_like(self._last, np.nan)
        self.digests.skip(first, n)

    @property
    def sample(self) -> np.ndarray:
        """(S, D): the rows of `Episodes.sampled`, NaN where they are absent or damaged."""
        return np.concatenate([np.zeros((0, len(self.names))), *self._sample])

    def findings(self, motion: Motion) -> list[Finding]:
        """Args: motion: what is known of the robot's so far."""
        where, episodes, found = f"data/{self.name}", self.episodes, []
        if self.bad.any():
            message = f"{self._bad_value}. Drop or repair the episode."
            found.append(at_rows("error", where, np.flatnonzero(self.bad), episodes, message))
        if self.spec is not None and self.outside.any():
            message = (
                f"the binary gripper is beyond gripper_range {self.spec.gripper_range}. Correct gripper_range in the "
                "attributes, or the data."
            )
            found.append(at_rows("error", where, np.flatnonzero(self.outside), episodes, message))
        if self.n >= ENOUGH_ROWS:
            found += self._dimensions(where)
        if not self.is_action:
            runs = long_runs(self.same & self.there, episodes, motion.time_s)
            stuck = [run for run in runs if motion.moved(*run, by_proprio=False)]
            if stuck:
                steps, seconds = longest(stuck, motion.time_s)
                message = (
                    f"the same numbers, up to {steps} steps{seconds} long, while the actions command motion: "
                    "the robot's state was not updated. Drop the episode, or cut the steps out."
                )
                found.append(at_rows("warning", where, np.array(stuck)[:, 0], episodes, message, "stretches"))
        return found

    def _dimensions(self, where: str) -> list[Finding]:
        found, moves = [], self.high - self.low > NO_MOTION
        if still := [name for name, i in zip(self.names, self.arm & ~moves, strict=True) if i]:
            message = (
                f"never changes: {', '.join(still)}. A sensor that was not read, or a column that nobody needs: "
                "nothing is learned from it."
            )
            found.append(Finding("warning", where, message))
        rest = [0.0] if self.is_action else [0.0, 1.0, -1.0]  # no command; a cosine, sine or quaternion of no rotation
        share = (self.at_low * ~np.isin(self.low, rest) + self.at_high * ~np.isin(self.high, rest)) / self.n
        sample, clipped = self.sample, []
        opening = (self.low == 0) & (self.high == 1)  # of a gripper, whatever its name
        for d in np.flatnonzero((share >= SATURATED) & self.arm & moves & ~opening):
            if len(np.unique(sample[:, d])) >= FEW_VALUES:
                clipped.append(
                    f"{self.names[d]} in {share[d]:.0%} of the steps ({self.low[d]:.4g} or {self.high[d]:.4g})"
                )
        if clipped:
            message = (
                f"stands at its least or greatest value: {', '.join(clipped)}. Clipped when it was recorded or scaled? "
                "If so, record or convert it without."
            )
            found.append(Finding("warning", where, message))
        return found


class Motion:
    """Whether the robot moved, or was told to, between two rows; None where nothing says it."""

    def __init__(self, episodes: Episodes, numbers: dict[str, Numbers], time_s: np.ndarray, read: Read) -> None:
        """Args: numbers: what was looked at already."""
        self.episodes, self.numbers, self.time_s, self._read = episodes, numbers, time_s, read

    def moved(self, start: int, stop: int, by_proprio: bool = True) -> bool | None:
        for name in ("proprio", "executed", "action"):
            look = self.numbers.get(name)
            if look is None or (name == "proprio" and not by_proprio) or not look.there[start] or not look.n:
                continue
            try:
                rows = self._read(name, start, stop)[:, look.arm]
            except Exception:  # a damaged chunk, which has its own finding
                return None
            if look.is_action and look.spec is not None and look.spec.kind == "delta":
                usual = np.sqrt(look.squares / look.n)[look.arm]
                return bool((np.sqrt(np.square(rows).mean(0)) > COMMANDED * usual).any())
            return bool((np.ptp(rows, axis=0) > MOVED * (look.high - look.low)[look.arm]).any())
        return None


def long_runs(same_T: np.ndarray, episodes: Episodes, time_s: np.ndarray) -> list[tuple[int, int]]:
    """(first row, row behind the last) of each stretch frozen for long; `same_T` (T,) bool: equal to the row before."""
    same_T = same_T.copy()
    same_T[episodes.starts] = False
    edges = np.diff(np.r_[False, same_T, False].astype(np.int8))
    starts, stops = np.flatnonzero(edges == 1) - 1, np.flatnonzero(edges == -1)
    seconds = time_s[stops - 1] - time_s[starts]
    far = (stops - starts > FROZEN_STEPS) & ~(seconds < FROZEN_S - 1e-6)  # NaN: only the steps count
    return list(zip(starts[far].tolist(), stops[far].tolist(), strict=True))


def longest(runs: list[tuple[int, int]], time_s: np.ndarray) -> tuple[int, str]:
    """Steps of the longest run, and its seconds as words."""
    start, stop = max(runs, key=lambda run: run[1] - run[0])
    seconds = time_s[stop - 1] - time_s[start]
    return stop - start, f" ({seconds:.1f} s)" if np.isfinite(seconds) else ""


class Pictures:
    """`rgb_<camera>`: (T, H, W, 3) uint8, or `depth_<camera>`: (T, H, W) uint16 mm."""

    def __init__(self, name: str, episodes: Episodes) -> None:
        self.name, self.episodes, self.is_depth = name, episodes, name.startswith("depth")
        self.digests = Digests(episodes)
        self.there = episodes.rows(episodes.having(name))
        self.peak = np.zeros(episodes.n_rows, np.uint16)  # greatest value of a frame
        self.zeros = np.zeros(episodes.n_rows, np.float16)  # share of a frame
        self.plain, self.same = np.zeros(episodes.n_rows, bool), np.zeros(episodes.n_rows, bool)
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # the row before: all of it, and its grid

    def add(self, first: int, rows: np.ndarray) -> None:
        """A grid of pixels is looked at; whole frames only where it raises a suspicion."""
        here, n = slice(first, first + len(rows)), len(rows)
        grid = np.ascontiguousarray(rows[:, :: max(rows.shape[1] // GRID, 1), :: max(rows.shape[2] // GRID, 1)])
        self.digests.add(first, grid)
        flat = grid.reshape(n, -1)
        peak, corners = flat.max(1), (grid[:, 0, 0] == grid[:, -1, -1]).reshape(n, -1).all(1)
        for i in np.flatnonzero((peak <= METRES_MM) | corners):
            peak[i], self.plain[first + i] = rows[i].max(), (rows[i] == rows[i, :1, :1]).all()
        self.peak[here] = peak
        if self.is_depth:
            self.zeros[here] = 1 - np.count_nonzero(flat, axis=1) / flat.shape[1]
        before = [] if self._last is None else [self._last]
        alike = (np.concatenate([*(flat for _, flat in before), flat[:-1]]) == flat[1 - len(before) :]).all(1)
        for i in np.flatnonzero(alike) + 1 - len(before):
            self.same[first + i] = np.array_equal(rows[i], rows[i - 1] if i else before[0][0])
        self._last = rows[-1].copy(), flat[-1:].copy()

    def skip(self, first: int, n: int) -> None:
        self.there[first : first + n] = False
        self._last = None
        self.digests.skip(first, n)

    def findings(self, motion: Motion) -> list[Finding]:
        where, episodes, found = f"data/{self.name}", self.episodes, []
        frames = episodes.sums(self.there)
        peak = np.maximum.reduceat(np.where(self.there, self.peak, 0), episodes.starts) if episodes.n else np.zeros(0)
        wrong_scale = (frames > 0) & (peak > 0) & (peak <= (METRES_MM if self.is_depth else 1))
        if wrong_scale.any():
            message = (
                f"the farthest point is {peak[wrong_scale][0]} mm away: metres were stored as millimetres. "
                "Multiply by 1000 before rounding, and convert again."
                if self.is_depth
                else "no pixel is above 1: pictures of 0..1 were stored as bytes. Multiply by 255, and convert again."
            )
            found.append(at_episodes("error", where, np.flatnonzero(wrong_scale), episodes.n, message))
        there = self.there & ~episodes.rows(wrong_scale)
        black = there & (self.peak <= (0 if self.is_depth else DARK))
        blank = black | (there & self.plain)
        off = (frames > 0) & (episodes.sums(blank) == frames)
        if off.any():
            dark = episodes.sums(black)[off][0] == frames[off][0]
            kind = "one colour" if not dark else "invalid" if self.is_depth else "black"
            message = (
                f"every frame is {kind}: was the camera covered or off? Drop the episode, or leave the camera out."
            )
            found.append(at_episodes("warning", where, np.flatnonzero(off), episodes.n, message))
        dropped = np.flatnonzero(black & ~episodes.rows(off))
        if dropped.size and not self.is_depth:
            message = "the frame is black: the camera dropped out. Cut the steps out, or drop the episode."
            found.append(at_rows("warning", where, dropped, episodes, message))
        runs = long_runs(self.same & there & ~blank, episodes, motion.time_s)
        found += self._frozen(where, runs, frames, motion)
        if self.is_depth:
            found += self._invalid(where, there & ~episodes.rows(off))
        return found

    def _frozen(self, where: str, runs: list[tuple[int, int]], frames: np.ndarray, motion: Motion) -> Iterable[Finding]:
        stuck = []
        for start, stop in runs:
            moved = motion.moved(start, stop)
            whole = stop - start == frames[self.episodes.of(np.array(start))]
            if moved or (moved is None and whole):
                stuck.append((start, stop))
        if stuck:
            steps, seconds = longest(stuck, motion.time_s)
            moves = ", while the robot moves: the camera hung, or cannot see it" if motion.moved(*stuck[0]) else ""
            message = (
                f"the same picture, up to {steps} steps{seconds} long{moves}. Drop the episode, or cut the steps out."
            )
            yield at_rows("warning", where, np.array(stuck)[:, 0], self.episodes, message, "stretches")

    def _invalid(self, where: str, there: np.ndarray) -> Iterable[Finding]:
        n, episodes = self.episodes.sums(there), self.episodes
        shares = episodes.sums(np.where(there, self.zeros, 0).astype(np.float64)) / np.maximum(n, 1)
        total = float((shares * n).sum() / max(n.sum(), 1))
        if (many := np.flatnonzero(shares >= INVALID[0])).size:
            message = (
                f"{shares[many[0]]:.0%} of the depth is invalid (0). Is the camera nearer than it can measure, or its "
                "unit not millimetres? Leave this camera's depth out if it is always so."
            )
            yield at_episodes("warning", where, many, episodes.n, message)
        elif total >= INVALID[1]:
            yield Finding("info", where, f"{total:.0%} of the depth is invalid (0); it is masked out in training.")


def check_lag(numbers: dict[str, Numbers], proprio_names: Sequence[str], spec: ActionSpec) -> list[Finding]:
    """Whether actions stand a step beside the motion that they caused.

    The commanded motion of a step (a delta action, or the change of an absolute one) is correlated with the measured
    one (the change of the proprioception of the same name) of the same step and of its neighbours.
    """
    names = [name for name in spec.names[spec.position] if name in proprio_names]
    if not names or spec.frame == "tool" or spec.kind not in ("delta", "absolute") or "proprio" not in numbers:
        return []
    episode, found = numbers["proprio"].episodes.sample_episode, []
    pose = numbers["proprio"].sample[:, [list(proprio_names).index(name) for name in names]]
    measured = _shifted(pose, 1, episode) - pose  # row t: from t to t + 1
    for field_name in ("action", "executed"):
        if field_name not in numbers:
            continue
        columns = [spec.names.index(name) for name in names]
        commanded = numbers[field_name].sample[:, columns] * np.array(spec.scale)[columns]
        if spec.kind == "absolute":
            commanded = commanded - _shifted(commanded, -1, episode)
        lags = range(-2, 3)
        shifted = {lag: _shifted(measured, lag, episode) for lag in lags}
        good = np.isfinite(commanded).all(1) & np.all([np.isfinite(values).all(1) for values in shifted.values()], 0)
        if good.sum() < ENOUGH_ROWS:
            continue
        fits = {lag: _fit(commanded[good], values[good]) for lag, values in shifted.items()}
        best = max(fits, key=lambda lag: fits[lag])
        if best not in (-1, 1) or fits[best] < FIT or 1 - fits[best] > BETTER * (1 - fits[0]):
            continue
        groups = [good & (episode // 7 % 3 == g) for g in range(3)] if len(np.unique(episode)) > 20 else [good]
        if any(
            _fit(commanded[g], shifted[best][g]) <= _fit(commanded[g], shifted[0][g]) for g in groups if g.sum() > 9
        ):
            continue
        numbers_say = f"R2 {fits[best]:.2f} there, {fits[0]:.2f} as stored; {', '.join(names)}"
        if best < 0:
            message = (
                f"it fits the motion a step before it best ({numbers_say}): row t seems to hold the action that led to "
                "its observation, not the one that followed. Move the actions one row up."
            )
            found.append(Finding("warning", f"data/{field_name}", message))
            continue
        message = (
            f"it fits the motion a step behind it best ({numbers_say}): the actions stand one row too early, or the "
            "robot takes a step to answer. In the first case move them one row down."
        )
        found.append(Finding("warning" if fits[best] >= SHARP else "info", f"data/{field_name}", message))
    return found


def _shifted(values_SD: np.ndarray, by: int, episode_S: np.ndarray) -> np.ndarray:
    """Row t of the result is row t + by of `values_SD`; NaN where that is another episode's."""
    out = np.full_like(values_SD, np.nan)
    to, came = (slice(None, -by), slice(by, None)) if by > 0 else (slice(-by, None), slice(None, by or None))
    same = episode_S[to] == episode_S[came]
    out[to][same] = values_SD[came][same]
    return out


def _fit(commanded: np.ndarray, measured: np.ndarray) -> float:
    """R2 of a line through commanded and measured motion, mean over the dimensions that move; 0 where it falls."""
    a, b = commanded - commanded.mean(0), measured - measured.mean(0)
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    moves = spread > 0
    if not moves.any():
        return 0.0
    return float((np.maximum((a * b).sum(0)[moves] / spread[moves], 0) ** 2).mean())


@dataclass
class Contents:
    """What can be compared of a store's episodes, within it and with another store's."""

    ids: list[str]
    scenes: list[tuple[int, str] | None]  # (seed, task); None: unknown
    rows: dict[str, tuple[int, ...]]  # shape of a row of each field
    digests: dict[str, list[bytes | None]]  # field -> an entry per episode; None: it lacks the field
    renderer: str

    def identities(self, names: Iterable[str]) -> list[tuple[bytes | None, ...] | None]:
        """Per episode what equals another's only if their contents do; None: it has none of them."""
        return [each if any(each) else None for each in zip(*(self.digests[name] for name in names), strict=True)]


def check_copies(contents: Contents) -> list[Finding]:
    """The same recording, or the same scene, more than once in a store."""
    n, found = len(contents.ids), []
    copies = _repeats(contents.identities(contents.digests))
    if copies:
        first = next(iter(copies))
        message = (
            f"the same recording as episode {copies[first]}: recorded or converted twice? Drop one: copies weigh "
            "double, and one may be validated on while the other is learned."
        )
        found.append(at_episodes("warning", "", list(copies), n, message))
    scenes = {i: j for i, j in _repeats(contents.scenes).items() if i not in copies}
    if scenes:
        first = next(iter(scenes))
        message = (
            f"the scene of episode {scenes[first]} again ({_scene(contents.scenes[first])}). The validation split goes "
            "by id: what is validated on may have been seen. Drop one, or validate on a store of its own."
        )
        found.append(at_episodes("warning", "meta/episode_seed", list(scenes), n, message))
    return found


def check_leaks(train: Contents, test: Contents, name: str) -> list[Finding]:
    """What of the store `train` is also in `test`, called `name`."""
    n, found, told = len(train.ids), [], set[int]()
    common = [field for field in train.digests if train.rows[field] == test.rows.get(field)]
    numbers = [field for field in common if not field.startswith(("rgb", "depth"))]
    for fields, what, level in ((common, "recording", "error"), (numbers, "motion, with other pictures,", "warning")):
        theirs = {identity: j for j, identity in enumerate(test.identities(fields)) if identity}
        leaked = {i: theirs[x] for i, x in enumerate(train.identities(fields)) if x in theirs and i not in told}
        told |= leaked.keys()
        if leaked:
            first = next(iter(leaked))
            message = f"the same {what} is episode {leaked[first]} of {name} ({test.ids[leaked[first]]!r}). Drop one."
            found.append(at_episodes(level, "", list(leaked), n, message))
    scenes = {scene: j for j, scene in enumerate(test.scenes) if scene is not None}
    leaked = {i: scenes[scene] for i, scene in enumerate(train.scenes) if scene in scenes and i not in told}
    if leaked:
        first = next(iter(leaked))
        message = f"its scene ({_scene(train.scenes[first])}) is that of episode {leaked[first]} of {name}. Drop one."
        drawn_alike = bool(train.renderer) and train.renderer == test.renderer
        found.append(at_episodes("error" if drawn_alike else "warning", "meta/episode_seed", list(leaked), n, message))
    their_ids = set(test.ids)
    if named := [i for i, name_i in enumerate(train.ids) if name_i in their_ids and i not in told | leaked.keys()]:
        message = f"{train.ids[named[0]]!r} is also an id of {name}, of another recording: only the names are the same."
        found.append(at_episodes("info", "meta/episode_id", named, n, message))
    return found


def _scene(scene: tuple[int, str] | None) -> str:
    return f"seed {scene[0]}, {scene[1]!r}" if scene else ""


def _repeats(keys: Sequence[Any]) -> dict[int, int]:
    """Number of each key that stood before -> number of its first."""
    first: dict[Any, int] = {}
    return {i: first[key] for i, key in enumerate(keys) if key is not None and first.setdefault(key, i) != i}
