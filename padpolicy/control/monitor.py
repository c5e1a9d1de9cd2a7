"""Does what happens agree with what was expected? Runs on the policy's side, beside the loop that acts.

    o(t) ------------------ executed since: a0 a1 a2 a3 a4 a5 ----------------- frame seen at t + offset
     \\_ policy imagines, given o(t) and those actions: what should be seen at t + offset  _/ compare

Three channels, each with its own share of the false alarms that are allowed:

| channel    | compares                                 | notices                                             |
|------------|------------------------------------------|-----------------------------------------------------|
| `imagined` | imagined and seen latents, cell by cell  | things where nobody expected them: moved, exchanged |
| `picture`  | the same, the median over all cells      | a picture that is another altogether: covered       |
| `tracking` | commanded and measured pose (no network) | an arm that does not follow: blocked                |

Thresholds are conformal: of n successful episodes without disturbance, kept from those that fitted anything, the k-th
smallest maximum, k = ceil((n + 1)(1 - share)). A further such episode exceeds it with probability at most `share`, as
long as it is drawn as they were.

Measured on the tabletop with the shipped policy and thresholds of all tasks together (208 episodes): false alarms in 7
of 166 undisturbed successful episodes. Noticed were 43 of 45 covered cameras, 39 of 45 blocked arms, but only 32 of 49
moved and 31 of 55 exchanged objects: what goes on where the arm is about to move is hardly seen by `imagined`, since a
blurred arm excuses as much, and pushed objects, which it imagines badly, keep the threshold high. A camera whose
picture freezes is not noticed; the observations' timestamps may tell.

Letters: B moments, T action steps, A action dims, n cells of all cameras together, P proprio dims.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from padpolicy.batch import collate
from padpolicy.config import ConfigError, MonitorConfig
from padpolicy.control.chunking import ObservationBuffer
from padpolicy.data.actions import ActionSpec, from_waypoints, hold_action
from padpolicy.encoders.fingerprint import fingerprint
from padpolicy.sample import Sample

if TYPE_CHECKING:
    from padpolicy.control.robot import Observation
    from padpolicy.policy import Policy

CHANNELS = ("imagined", "picture", "tracking")
FORMAT = 1
FILE = "monitor.json"  # beside the policy
POOLED = ""  # the task that stands for all of them
# Measured on successful episodes of the tabletop: the squared error of an imagined cell (latents, mean over channels)
# is about this much of the squared change imagined in it, within one cell of it, and within two.
_EXCUSED = (0.7, 0.4, 0.1)
_SLACK_S = 1e-6


@dataclass
class Score:
    """How surprising a moment was."""

    time_s: float  # of the newest frame that was judged, on the robot's clock
    value: float  # the largest of `parts`
    threshold: float  # always 1: parts are in units of their thresholds
    alarm: bool
    parts: dict[str, float]  # channel -> score over its threshold


@dataclass
class Moment:
    """An observation, what was executed since, and what is seen now."""

    time_s: float  # of `seen`
    sample: Sample  # the observation, with its history
    actions_TA: np.ndarray  # float32: executed, then held
    seen: dict[str, np.ndarray]  # camera -> (H, W, 3) uint8


@dataclass
class Tracking:
    """What proprioception should be at a commanded pose: linear, so it serves poses and joint angles alike."""

    weight: list[list[float]]  # (D + 1, P): of the commanded waypoint and a 1
    precision: list[list[float]]  # (P, P): inverse covariance of what remains

    @classmethod
    def fit(cls, commanded_ND: np.ndarray, proprio_NP: np.ndarray) -> Tracking:
        """Least squares over undisturbed observations. Raises ValueError with fewer than ten per number."""
        inputs = np.column_stack([commanded_ND, np.ones(len(commanded_ND))])
        if len(inputs) < 10 * inputs.shape[1]:
            raise ValueError(f"Tracking.fit: {len(inputs)} observations, expected at least {10 * inputs.shape[1]}.")
        weight = np.linalg.lstsq(inputs, proprio_NP, rcond=None)[0]
        rest = proprio_NP - inputs @ weight
        covariance = np.atleast_2d(rest.T @ rest / len(rest)) + 1e-8 * np.eye(rest.shape[1])
        return cls(weight.tolist(), np.linalg.inv(covariance).tolist())

    def distance(self, commanded_D: np.ndarray, proprio_P: np.ndarray) -> float:
        """Mahalanobis distance of the measured from the expected: 1 is usual for one number."""
        rest = np.asarray(proprio_P, np.float64) - np.append(commanded_D, 1.0) @ np.array(self.weight)
        return float(np.sqrt(max(rest @ np.array(self.precision) @ rest, 0.0)))


def conformal(maxima: Sequence[float], share: float) -> float:
    """The ceil((n + 1)(1 - share))-th smallest of n maxima; infinite where n is too small for that."""
    rank = math.ceil((len(maxima) + 1) * (1 - share) - 1e-9)
    return float(np.sort(maxima)[rank - 1]) if 1 <= rank <= len(maxima) else math.inf


@dataclass
class Thresholds:
    """What a monitor needs beside the policy: kept as `monitor.json` in the policy's folder."""

    limits: dict[str, dict[str, float]]  # task -> channel -> threshold, where it had enough; POOLED: of all together
    counts: dict[str, int]  # task -> successful calibration episodes
    config: MonitorConfig  # what the scores were made with
    tracking: Tracking | None = None
    policy: str = ""  # fingerprint of the weights
    seeds: list[int] = field(default_factory=list)  # of the calibration episodes

    @classmethod
    def fit(cls, maxima: Mapping[str, Sequence[Mapping[str, float]]], cfg: MonitorConfig, **more: Any) -> Thresholds:
        """From the largest raw score of each channel in each successful undisturbed episode.

        Args:    maxima: task -> one {channel: maximum} per episode.   more: `tracking`, `policy`, `seeds`.
        Raises:  ConfigError if there are too few episodes of all tasks together for a threshold.
        """
        together = [episode for episodes in maxima.values() for episode in episodes]
        everything: dict[str, Sequence[Mapping[str, float]]] = {**maxima, POOLED: together}
        limits = {
            task: {channel: conformal([e[channel] for e in episodes], cfg.shares[channel]) for channel in CHANNELS}
            for task, episodes in everything.items()
        }
        if math.inf in limits[POOLED].values():
            needed = math.ceil(1 / min(cfg.shares.values())) - 1
            raise ConfigError(
                f"monitor: {len(together)} successful calibration episodes, expected at least {needed} for shares of "
                f"false alarms {cfg.shares}. Record more, or allow more false alarms."
            )
        enough = {
            task: {name: limit for name, limit in own.items() if limit < math.inf} for task, own in limits.items()
        }
        counts = {task: len(episodes) for task, episodes in everything.items()}
        return cls({task: own for task, own in enough.items() if own}, counts, cfg, **more)

    @classmethod
    def unit(cls, cfg: MonitorConfig, tracking: Tracking | None, policy: str) -> Thresholds:
        """Thresholds of 1, for calibration: a monitor with them gives raw scores."""
        return cls({POOLED: dict.fromkeys(CHANNELS, 1.0)}, {POOLED: 0}, cfg, tracking, policy)

    def of(self, task: str) -> dict[str, float]:
        """Channel -> threshold. A channel for which the task had too few episodes takes that of all tasks."""
        return {**self.limits[POOLED], **self.limits.get(task, {})}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Thresholds:
        """Raises ConfigError for another format, and for anything missing or unknown."""
        try:
            rest = dict(values)
            if (found := rest.pop("format")) != FORMAT:
                raise ValueError(f"format {found!r}, this version reads {FORMAT}")
            rest["config"] = MonitorConfig(**rest["config"])
            rest["tracking"] = None if rest["tracking"] is None else Tracking(**rest["tracking"])
            if set(rest["limits"][POOLED]) != set(CHANNELS):
                raise ValueError(f"thresholds of all tasks together for {sorted(rest['limits'][POOLED])}")
            return cls(**rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"thresholds of a monitor: {type(error).__name__} {error}. Calibrate again with "
                "scripts/monitor_study.py."
            ) from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Thresholds:
        """Raises ConfigError if the file is missing, damaged or of another format."""
        try:
            values = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: {error}. Calibrate the policy's monitor with scripts/monitor_study.py, or act without one."
            ) from None
        return cls.from_json(values)


