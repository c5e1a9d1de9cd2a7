"""Planning beside the loop: a request goes in, an answer comes out later, and nobody waits.

A `Brain` answers one request at a time: a policy in this process, one in a process of its own, or a server. `Beside`
lets it think in a thread, `Later` answers in virtual time. Importing this brings no torch.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from padpolicy.control.apart import start_apart
from padpolicy.sample import Sample
from padpolicy.spec import PolicySpec

if TYPE_CHECKING:
    from padpolicy.control.clock import Clock
    from padpolicy.policy import Policy


@dataclass
class Request:
    """A plan is asked for."""

    sample: Sample  # what is seen, with its history and the instruction
    observed_at_s: float  # on the robot's clock
    number: int  # of the plan; with `seed` it keys the noise
    seed: int = 0
    prefix: np.ndarray | None = None  # (T, A) actions, of which the first `prefix_len` will run anyway
    prefix_len: int = 0
    imagine: bool = False  # also say what will be seen
    steps: int = 0  # sampling steps; 0: the policy's own
    guidance: float = 0.0  # scale over text; 0: the policy's own
    temperature: float = 1.0  # of the noise that the plan starts from


@dataclass
class Answer:
    """What came of a request."""

    request: Request
    chunk_TA: np.ndarray  # (T, A) float32 actions of the environment
    future: dict[str, np.ndarray] = field(default_factory=dict)  # camera -> (F, H, W, 3) uint8, if asked for
    timings_ms: dict[str, float] = field(default_factory=dict)  # as Prediction's
    latency_s: float = 0.0  # from the request to the answer, on this side


Brain = Callable[[Request], Answer]


class Planner(Protocol):
    """At most one request is under way."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way, or its answer has not been fetched."""

    def ask(self, request: Request) -> None:
        """Begins. Raises RuntimeError if busy."""

    def poll(self) -> Answer | None:
        """The answer, once; None while it is thought about. Raises what the brain raised."""

    def close(self) -> None:
        """Lets go of the brain."""


class LocalBrain:
    """A policy in this process.

    Args:  imagines: whether it has learned to say what will be seen while it acts (mode `joint`).
           prefixes: whether it has learned to go on from a known prefix.
    """

    def __init__(self, policy: Policy, imagines: bool = False, prefixes: bool = False):
        self.policy, self.spec, self.imagines, self.prefixes = policy, policy.spec, imagines, prefixes

    def warm(self) -> None:
        """Makes plans of every kind, in the thread that will make the others: then the first is as fast as they are."""
        prefix = np.zeros((self.spec.chunk_steps, self.spec.action_dim), np.float32)
        plain = Request(blank(self.spec), 0.0, 0)
        for request in (plain, replace(plain, prefix=prefix), replace(plain, imagine=self.imagines)):
            self(request)

    def __call__(self, request: Request) -> Answer:
        import torch

        from padpolicy import draws
        from padpolicy.batch import collate

        policy, batch = self.policy, collate([request.sample])
        mode = policy.imagines_in if request.imagine else policy.acts_in
        noise = {}
        for name, shape in policy.noise_shapes(mode).items():
            drawn = draws.generator(request.seed, request.number, 0, f"plan/{name}")
            start = drawn.standard_normal((1, *shape), np.float32) * np.float32(request.temperature)
            noise[name] = torch.from_numpy(start)
        prefix = None if request.prefix is None else torch.from_numpy(np.asarray(request.prefix, np.float32))[None]
        prediction = policy.predict(
            batch,
            mode=mode,
            prefix=prefix,
            prefix_len=None if prefix is None else torch.tensor([request.prefix_len]),
            noise=noise,
            guidance=request.guidance or None,
            steps=request.steps or None,
            generator=torch.Generator().manual_seed(request.seed),  # for samplers that draw on the way; flow does not
        )
        assert prediction.action is not None  # modes to act in give actions
        future = {camera: policy.decode(latent[0]).cpu().numpy() for camera, latent in prediction.future_latent.items()}
        return Answer(request, prediction.action[0].float().cpu().numpy(), future, dict(prediction.timings_ms))


class BrainError(ConnectionError):
    """The brain has gone, or could not start: says why."""


