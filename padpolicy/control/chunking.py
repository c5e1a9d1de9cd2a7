"""The two pieces of state of a closed loop in steps: what was seen, and what is to be done.

`ObservationBuffer` remembers what was seen, by timestamp; `ChunkQueue` holds what is to be done, by due time. Times are
seconds on one clock (real or virtual); both classes only ever see the times they are given.

    ObservationBuffer                          ChunkQueue
                                               plan 1, observed at t=0:   a0 a1 a2 a3 a4 a5 a6 a7
    frames   o  o  o  O                        plan 2, observed at t=3:            b0 b1 b2 b3 b4 b5 b6 b7
             |<- dt ->| now                    it arrives at t=4:          late -> xx
    sample: obs_steps frames, dt apart,        executed:                  a0 a1 a2 a3 b1 b2 b3 b4 ...
    the last is the newest; before the         due at                      0  1  2  3  4  5  6  7  ...
    first frame the first repeats (is_pad)     an action due at t runs once, within dt/2 of t, or never
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from padpolicy.sample import Sample

if TYPE_CHECKING:
    from padpolicy.spec import PolicySpec


class ObservationBuffer:
    """Recent observations by timestamp.

    Args:  keep_s: how much history is kept, seconds; must cover (obs_steps - 1) * dt_s of the policy, as `of` does.
    """

    def __init__(self, keep_s: float):
        self.keep_s = keep_s
        self._frames: deque[tuple[float, Mapping[str, Any]]] = deque()

    @classmethod
    def of(cls, spec: PolicySpec) -> ObservationBuffer:
        """A buffer that keeps what a policy looks back on."""
        return cls(spec.obs_steps * spec.dt_s)

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def latest_s(self) -> float:
        """Timestamp of the newest observation. Raises ValueError if there is none."""
        if not self._frames:
            raise ValueError("ObservationBuffer is empty: push() an observation before asking for one.")
        return self._frames[-1][0]

    def clear(self) -> None:
        self._frames.clear()

    def push(self, time_s: float, observation: Mapping[str, Any]) -> None:
        """Adds what was seen at `time_s`: rgb_<cam>, depth_<cam>, proprio as in batch.py, without time or batch axis.

        Raises:  ValueError if `time_s` is not after the newest timestamp, or not finite.
        """
        if not np.isfinite(time_s):
            raise ValueError(f"ObservationBuffer.push: time_s={time_s} is not a finite number of seconds.")
        if self._frames and time_s <= self._frames[-1][0]:
            raise ValueError(
                f"ObservationBuffer.push: time_s={time_s} is not after the newest observation at "
                f"{self._frames[-1][0]}; push in order of time, and clear() between episodes."
            )
        self._frames.append((float(time_s), observation))
        # One frame older than `keep_s` stays: it is the nearest to the oldest time that may be asked for.
        while len(self._frames) > 2 and self._frames[1][0] < time_s - self.keep_s:
            self._frames.popleft()

    def sample(self, spec: PolicySpec, instruction: str | None, robot: str = "", index: int = 0) -> Sample:
        """The newest observation with its history as the policy wants it.

        Frame j of `spec.obs_steps` is the one nearest to newest - (obs_steps - 1 - j) * dt_s. Where that time lies
        more than dt_s / 2 before the oldest frame, the oldest is repeated and `is_pad` is set. Cameras and
        proprioception that the observations do not have get no key: absent is not zero.

        Raises:  ValueError if nothing was pushed, or the history asked for is longer than `keep_s`.
        """
        now = self.latest_s
        offsets = (np.arange(spec.obs_steps) - (spec.obs_steps - 1)) * spec.dt_s
        if -offsets[0] > self.keep_s + 1e-9:
            raise ValueError(f"ObservationBuffer keeps {self.keep_s} s; the policy looks back {-offsets[0]:.3g} s.")
        times = np.array([time for time, _ in self._frames])
        nearest = np.abs(times[:, None] - (now + offsets)[None]).argmin(axis=0)
        frames = [self._frames[i][1] for i in nearest]
        names = [f"rgb_{cam}" for cam in spec.cameras] + [f"depth_{cam}" for cam in spec.depth_cameras]
        if spec.proprio_dim:
            names.append("proprio")
        sample = Sample(text=instruction, robot=robot, index=index)
        for name in names:
            if all(name in frame for frame in frames):
                array = np.stack([np.asarray(frame[name]) for frame in frames])
                sample.fields[f"obs.{name}"] = array.astype(np.float32) if name == "proprio" else array
        sample.is_pad["obs"] = now + offsets < times[0] - spec.dt_s / 2
        sample.time_s["obs"] = offsets.astype(np.float32)
        return sample


class ChunkQueue:
    """Planned actions by due time: action i of a plan is due at its observation time + i * dt_s.

    The newest plan (by observation time) wins; an action runs at most once; what is late is dropped, never caught up.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets everything, for a new episode."""
        self._due = np.zeros(0)
        self._actions: np.ndarray | None = None  # (n, A), row i is due at _due[i]
        self._dt_s = 0.0
        self._observed_at_s = -np.inf
        self._executed_s = -np.inf  # due time of the last action handed out
        self.dropped = 0  # actions that came too late to run

    def put(self, observed_at_s: float, dt_s: float, chunk: np.ndarray) -> bool:
        """Takes a plan (T, A) made from the observation at `observed_at_s`. It replaces what was planned from then on.

        Returns:  False if a plan from a newer observation is already here; this one is then ignored.
        Raises:   ValueError for a chunk that is not (T, A), has no rows, or other action dims than the plan before.
        """
        chunk = np.asarray(chunk)
        if chunk.ndim != 2 or not len(chunk):
            raise ValueError(f"ChunkQueue.put: expected a chunk (T, A) with T >= 1, got shape {chunk.shape}.")
        if self._actions is not None and chunk.shape[1] != self._actions.shape[1]:
            raise ValueError(
                f"ChunkQueue.put: chunk has {chunk.shape[1]} action dims, the plan before had "
                f"{self._actions.shape[1]}; clear() the queue before changing robots."
            )
        if not dt_s > 0:
            raise ValueError(f"ChunkQueue.put: dt_s={dt_s}, expected seconds between actions, more than 0.")
        if observed_at_s < self._observed_at_s:
            return False
        due = observed_at_s + dt_s * np.arange(len(chunk))
        fresh = due > self._executed_s + dt_s / 2  # what ran already, from the plan before, does not run again
        self.dropped += int((~fresh).sum())
        before = self._due < due[0] - dt_s / 2
        old = chunk[:0] if self._actions is None else self._actions[before]
        self._due = np.concatenate([self._due[before], due[fresh]])
        self._actions = np.concatenate([old, chunk[fresh]])
        self._dt_s, self._observed_at_s = dt_s, observed_at_s
        return True

    def at(self, time_s: float) -> np.ndarray | None:
        """The action (A,) due within dt/2 of `time_s`, taken out of the queue; None if nothing is due."""
        self._drop_late(time_s)
        if self._actions is None or not len(self._due) or self._due[0] > time_s + self._dt_s / 2:
            return None
        action, self._executed_s = self._actions[0], float(self._due[0])
        self._due, self._actions = self._due[1:], self._actions[1:]
        return action

    def remaining(self, time_s: float) -> int:
        """How many actions are still to come at `time_s`. Looks only: late ones stay until `at`."""
        return int((self._due >= time_s - self._dt_s / 2).sum())

    def _drop_late(self, time_s: float) -> None:
        late = self._due < time_s - self._dt_s / 2
        if late.any():
            assert self._actions is not None  # there are due times only if there was a plan
            self.dropped += int(late.sum())
            self._due, self._actions = self._due[~late], self._actions[~late]