def policy_fingerprint(policy: Policy) -> str:
    """Sixteen hex digits over the policy's weights, whatever their precision."""
    return fingerprint(policy.state_dict())  # type: ignore[attr-defined]  # every policy with weights is a module


@torch.no_grad()
def surprise(policy: Policy, cfg: MonitorConfig, moments: Sequence[Moment]) -> tuple[Tensor, Tensor]:
    """What was imagined, against what is seen.

    Returns: surprise_Bn: squared error of each cell over what its imagined change excuses; error_Bn: without excuse.
             float32, on the CPU, of the imagined frame that lies nearest in time.
    """
    spec = policy.spec
    frame = int(np.argmin(spec.future_offsets_s))
    noise = {
        name: torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)).expand(len(moments), *shape)
        for name, shape in policy.noise_shapes("forward").items()
    }
    actions = torch.from_numpy(np.stack([moment.actions_TA for moment in moments]))
    batch = collate([moment.sample for moment in moments])
    imagined = policy.predict(batch, mode="forward", actions=actions, noise=noise, steps=cfg.steps).future_latent
    surprises, errors = [], []
    for camera in spec.future_cameras:
        seen = policy.encode(torch.from_numpy(np.stack([moment.seen[camera] for moment in moments]))).float()
        now = policy.encode(batch.fields[f"obs.rgb_{camera}"][:, -1]).float()
        there = imagined[camera][:, frame].float()
        error_Byx, change_Byx = ((there - seen) ** 2).mean(1), ((there - now) ** 2).mean(1)
        excused = sum(w * functional.max_pool2d(change_Byx, 2 * r + 1, 1, r) for r, w in enumerate(_EXCUSED))
        surprises.append((error_Byx / (cfg.floor + excused)).flatten(1))
        errors.append(error_Byx.flatten(1))
    return torch.cat(surprises, 1).cpu(), torch.cat(errors, 1).cpu()