class ProcessBrain:
    """A policy in a process of its own: its interpreter never makes the loop wait. For policies on the CPU.

    Args:   checkpoint: run directory or name of a shipped policy.   threads: torch's; 0 leaves its choice.
    Raises: BrainError if it cannot start, or from a call once it has gone.
    """

    def __init__(self, checkpoint: str, device: str = "auto", threads: int = 1, compile: bool = False):
        self._pipe, self._process = start_apart("brain", _think, checkpoint, device, threads, compile)
        self.spec: PolicySpec
        self.spec, self.imagines, self.prefixes = self._receive()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid or 0

    def __call__(self, request: Request) -> Answer:
        try:
            self._pipe.send(request)
        except OSError:
            raise BrainError("the policy's process has ended.") from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise BrainError("the policy's process has ended.") from None
        if kind == "failed":
            raise BrainError(value)
        return value

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _think(pipe: Connection, checkpoint: str, device: str, threads: int, compile: bool) -> None:
    """The brain's process: one request after the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever drives the robot
    try:
        brain = local_brain(checkpoint, device, threads, compile)
        brain.warm()
        pipe.send(("done", (brain.spec, brain.imagines, brain.prefixes)))
    except Exception as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(("done", brain(request)))
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))


def local_brain(checkpoint: str, device: str, threads: int, compile: bool = False) -> LocalBrain:
    """A checkpoint as a brain in this process."""
    import torch

    from padpolicy.device import pick_device
    from padpolicy.saving import load_policy

    if threads:
        torch.set_num_threads(threads)
    policy = load_policy(checkpoint, device=pick_device(device)).prepare(compile)
    learned = policy.config.diffusion
    return LocalBrain(policy, bool(policy.imagines_in), learned.prefix_share > 0)


def blank(spec: PolicySpec) -> Sample:
    """An observation of the right shapes with nothing in it, to warm a policy up with."""
    side, sample = spec.image_size, Sample(text="", robot=spec.robot)
    for camera in spec.cameras:
        sample.fields[f"obs.rgb_{camera}"] = np.zeros((spec.obs_steps, side, side, 3), np.uint8)
    for camera in spec.depth_cameras:
        sample.fields[f"obs.depth_{camera}"] = np.ones((spec.obs_steps, side, side), np.uint16)
    if spec.proprio_dim:
        sample.fields["obs.proprio"] = np.zeros((spec.obs_steps, spec.proprio_dim), np.float32)
    sample.is_pad["obs"] = np.zeros(spec.obs_steps, bool)
    sample.time_s["obs"] = ((np.arange(spec.obs_steps) - spec.obs_steps + 1) * spec.dt_s).astype(np.float32)
    return sample


class Beside:
    """A brain that thinks in a thread, always the same one, while the loop goes on."""

    def __init__(self, brain: Brain):
        self.brain = brain
        self._asked: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()
        self._busy, self._warm = False, threading.Event()
        threading.Thread(target=self._think, daemon=True, name="padpolicy planner").start()

    def wait(self) -> None:
        """Returns once the brain is warm. Raises what it raised if it cannot plan."""
        self._warm.wait()
        if not self._answered.empty():
            self.poll()

    @property
    def busy(self) -> bool:
        return self._busy

    def ask(self, request: Request) -> None:
        if self._busy:
            raise RuntimeError("Beside.ask: a request is under way; poll() until it is answered.")
        self._busy = True
        self._asked.put(request)

    def _think(self) -> None:
        try:
            getattr(self.brain, "warm", lambda: None)()
        except Exception as error:
            self._answered.put(error)
        self._warm.set()
        while True:
            request = self._asked.get()
            started = time.monotonic()
            try:
                answer = self.brain(request)
                answer.latency_s = time.monotonic() - started
                self._answered.put(answer)
            except Exception as error:  # raised by poll, where somebody can do something about it
                self._answered.put(error)

    def poll(self) -> Answer | None:
        try:
            answer = self._answered.get_nowait()
        except queue.Empty:
            return None
        self._busy = False
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        close = getattr(self.brain, "close", None)
        if close is not None:
            close()


class Later:
    """A brain in virtual time: its answer comes `delay_s` after the request, however long it really took."""

    def __init__(self, brain: Brain, clock: Clock, delay_s: Callable[[], float]):
        self.brain, self.clock, self.delay_s = brain, clock, delay_s
        self._pending: tuple[float, Answer] | None = None

    @property
    def busy(self) -> bool:
        return self._pending is not None

    def ask(self, request: Request) -> None:
        if self._pending is not None:
            raise RuntimeError("Later.ask: a request is under way; poll() until it is answered.")
        delay, answer = self.delay_s(), self.brain(request)
        answer.latency_s = delay
        self._pending = (self.clock.now_s() + delay, answer)

    def poll(self) -> Answer | None:
        if self._pending is None or self.clock.now_s() < self._pending[0] - 1e-9:
            return None
        answer, self._pending = self._pending[1], None
        return answer

    def close(self) -> None:
        self._pending = None