class Monitor:
    """Watches one robot. `observe` is cheap and belongs in the loop; `judge` asks the network and may run in a thread.

    Args:    policy: one that imagines from actions (trained in mode "forward").   cfg: settings.
             thresholds: calibrated for this policy, with these settings.
    Raises:  ConfigError if the policy cannot be monitored, or the thresholds are of another policy or other settings.
    """

    def __init__(self, policy: Policy, cfg: MonitorConfig, thresholds: Thresholds):
        spec = policy.spec
        if not spec.future_cameras or not spec.future_offsets_s or spec.action.get("kind", "unknown") == "unknown":
            raise ConfigError(
                f"monitor: this policy imagines cameras {spec.future_cameras} and its actions are "
                f"{spec.action.get('kind', 'unknown')!r}; expected an imagined camera and actions of a known kind."
            )
        if thresholds.policy != (own := policy_fingerprint(policy)):
            raise ConfigError(
                f"monitor: thresholds are of policy {thresholds.policy!r}, this one is {own!r}. Calibrate again "
                "with scripts/monitor_study.py."
            )
        for name in [f.name for f in dataclasses.fields(cfg) if f.name not in ("on_alarm", "thresholds")]:
            if (there := getattr(thresholds.config, name)) != (here := getattr(cfg, name)):
                raise ConfigError(
                    f"monitor.{name} is {here}, the thresholds were made with {there}. Use that, or calibrate again."
                )
        self.policy, self.cfg, self.thresholds = policy, cfg, thresholds
        self.action_spec = ActionSpec.from_dict(spec.action)
        self.offset_s = min(spec.future_offsets_s)
        self._lock = threading.Lock()
        self.reset()

    def reset(self, task: str = "", robot: str = "") -> None:
        """Forgets everything, for a new episode. The task chooses the thresholds."""
        with self._lock:
            self.task, self.robot = task, robot or self.policy.spec.robot
            self._buffer = ObservationBuffer.of(self.policy.spec)
            self._open: deque[tuple[float, Sample]] = deque()  # observations whose future has not been seen yet
            self._commanded: deque[tuple[float, np.ndarray]] = deque()
            self._frames: deque[tuple[float, dict[str, np.ndarray]]] = deque(maxlen=2)
            self._distances: deque[tuple[float, float]] = deque()
            self._tracking = 0.0  # the largest since the last judgement
            self._complete: Moment | None = None
            self._before: tuple[float, Tensor] | None = None  # the last judgement's surprise, by cell

    def observe(self, observation: Observation) -> None:
        """Takes in what was seen, letterboxed to the policy's image size. No network is asked.

        Raises:  ValueError if it is not newer than the last, or lacks a camera that the policy imagines.
        """
        now, spec = observation.time_s, self.policy.spec
        if missing := [camera for camera in spec.future_cameras if f"rgb_{camera}" not in observation.fields]:
            raise ValueError(
                f"Monitor.observe: no picture of camera {', '.join(missing)} among {sorted(observation.fields)}."
            )
        with self._lock:
            self._buffer.push(now, observation.fields)
            commanded = np.array(observation.commanded, np.float64)
            self._commanded.append((now, commanded))
            self._frames.append((now, {camera: observation.fields[f"rgb_{camera}"] for camera in spec.future_cameras}))
            self._follow(now, commanded, observation.fields)
            if not self._open or now >= self._open[-1][0] + self.cfg.every_s - _SLACK_S:
                self._open.append((now, self._buffer.sample(spec, None, self.robot)))
            while self._open and now >= self._open[0][0] + self.offset_s - _SLACK_S:
                self._finish(*self._open.popleft())
            oldest = self._open[0][0] if self._open else now
            while len(self._commanded) > 2 and self._commanded[1][0] <= oldest:
                self._commanded.popleft()

    def _follow(self, now: float, commanded: np.ndarray, fields: Mapping[str, np.ndarray]) -> None:
        """Tracking is as bad as the best of the last `tracking_s` seconds: contact is brief."""
        tracking = self.thresholds.tracking
        if tracking is None or "proprio" not in fields:
            return
        self._distances.append((now, tracking.distance(commanded, fields["proprio"])))
        if now - self._distances[0][0] >= self.cfg.tracking_s - _SLACK_S:
            while len(self._distances) > 1 and now - self._distances[1][0] >= self.cfg.tracking_s - _SLACK_S:
                self._distances.popleft()
            self._tracking = max(self._tracking, min(distance for _, distance in self._distances))

    def _finish(self, begun: float, sample: Sample) -> None:
        """Makes a moment of an observation, unless no frame was seen when its future was due."""
        due, spec = begun + self.offset_s, self.policy.spec
        time, seen = min(self._frames, key=lambda frame: abs(frame[0] - due))
        if abs(time - due) > spec.dt_s / 2 + _SLACK_S:
            return
        self._complete = Moment(time, sample, self._executed(begun), seen)

    def _executed(self, begun: float) -> np.ndarray:
        """The actions (T, A) float32 that lead through the poses commanded since, one per dt; then it holds."""
        times = np.array([time for time, _ in self._commanded])
        poses = np.stack([pose for _, pose in self._commanded])
        steps = min(self.policy.spec.chunk_steps, max(1, round(self.offset_s / self.policy.spec.dt_s)))
        grid = begun + self.policy.spec.dt_s * np.arange(steps + 1)
        way = np.stack([np.interp(grid, times, column) for column in poses.T], axis=1)
        gripper = self.action_spec.gripper_part  # not led along a line: the pose that holds at that time
        way[:, gripper] = poses[np.searchsorted(times, grid + _SLACK_S, "right") - 1][:, gripper]
        done = from_waypoints(way[1:], way[0], self.action_spec)
        hold = hold_action(self.action_spec, done[-1])
        return np.concatenate([done, np.tile(hold, (self.policy.spec.chunk_steps - steps, 1))]).astype(np.float32)

    def due(self) -> bool:
        """Whether there is something new to judge."""
        return self._complete is not None

    def take(self) -> Moment | None:
        """The newest complete moment, once; older ones that nobody judged are skipped."""
        with self._lock:
            moment, self._complete = self._complete, None
            return moment

    def judge(self) -> Score | None:
        """Scores the newest complete moment; None if there is none. One call of the network, away from the loop."""
        moment = self.take()
        if moment is None:
            return None
        surprise_Bn, error_Bn = surprise(self.policy, self.cfg, [moment])
        return self.score(moment, surprise_Bn[0], error_Bn[0])

    def score(self, moment: Moment, surprise_n: Tensor, error_n: Tensor) -> Score:
        """The score of a moment whose surprise is known already: to judge many robots in one batch.

        A cell surprises by the lesser of its last two surprises: what was not foreseen stays, blur passes.
        """
        with self._lock:
            before, self._before = self._before, (moment.time_s, surprise_n)
            tracking, self._tracking = self._tracking, 0.0
            limits = self.thresholds.of(self.task)
        imagined = 0.0
        if before is not None and moment.time_s - before[0] < self.offset_s - _SLACK_S:
            cells = torch.minimum(before[1], surprise_n)
            imagined = float(cells.topk(min(self.cfg.cells, len(cells))).values.mean())
        raw = {"imagined": imagined, "picture": float(error_n.median()), "tracking": tracking}
        parts = {name: value / max(limits[name], 1e-9) for name, value in raw.items()}
        value = max(parts.values())
        return Score(moment.time_s, value, 1.0, value > 1.0, parts)


def monitor_of(checkpoint: str, cfg: MonitorConfig, device: str) -> Monitor:
    """The monitor of a policy on disk. Raises ConfigError where there are no thresholds for it."""
    from padpolicy.device import pick_device
    from padpolicy.saving import find_policy, load_policy

    thresholds = Thresholds.load(cfg.thresholds or find_policy(checkpoint) / FILE)
    return Monitor(load_policy(checkpoint, device=pick_device(device)), cfg, thresholds)
